"""
Conversations, images and videos to model inputs.

What a user types can never become structure. The chat template refuses any message (of any role) that contains the
text of a special token (`<image>`, `<video>`, `<learnable>`, `</s>`, padding and the like), and puts a blank before the
colon of the role headers `USER:` and `ASSISTANT:`. It does so after joining the parts of a message, and whatever the
template writes next to a message begins or ends with a blank, a newline or a special token, so that no header or
special token can arise where the two meet either. A prompt passed as `text=` is taken as it is: there, placeholders are
structure.

A video is its frames: `<video>` becomes a line `Frame 2, 0:03: <image>` for each, and the frames stand among the images
in `pixel_values`. So the model, and whatever feeds it (generate, TRL, pipelines), needs no key, token or weight beyond
those of images, where `pixel_values_videos` and a video token of its own would only name the same thing twice.
"""

from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer
from transformers.image_processing_utils import get_size_dict
from transformers.image_utils import ImageInput
from transformers.processing_utils import MultiModalData
from transformers.utils import CONFIG_NAME, VIDEO_PROCESSOR_NAME, cached_file

from .configuration_flashsloth import FlashSlothConfig
from .foreign_formats import foreign_format_at, hub_options
from .image_inputs import flatten
from .placeholders import FlashSlothBatch
from .prompt_expansion import FlashSlothProcessorKwargs, PromptExpansion, listed
from .spatial_attention_pooling import square_windows
from .video_inputs import list_videos
from .video_processing_flashsloth import FlashSlothVideoProcessor
from .vision_towers import as_pair

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


class FlashSlothProcessor(PromptExpansion):
    """
    Wraps a [`FlashSlothImageProcessor`], a tokenizer and a [`FlashSlothVideoProcessor`], and expands the placeholders
    of images, videos and queries.

    A call returns `input_ids` and `attention_mask` `(B, L)` and, if there are images or videos, `pixel_values`
    `(images and frames in reading order, V, 3, height, width)`; with `return_mm_token_type_ids=True` also
    `mm_token_type_ids` `(B, L)`, 1 at image positions, and with `return_metadata=True` `video_metadata`. Options of the
    image and video processors such as `image_hd=True` and `num_frames=16` can be given per call, and so can the number
    of visual tokens: `pooling_window=9` makes 9 tokens of the released model's view instead of 81.

    A frame takes as many tokens as an image (81, in HD 405, at the released sizes) and about 10 for its label, so that
    16 frames are some 1,450 tokens. Frames that do not fit into the tokenizer's `model_max_length`, the context of its
    model (phi-2's is 2,048: some 20 frames and a question), are refused.

    The chat template refuses messages that contain the text of a special token, and writes `USER :` for a typed
    `USER:` (likewise `ASSISTANT:`), so that nothing typed can forge the prompt's structure.

    Args:
        image_processor ([`FlashSlothImageProcessor`]):
            Makes views of images.
        tokenizer ([`PreTrainedTokenizerBase`]):
            Has `image_token` and `query_token` among its added tokens.
        video_processor ([`FlashSlothVideoProcessor`], *optional*):
            Makes views of frames; by default one that reads frames as `image_processor` reads images, one view each.
        image_token (`str`, defaults to `"<image>"`):
            Stands for an image; becomes as many tokens as pooling leaves of its views. Where it is not the default, the
            tokenizer has to name it as its `image_token` too, for the chat template to write it.
        query_token (`str`, defaults to `"<learnable>"`):
            Ends a user turn; becomes `num_query_tokens` tokens. Not the default: as for `image_token`.
        video_token (`str`, defaults to `"<video>"`):
            Stands for a video in a prompt's text, and is no token; becomes a label and an image for each frame. Not the
            default: as for `image_token`.
        num_query_tokens (`int`, defaults to 9):
            Learned queries of a turn, as in the model's config. With 0 query placeholders become nothing, and the
            tokenizer needs none.
        patch_size (`int` or `list[int]`, defaults to 14):
            Side, or height and width, of a patch of the vision tower, in pixels.
        pooling_window (`int` or `list[int]`, defaults to 3):
            Side, or height and width, of the window of patches that becomes one token, as in the model's config; 1
            where nothing is pooled.
        chat_template (`str`, *optional*):
            Jinja template of a conversation; by default that of the release, in `chat_template.jinja`.

    Raises:
        ValueError: at construction, if the tokenizer lacks a placeholder; in a call, if images or videos differ from
            their placeholders in number, if frames do not fit into the context, or if truncation to `max_length` cuts
            an image or a query run.

    Example:

    ```python
    >>> from transformers import AutoProcessor
    >>> import transformers_flashsloth

    >>> processor = AutoProcessor.from_pretrained("path/to/flashsloth")
    >>> content = [{"type": "image", "path": "cat.jpg"}, {"type": "text", "text": "What is this?"}]
    >>> inputs = processor.apply_chat_template(
    ...     [{"role": "user", "content": content}],
    ...     add_generation_prompt=True,
    ...     tokenize=True,
    ...     return_dict=True,
    ...     return_tensors="pt",
    ... )
    ```
    """

    valid_processor_kwargs = FlashSlothProcessorKwargs

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        video_processor=None,
        image_token: str = "<image>",
        query_token: str = "<learnable>",
        num_query_tokens: int = 9,
        patch_size: int | list[int] = 14,
        pooling_window: int | list[int] = 3,
        video_token: str = "<video>",
        chat_template: str | None = None,
        **kwargs,
    ):
        if chat_template is None and CHAT_TEMPLATE.exists():
            chat_template = CHAT_TEMPLATE.read_text(encoding="utf-8")
        if video_processor is None and image_processor is not None:
            video_processor = FlashSlothVideoProcessor.like(image_processor)
        super().__init__(image_processor, tokenizer, video_processor, chat_template=chat_template, **kwargs)
        needed = (image_token, query_token) if num_query_tokens else (image_token,)
        missing = [token for token in needed if token not in tokenizer.added_tokens_encoder]
        if missing:
            raise ValueError(
                f"The tokenizer has no token {' and no token '.join(missing)}. Add what is missing with "
                f"`tokenizer.add_tokens({missing}, special_tokens=True)` and give the model's config their ids."
            )
        self.image_token = image_token
        self.query_token = query_token
        self.video_token = video_token
        self.num_query_tokens = num_query_tokens
        self.patch_size = patch_size
        self.pooling_window = pooling_window

    def __call__(
        self, images: ImageInput | None = None, text=None, videos=None, audio=None, **kwargs: Any
    ) -> FlashSlothBatch:
        """Makes the inputs of the model; see the docstring of the class."""
        images, text, videos = listed(images), listed(text), listed(videos)
        inputs = super().__call__(images=images, text=text, videos=videos, audio=audio, **kwargs)
        if "pixel_values_videos" in inputs:
            self.put_frames_among_images(inputs, text)
        batch = FlashSlothBatch(inputs, skip_tensor_conversion=inputs.skip_tensor_conversion)
        batch.placeholder_ids = (self.image_token_id, *([self.query_token_id] if self.num_query_tokens else []))
        return batch

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> "FlashSlothProcessor":
        """
        As upstream's, and also for a checkpoint in a foreign format, such as the authors', which has no processor
        files, for one saved without a video processor, and for parts that were saved apart: what they do not say is
        then as in the model's config.

        Raises:
            ValueError: if there are neither the processor's own options nor a model's config.
        """
        path = pretrained_model_name_or_path
        foreign, config_entries = foreign_format_at(path, **kwargs)
        if foreign is not None:
            return cls(**foreign.processor_parts(path, config_entries, **kwargs))
        entries, options = cls.get_processor_dict(path, **kwargs)
        find = {"_raise_exceptions_for_missing_entries": False} | hub_options(kwargs)
        if not entries:
            entries = cls._options_of_model(path, find)
        elif "video_processor" in entries or cached_file(path, VIDEO_PROCESSOR_NAME, **find):
            return super().from_pretrained(path, **kwargs)
        parts = [auto.from_pretrained(path, **kwargs) for auto in (AutoImageProcessor, AutoTokenizer)]
        return cls.from_args_and_dict(parts, entries, **options)

    @staticmethod
    def _options_of_model(path, find: dict) -> dict:
        if not cached_file(path, CONFIG_NAME, **find):
            raise ValueError(
                f"{path} has no processor_config.json, and no config.json that says patches, pooling and queries "
                "instead: save the whole processor with `processor.save_pretrained`."
            )
        config = FlashSlothConfig.from_pretrained(path, **hub_options(find))
        return {
            "num_query_tokens": config.num_query_tokens,
            "patch_size": config.vision_config.patch_size,
            "pooling_window": list(config.window),
        }

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As upstream's, but leaves the processor as it was, without upstream's note on where its code lies."""
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        self.__dict__.pop("auto_map", None)
        return saved

    @property
    def image_token_id(self) -> int:
        """Id of the token that stands for a pooled image feature."""
        return self.tokenizer.convert_tokens_to_ids(self.image_token)

    @property
    def query_token_id(self) -> int:
        """Id of the token that stands for a learned query."""
        return self.tokenizer.convert_tokens_to_ids(self.query_token)

    @property
    def unused_input_names(self) -> list[str]:
        """What a tokenizer may return and the model does not take."""
        return ["token_type_ids"]

    def prepare_inputs_layout(self, images: ImageInput | None = None, text=None, videos=None, **kwargs):
        """
        Reads the images; a row may be `None` (TRL's GRPO), and rows without any count as no images at all. So for
        videos.
        """
        if not isinstance(text, (str, list, tuple, type(None))):
            raise ValueError(f"`text` must be a string or list of strings, got {type(text).__name__}.")
        if isinstance(images, list) and all(row is None or isinstance(row, list) for row in images):
            images = [row or [] for row in images]
        images, *rest = super().prepare_inputs_layout(images=images, text=text, videos=videos, **kwargs)
        text, videos, audio = rest
        images = images if images is None or flatten(images) else None
        return images, text, videos if videos is None or list_videos(videos)[0] else None, audio

    def validate_inputs(self, images: ImageInput | None = None, text: list[str] | None = None, videos=None, **kwargs):
        """Checks that the texts (each, where images or videos are nested) have as many placeholders as those."""
        nested = isinstance(images, list) and any(isinstance(row, list) for row in images)
        if nested and any(not isinstance(row, list) or any(isinstance(item, list) for item in row) for row in images):
            raise ValueError("`images` must be an image, a list of images, or a list with a list for each text.")
        if text is not None:
            if not all(isinstance(sample, str) for sample in text):
                raise ValueError("`text` must be a string or list of strings.")
            num_images = 0 if images is None else [len(row) for row in images] if nested else len(flatten(images))
            flat, rows = ([], None) if videos is None else list_videos(videos)
            for kind, given in (("image", num_images), ("video", rows or len(flat))):
                token = getattr(self, f"{kind}_token")
                needed = [sample.count(token) for sample in text]
                if given != (needed if isinstance(given, list) else sum(needed)):
                    raise ValueError(
                        f"The number of {token} placeholders in the prompts should be the same as the number of "
                        f"{kind}s passed, but the prompts hold {needed} and the {kind}s are {given}."
                    )
        if videos is None:  # upstream's check of videos copies their frames
            super().validate_inputs(images=images, text=text, **kwargs)

    def _check_special_mm_tokens(self, text: list[str], text_inputs, modalities: list[str]):
        """Refuses a truncation that cuts placeholders; upstream's check knows those of images only."""
        input_ids = text_inputs["input_ids"]
        if not isinstance(input_ids, list):
            input_ids = input_ids.tolist()
        placeholders = [(self.image_token, self.image_token_id)]
        if self.num_query_tokens:
            placeholders.append((self.query_token, self.query_token_id))
        for token, token_id in placeholders:
            needed = [sample.count(token) for sample in text]
            kept = [ids.count(token_id) for ids in input_ids]
            if kept != needed:
                raise ValueError(
                    f"Truncation cut {token} tokens: the prompts need {needed}, {kept} are left. Raise `max_length`, "
                    "turn truncation off, or shorten the text."
                )

    def _get_num_multimodal_tokens(self, image_sizes: list[tuple[int, int]] | None = None, **kwargs) -> MultiModalData:
        """Counts the tokens of images by their sizes `(height, width)`, for serving engines."""
        if image_sizes is None:
            return MultiModalData()
        image_hd = self.image_processor.image_hd if kwargs.get("image_hd") is None else kwargs["image_hd"]
        size = kwargs.get("size") or self.image_processor.size
        num_tokens = self._tokens_per_image(size, image_hd, kwargs.get("pooling_window"))
        num_images = len(image_sizes)
        # An image is one row of `pixel_values`, however many views it has.
        return MultiModalData(num_image_tokens=[num_tokens] * num_images, num_image_patches=[1] * num_images)

    def _tokens_per_image(self, size: dict[str, int], image_hd: bool, pooling_window=None) -> int:
        size = get_size_dict(size)
        return (5 if image_hd else 1) * self._tokens_per_view(size["height"], size["width"], pooling_window)

    def _tokens_per_view(self, height: int, width: int, pooling_window: int | list[int] | None = None) -> int:
        patch, window = as_pair(self.patch_size), as_pair(pooling_window or self.pooling_window)
        grid = (height // patch[0], width // patch[1])
        if pooling_window and window != as_pair(self.pooling_window) and window not in square_windows(grid).values():
            raise ValueError(
                f"`pooling_window`={pooling_window} is no square window that tiles the {grid[0]} x {grid[1]} patches "
                f"of a view; choose one of {', '.join(str(side) for side, _ in square_windows(grid).values())}."
            )
        tokens = (height // patch[0] // window[0]) * (width // patch[1] // window[1])
        if tokens == 0:
            raise ValueError(
                f"A view of {height} x {width} pixels leaves no token: it needs at least "
                f"{patch[0] * window[0]} x {patch[1] * window[1]} pixels."
            )
        return tokens


__all__ = ["FlashSlothProcessor"]
