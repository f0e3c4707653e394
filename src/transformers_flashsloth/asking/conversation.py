"""
A conversation about images and videos, through nothing but public interfaces: the processor, its template and
`generate`.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from urllib.parse import urlsplit

import torch
from huggingface_hub.utils import enable_progress_bars
from PIL import Image
from transformers import BatchFeature
from transformers.utils import logging

from ..answering.answers import answer_all
from ..answering.rows import DEFAULT_MAX_NEW_TOKENS
from ..checkpoints.opening import (
    DEFAULT_CHECKPOINT,
    InputError,
    local_directory,
    open_model,
    open_processor,
    quantisation_config,
    usable_device,
)
from ..exported.manifest import is_exported, read_manifest
from ..exported.opening import check_options, check_visual_tokens, open_exported
from ..model.image_inputs import flatten
from ..model.image_processing_flashsloth import FlashSlothImageProcessor
from ..model.modeling_flashsloth import FlashSlothForConditionalGeneration
from ..model.processing_flashsloth import FlashSlothProcessor
from .drawing import below_each_other, draw_explanation
from .streaming import stream_text

VIDEO_SUFFIXES = [".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ogv", ".wmv", ".flv", ".3gp"]
Pictures = list[str] | list[Image.Image] | list[str | Image.Image]  # files and URLs, or decoded


class Conversation:
    """
    Answers questions about images and videos and remembers what was said. The weights are loaded for the first question
    that can be asked, so that bad input is refused at once; or several conversations share a model that is loaded.

    Args:
        images (`list[str | PIL.Image.Image]`): files, URLs or images; names that end like a video file
            (`VIDEO_SUFFIXES`) are videos.
        checkpoint (`str`): directory or Hub id.
        image_hd (`bool`, *optional*): whether to read the images in high definition; by default as the checkpoint says.
        num_frames (`int`, *optional*): most frames that are read of a video; by default as the checkpoint says.
        max_new_tokens (`int`, *optional*): longest answer; by default as the checkpoint says, or 256. The end of the
            decoder's context may cut an answer further.
        device (`str`, *optional*): by default an accelerator if there is one.
        dtype (`str`, *optional*): of the weights; by default float32 on a CPU and the checkpoint's elsewhere.
        load_in (`str`, *optional*): `"4bit"` or `"8bit"`, in which the decoder's layers are loaded, with bitsandbytes.
        visual_tokens (`int`, *optional*): how many tokens a view of an image becomes; by default as the checkpoint
            says.
        model ([`FlashSlothForConditionalGeneration`], *optional*): loaded, where it is; then `checkpoint`, `device`,
            `dtype` and `load_in` are not read.
        processor ([`FlashSlothProcessor`], *optional*): comes with `model`.
        lock (context manager, *optional*): such as a `threading.Lock`; held while the model computes, for conversations
            in several threads.

    Raises:
        ValueError: if `model` comes without `processor`, or the other way round.
        InputError: if one of these cannot be used.
    """

    def __init__(
        self,
        images: Pictures,
        *,
        checkpoint: str = DEFAULT_CHECKPOINT,
        image_hd: bool | None = None,
        num_frames: int | None = None,
        max_new_tokens: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        load_in: str | None = None,
        visual_tokens: int | None = None,
        model: FlashSlothForConditionalGeneration | None = None,
        processor: FlashSlothProcessor | None = None,
        lock: AbstractContextManager | None = None,
    ):
        if (model is None) != (processor is None):
            raise ValueError("a loaded model comes with its processor: pass both, or a checkpoint")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        enable_progress_bars()  # of downloads, which the line above stops too
        self.unseen_images = _read_images(images)
        if model is not None:
            self.model, self.processor, self.device = model, processor, model.device
            self.is_exported, self.explains = False, hasattr(model, "explain")
        else:
            self.checkpoint = local_directory(checkpoint)
            self.is_exported = is_exported(self.checkpoint)
            self.device = torch.device("cpu") if self.is_exported else usable_device(device)
            self.quantisation_config = quantisation_config(load_in, self.device)
            self.dtype = dtype or ("float32" if self.device.type == "cpu" else "auto")
            self.explains = not self.is_exported or read_manifest(self.checkpoint).get("explains", False)
            if self.is_exported:
                check_options(self.checkpoint, {"device": device, "dtype": dtype, "load_in": load_in})
            self.processor = open_processor(self.checkpoint)
        self.lock = lock or nullcontext()
        self.processor_kwargs = {} if image_hd is None else {"image_hd": image_hd}
        if visual_tokens is not None:
            self.processor_kwargs["pooling_window"] = window_of(visual_tokens, self.processor)
            if self.is_exported:
                check_visual_tokens(self.checkpoint, visual_tokens)
        self._decode_videos(num_frames)
        self.max_new_tokens = max_new_tokens
        self.messages = []

    @cached_property
    def model(self) -> FlashSlothForConditionalGeneration:
        """The model, loaded when first needed."""
        if self.is_exported:
            return open_exported(self.checkpoint)
        if self.quantisation_config is not None:
            options = {"quantization_config": self.quantisation_config, "device_map": {"": self.device}}
            return open_model(self.checkpoint, dtype=self.dtype, **options)
        return open_model(self.checkpoint, dtype=self.dtype).to(self.device)

    def ask(self, question: str, images: Pictures | None = None) -> str:
        """
        Answers a question and remembers both.

        Args:
            question (`str`): as the user typed it.
            images (`list[str | PIL.Image.Image]`, *optional*): that this question brings along.

        Raises:
            InputError: if the question cannot be asked; it is then forgotten.
        """
        messages = self._asked(question, images)
        return self._remember(messages, self._generate(self._prepared(messages)))

    def stream(self, question: str, images: Pictures | None = None) -> Iterator[str]:
        """
        As `ask`, and yields the answer in pieces while it grows. A reader who stops before the end ends the answer, and
        the question is forgotten.
        """
        messages = self._asked(question, images)
        generate = partial(self._generate, self._prepared(messages))
        self._remember(messages, (yield from stream_text(generate, self.processor.tokenizer)))

    def recall(self, question: str, answer: str, images: Pictures | None = None) -> None:
        """
        Takes up a turn from elsewhere, as if it had been asked and answered here.

        Raises:
            InputError: if an image cannot be read.
        """
        self._remember(self._asked(question, images), answer)

    def explain(self) -> Image.Image:
        """
        What the model looked at for the last question, drawn over each image and frame, one below the other.

        Raises:
            InputError: if nothing was asked about an image, or the checkpoint only answers.
        """
        return below_each_other(self.explained_images())

    def explained_images(self) -> list[Image.Image]:
        """As `explain`, a picture for each image and frame."""
        self.check_explains()
        parts = [part for message in self.messages if message["role"] == "user" for part in message["content"]]
        images = [image for part in parts if part["type"] != "text" for image in flatten(part[part["type"]])]
        if not images:
            raise InputError("there is nothing to explain: no question about an image was answered yet")
        inputs = self._prepared(self.messages[:-1])  # up to the last answer
        with self.lock:
            explanation = self.model.explain(**inputs)
        return [draw_explanation(image, explanation, index) for index, image in enumerate(images)]

    def check_explains(self) -> None:
        """Raises InputError if the checkpoint only answers."""
        if not self.explains:
            raise InputError("this was exported before exports explained what they answer: export it anew")

    def _asked(self, question: str, images: Pictures | None) -> list[dict]:
        """The messages up to a question, with the images that nobody has asked about yet."""
        if not question.strip():
            raise InputError("the question is empty")
        content = [*self.unseen_images, *_read_images(images or []), {"type": "text", "text": question.strip()}]
        return [*self.messages, {"role": "user", "content": content}]

    def _prepared(self, messages: list[dict]) -> BatchFeature:
        try:
            inputs = self.processor.apply_chat_template(
                messages,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                add_generation_prompt=True,
                processor_kwargs=self.processor_kwargs,
            )
        except Exception as error:  # the template, the image processor and the tokenizer each have their own kinds
            raise InputError(error) from error
        self.inputs = inputs.to(self.device)
        return self.inputs

    def _remember(self, messages: list[dict], answer: str) -> str:
        self.messages = [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        self.unseen_images = []
        return answer

    def ask_each(self, questions: list[str]) -> list[str]:
        """
        Answers questions, each by itself: none is remembered, and what they have in common is computed once.

        Args:
            questions (`list[str]`): as the user typed them.

        Raises:
            InputError: naming the first question that cannot be asked; nothing is answered then.
        """
        asked = []
        for number, question in enumerate(questions, 1):
            try:
                asked.append(self._asked(question, None))
                self.processor.apply_chat_template(asked[-1], tokenize=False, add_generation_prompt=True)
            except Exception as error:
                raise InputError(f"question {number} of {len(questions)} cannot be asked: {error}") from error
        options = {"processor_kwargs": self.processor_kwargs, "max_new_tokens": self.max_new_tokens}
        try:
            with self.lock:
                return answer_all(self.model, self.processor, asked, **options)
        except ValueError as error:
            raise InputError(error) from error

    def _decode_videos(self, num_frames: int | None) -> None:
        """Samples the videos once for all turns."""
        videos = [part for part in self.unseen_images if part["type"] == "video"]
        if not videos:
            return
        video_processor = self.processor.video_processor
        sample = partial(video_processor.sample_frames, num_frames=num_frames or video_processor.num_frames)
        try:
            clips = video_processor.fetch_videos([part["video"] for part in videos], sample)
        except Exception as error:  # decoders have their own kinds
            raise InputError(error) from error
        for part, clip in zip(videos, clips, strict=True):
            part["video"] = clip.frames
        metadata = [clip.metadata for clip in clips]
        self.processor_kwargs["videos_kwargs"] = {"do_sample_frames": False, "video_metadata": metadata}

    def _generate(self, inputs: BatchFeature, **options) -> str:
        length = inputs["input_ids"].shape[1]
        context = self.model.config.text_config.max_position_embeddings
        if length >= context:
            raise InputError(f"the conversation takes {length} tokens, but the model reads at most {context - 1}")
        longest = self.max_new_tokens or self.model.generation_config.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        with self.lock:
            output = self.model.generate(**inputs, max_new_tokens=min(longest, context - length), **options)
        return self.processor.decode(output[0, length:], skip_special_tokens=True).strip()


def _read_images(sources: Pictures) -> list[dict]:
    names = [source for source in sources if isinstance(source, str)]
    for name in names:
        if not name.startswith(("http://", "https://")) and not Path(name).is_file():
            raise InputError(f"there is no {'video' if _is_video(name) else 'image'} file {name!r}")
    try:
        images = iter(FlashSlothImageProcessor().fetch_images([source for source in sources if not _is_video(source)]))
    except Exception as error:
        raise InputError(error) from error
    return [
        {"type": "video", "video": source} if _is_video(source) else {"type": "image", "image": next(images)}
        for source in sources
    ]


def window_of(visual_tokens: int, processor: FlashSlothProcessor) -> list[int]:
    """The pooling window that leaves so many tokens of a view. Raises InputError if there is none."""
    windows = processor.windows
    if visual_tokens not in windows:
        numbers = ", ".join(map(str, sorted(windows)))
        raise InputError(f"a view cannot become {visual_tokens} visual tokens; the model's patches make {numbers}")
    return list(windows[visual_tokens])


def _is_video(source: str | Image.Image) -> bool:
    if isinstance(source, Image.Image):
        return False
    return Path(urlsplit(source).path if "://" in source else source).suffix.lower() in VIDEO_SUFFIXES
