"""
A conversation about images and videos, through nothing but public interfaces: the processor, its template and
`generate`.
"""

from functools import cached_property, partial
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub.utils import enable_progress_bars
from PIL import Image
from transformers import TextStreamer
from transformers.utils import logging

from ..checkpoints.opening import (
    DEFAULT_CHECKPOINT,
    InputError,
    local_directory,
    open_model,
    open_processor,
    quantisation_config,
    usable_device,
)
from ..exported.manifest import is_exported
from ..exported.opening import check_options, check_window, open_exported
from ..model.image_inputs import flatten
from ..model.image_processing_flashsloth import FlashSlothImageProcessor
from ..model.modeling_flashsloth import FlashSlothForConditionalGeneration
from ..model.processing_flashsloth import FlashSlothProcessor
from .drawing import below_each_other, draw_explanation

DEFAULT_MAX_NEW_TOKENS = 256
VIDEO_SUFFIXES = [".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ogv", ".wmv", ".flv", ".3gp"]


class Conversation:
    """
    Answers questions about images and videos and remembers what was said. The weights are loaded for the first question
    that can be asked, so that bad input is refused at once.

    Args:
        images (`list[str]`): files or URLs; those that end like a video file (`VIDEO_SUFFIXES`) are videos.
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

    Raises:
        InputError: if one of these cannot be used.
    """

    def __init__(
        self,
        images: list[str],
        *,
        checkpoint: str = DEFAULT_CHECKPOINT,
        image_hd: bool | None = None,
        num_frames: int | None = None,
        max_new_tokens: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        load_in: str | None = None,
        visual_tokens: int | None = None,
    ):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        enable_progress_bars()  # of downloads, which the line above stops too
        self.unseen_images = _read_images(images)
        self.device = usable_device(device)
        self.quantisation_config = quantisation_config(load_in, self.device)
        self.dtype = dtype or ("float32" if self.device.type == "cpu" else "auto")
        self.checkpoint = local_directory(checkpoint)
        if is_exported(self.checkpoint):
            check_options(self.checkpoint, {"device": device, "dtype": dtype, "load_in": load_in})
        self.processor = open_processor(self.checkpoint)
        self.processor_kwargs = {} if image_hd is None else {"image_hd": image_hd}
        if visual_tokens is not None:
            self.processor_kwargs["pooling_window"] = _window_of(visual_tokens, self.processor)
            if is_exported(self.checkpoint):
                check_window(self.checkpoint, self.processor_kwargs["pooling_window"])
        self._decode_videos(num_frames)
        self.max_new_tokens = max_new_tokens
        self.messages = []

    @cached_property
    def model(self) -> FlashSlothForConditionalGeneration:
        """The model, loaded when first needed."""
        if is_exported(self.checkpoint):
            return open_exported(self.checkpoint)
        if self.quantisation_config is not None:
            options = {"quantization_config": self.quantisation_config, "device_map": {"": self.device}}
            return open_model(self.checkpoint, dtype=self.dtype, **options)
        return open_model(self.checkpoint, dtype=self.dtype).to(self.device)

    def ask(self, question: str, stream: bool = False) -> str:
        """
        Answers a question and remembers both.

        Args:
            question (`str`): as the user typed it.
            stream (`bool`, defaults to `False`): whether to write the answer to stdout while it grows.

        Raises:
            InputError: if the question cannot be asked; it is then forgotten.
        """
        if not question.strip():
            raise InputError("the question is empty")
        content = [*self.unseen_images, {"type": "text", "text": question.strip()}]
        messages = [*self.messages, {"role": "user", "content": content}]
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
        answer = self._generate(self.inputs, stream)
        self.messages = [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        self.unseen_images = []
        return answer

    def explain(self) -> Image.Image:
        """What the model looked at for the last question, drawn over each image and frame, one below the other."""
        self.check_explains()
        explanation = self.model.explain(**self.inputs)
        parts = [part for message in self.messages if message["role"] == "user" for part in message["content"]]
        images = [image for part in parts if part["type"] != "text" for image in flatten(part[part["type"]])]
        return below_each_other([draw_explanation(image, explanation, index) for index, image in enumerate(images)])

    def check_explains(self) -> None:
        """Raises InputError if the checkpoint only answers."""
        if is_exported(self.checkpoint):
            raise InputError("an exported checkpoint answers and explains nothing: ask the model that it was made of")

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

    def _generate(self, inputs, stream: bool) -> str:
        length = inputs["input_ids"].shape[1]
        context = self.model.config.text_config.max_position_embeddings
        if length >= context:
            raise InputError(f"the conversation takes {length} tokens, but the model reads at most {context - 1}")
        longest = self.max_new_tokens or self.model.generation_config.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        output = self.model.generate(
            **inputs,
            max_new_tokens=min(longest, context - length),
            streamer=_AnswerStreamer(self.processor.tokenizer) if stream else None,
        )
        return self.processor.decode(output[0, length:], skip_special_tokens=True).strip()


class _AnswerStreamer(TextStreamer):
    """Writes an answer to stdout while it grows, without the blank that answers begin with."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.has_begun = False

    def on_finalized_text(self, text: str, stream_end: bool = False):
        text = text if self.has_begun else text.lstrip()
        self.has_begun = self.has_begun or bool(text)
        super().on_finalized_text(text, stream_end)


def _read_images(sources: list[str]) -> list[dict]:
    for source in sources:
        if not source.startswith(("http://", "https://")) and not Path(source).is_file():
            raise InputError(f"there is no {'video' if _is_video(source) else 'image'} file {source!r}")
    try:
        images = iter(FlashSlothImageProcessor().fetch_images([source for source in sources if not _is_video(source)]))
    except Exception as error:
        raise InputError(error) from error
    return [
        {"type": "video", "video": source} if _is_video(source) else {"type": "image", "image": next(images)}
        for source in sources
    ]


def _window_of(visual_tokens: int, processor: FlashSlothProcessor) -> list[int]:
    windows = processor.windows
    if visual_tokens not in windows:
        numbers = ", ".join(map(str, sorted(windows)))
        raise InputError(f"a view cannot become {visual_tokens} visual tokens; the model's patches make {numbers}")
    return list(windows[visual_tokens])


def _is_video(source: str) -> bool:
    return Path(urlsplit(source).path if "://" in source else source).suffix.lower() in VIDEO_SUFFIXES
