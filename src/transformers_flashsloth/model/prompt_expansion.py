"""
What the placeholders of a prompt become: an image its tokens, a query run its queries, a video a line for each frame,
with what is said before each, its place among the images, and its share of the context.
"""

import re
from collections.abc import Sequence
from itertools import pairwise, repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import get_size_dict
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin
from transformers.video_processing_utils import VideoProcessorMixin

from .image_processing_flashsloth import FlashSlothImageProcessorKwargs
from .spatial_attention_pooling import square_windows
from .video_processing_flashsloth import FlashSlothVideoProcessorKwargs
from .vision_towers import as_pair

# A tokenizer that does not know its model's context says a number beyond any.
UNKNOWN_CONTEXT = 10**9
# Times are quotients of frame numbers and rates; this keeps 2.9999999 s from being written as 2 s.
ROUNDING_SECONDS = 1e-6


class FlashSlothImagesKwargs(FlashSlothImageProcessorKwargs, total=False):
    """`pooling_window` (`int` or `list[int]`): the window of patches that becomes one token, in this call."""

    pooling_window: int | list[int] | None


class FlashSlothVideosKwargs(FlashSlothVideoProcessorKwargs, total=False):
    """As for images, of the frames."""

    pooling_window: int | list[int] | None


class FlashSlothProcessorKwargs(ProcessingKwargs, total=False):
    """Options of a call."""

    _defaults = {}  # transformers 5.19 looks for them
    images_kwargs: FlashSlothImagesKwargs
    videos_kwargs: FlashSlothVideosKwargs


class PromptExpansion(ProcessorMixin):
    """The part of [`FlashSlothProcessor`] that expands placeholders: upstream's methods, overridden."""

    skip_tensor_conversion = [*ProcessorMixin.skip_tensor_conversion, "frame_labels", "tokens_per_frame"]

    if TYPE_CHECKING:  # upstream's own types know messages of text only

        def apply_chat_template(self, conversation: list, chat_template: str | None = None, **kwargs: Any) -> Any:
            """As upstream's."""

    @property
    def model_input_names(self) -> list[str]:
        """What a call may return: frames are in `pixel_values`."""
        return [name for name in super().model_input_names if name not in self.video_processor.model_input_names]

    @property
    def windows(self) -> dict[int, tuple[int, int]]:
        """The windows that `pooling_window` can be, by the tokens they leave of a view: square ones and its own."""
        size, patch = get_size_dict(self.image_processor.size), as_pair(self.patch_size)
        windows = square_windows((size["height"] // patch[0], size["width"] // patch[1]))
        return windows | {self._tokens_per_view(size["height"], size["width"]): as_pair(self.pooling_window)}

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """Returns the placeholders of one image: one for each token that pooling leaves of each view."""
        num_views, _, height, width = image_inputs["pixel_values"][image_idx].shape
        return self.image_token * (num_views * self._tokens_per_view(height, width, kwargs.get("pooling_window")))

    def _process_images(self, images, pooling_window=None, **kwargs):
        """As upstream's; the window concerns the placeholders, and the pixels not."""
        processed = self.image_processor(images, **kwargs)
        numbers = range(len(processed["pixel_values"]))
        return processed, [self.replace_image_token(processed, i, pooling_window=pooling_window) for i in numbers]

    def get_text_with_replacements(
        self,
        text: list[str],
        images_replacements: list[str] = (),
        videos_replacements: list[str] = (),
        audio_replacements=(),
    ) -> tuple[list[str], list[list[dict]]]:
        """
        As upstream's, and expands query runs as well, which have the type `"query"`. The placeholders of images and of
        videos stay as they are where there are no replacements for them.
        """
        given = {"image": images_replacements, "video": videos_replacements}
        replacements = {name: iter(texts) for name, texts in given.items() if texts}
        replacements["query"] = repeat(self.query_token * self.num_query_tokens)
        tokens = {name: re.escape(getattr(self, f"{name}_token")) for name in replacements}
        pattern = re.compile("|".join(f"(?P<{name}>{token})" for name, token in tokens.items()))

        expanded_text, offsets = [], []
        for sample in text:
            expanded, end, sample_offsets = "", 0, []
            for match in pattern.finditer(sample):
                replacement = next(replacements[match.lastgroup])
                expanded += sample[end : match.start()]
                sample_offsets.append(
                    {
                        "type": match.lastgroup,
                        "span": match.span(),
                        "new_span": (len(expanded), len(expanded) + len(replacement)),
                        "text": match.group(),
                        "replacement": replacement,
                    }
                )
                expanded += replacement
                end = match.end()
            expanded_text.append(expanded + sample[end:])
            offsets.append(sample_offsets)
        return expanded_text, offsets

    def put_frames_among_images(self, inputs: BatchFeature, text: str | list[str] | None) -> None:
        """Moves the frames of videos into `pixel_values`, each where its placeholders stand."""
        frames = inputs.pop("pixel_values_videos")
        labels, cost = inputs.pop("frame_labels"), inputs.pop("tokens_per_frame")
        prompts = [text] if isinstance(text, str) else text or []
        if prompts:
            lengths = [len(ids) for ids in inputs["input_ids"]]
            videos = [prompt.count(self.video_token) for prompt in prompts]
            check_context(lengths, videos, labels, self.tokenizer, cost)
        if "pixel_values" in inputs:
            marks = re.compile(f"({re.escape(self.image_token)})|{re.escape(self.video_token)}")
            order = ["image" if mark[1] else "video" for mark in marks.finditer("\n".join(prompts))]
            frames = in_reading_order(order, inputs["pixel_values"], frames, [*map(len, labels)])
        inputs["pixel_values"] = frames

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs) -> str:
        """Returns the label and the placeholders of each frame of a video, a line each."""
        frame = self.image_token * video_inputs["tokens_per_frame"]
        return "\n".join(label + frame for label in video_inputs["frame_labels"][video_idx])

    def _process_videos(self, videos, pooling_window=None, **kwargs):
        """As upstream's, which copies the frames to count the videos, and does not always ask for metadata."""
        frame_limit = self._frame_limit(pooling_window, **kwargs)
        options = kwargs | {"return_metadata": True, "frame_limit": frame_limit}
        processed = self.video_processor(videos, **options)
        del processed["frames_per_video"]
        frames = {"pixel_values": processed["pixel_values_videos"]}
        frame = self.replace_image_token(frames, 0, pooling_window=pooling_window)
        processed["tokens_per_frame"] = frame.count(self.image_token)
        metadata = processed["video_metadata"]
        processed["frame_labels"] = [frame_labels(known.frames_indices, known.fps) for known in metadata]
        return processed, [self.replace_video_token(processed, index) for index in range(len(metadata))]

    def _frame_limit(self, pooling_window=None, size=None, image_hd=None, do_resize=None, **kwargs) -> int | None:
        """The most frames that the context can hold, to refuse more before they are decoded."""
        videos = self.video_processor
        context = known_context(self.tokenizer)
        if context is None or not (videos.do_resize if do_resize is None else do_resize):
            return None
        image_hd = videos.image_hd if image_hd is None else image_hd
        return context // self._tokens_per_image(size or videos.size, image_hd, pooling_window)

    def check_argument_for_proper_class(self, argument_name, argument):
        """As upstream's, which finds no class of video processors without torchvision."""
        if argument_name != "video_processor":
            return super().check_argument_for_proper_class(argument_name, argument)
        if not isinstance(argument, VideoProcessorMixin):
            raise TypeError(f"`video_processor` must be a video processor, got {type(argument).__name__}.")
        return VideoProcessorMixin


def listed(values):
    """A column of `datasets`, a series of pandas or an array of texts as a list; anything else as it is."""
    if isinstance(values, np.ndarray):
        return values.tolist() if values.dtype.kind in "UTO" else values
    if isinstance(values, (list, tuple, str, bytes, bytearray, dict, Image.Image, torch.Tensor)):
        return values
    return list(values) if hasattr(values, "__len__") and hasattr(values, "__iter__") else values


def frame_labels(frames_indices: Sequence[int], fps: float | None = None) -> list[str]:
    """
    Returns the label of each sampled frame of a video, which stand in it at `frames_indices`, counted from 0.

    With a frame rate, `fps`, a label counts the sampled frames and says when in the video each stands,
    `"Frame 2, 0:03: "`: minutes and seconds, rounded down (hours before them from the first hour on), and tenths of a
    second where whole seconds would write two times alike. Without one it says which of the frames that were passed it
    is, `"Frame 13: "`.
    """
    if not fps:
        return [f"Frame {index + 1}: " for index in frames_indices]
    times = [index / fps + ROUNDING_SECONDS for index in frames_indices]
    tenths = len({int(time) for time in times}) < len(set(times))
    return [f"Frame {number}, {_clock(time, tenths)}: " for number, time in enumerate(times, 1)]


def _clock(time: float, tenths: bool) -> str:
    minutes, seconds = divmod(int(time), 60)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return f"{clock}.{int(time * 10) % 10}" if tenths else clock


def in_reading_order(order: list[str], images, frames, frames_per_video: list[int]):
    """
    Merges images `(images, V, 3, height, width)` and the frames of all videos, `(frames, V, 3, height, width)`, both
    tensors or both arrays, into `(images and frames, V, 3, height, width)`. `order` says `"image"` or `"video"` for
    each placeholder in reading order; where it is empty, images come first.

    Raises:
        ValueError: if images and frames differ in views or size, as the model takes them in one tensor.
    """
    if images.shape[1:] != frames.shape[1:]:
        (image_views, *_, image_height, image_width), (views, *_, height, width) = images.shape[1:], frames.shape[1:]
        raise ValueError(
            f"An image is {image_views} views of {image_height} x {image_width} pixels, a video frame {views} of "
            f"{height} x {width}, but both must be the same: pass `image_hd=False` (or True) and one `size` for both."
        )
    frame_ends = np.cumsum([0, *frames_per_video]).tolist()
    clips = iter([frames[start:end] for start, end in pairwise(frame_ends)])
    pictures = iter([images[index : index + 1] for index in range(len(images))])
    pieces = [next(clips if kind == "video" else pictures) for kind in order] or [images, frames]
    return torch.cat(pieces) if isinstance(frames, torch.Tensor) else np.concatenate(pieces)


def known_context(tokenizer) -> int | None:
    """Returns the longest sequence of the tokenizer's model; None if it does not know."""
    return tokenizer.model_max_length if tokenizer.model_max_length < UNKNOWN_CONTEXT else None


def check_context(
    lengths: list[int], videos_of_prompts: list[int], labels: list[list[str]], tokenizer, tokens_per_frame: int
) -> None:
    """
    Refuses prompts with videos, of `lengths` tokens each, padding included, that are longer than the tokenizer's
    context. A frame takes `tokens_per_frame` and its label, of which there is a list for each video.

    Raises:
        ValueError: saying how many frames there are and how many fit.
    """
    context = known_context(tokenizer)
    videos = iter(labels)
    for length, num_videos in zip(lengths, videos_of_prompts, strict=True):
        frames = [label for _ in range(num_videos) for label in next(videos)]
        if context is None or not frames or length <= context:
            continue
        costs = sorted(tokens_per_frame + len(tokenizer.tokenize(f"{label}\n")) for label in frames)
        surplus = 1 + int(np.searchsorted(np.cumsum(costs), length - context))  # at most so many frames too many
        fit = max(len(frames) - surplus, 0)
        advice = f"pass `num_frames={fit // num_videos}` or a smaller `fps`" if fit >= num_videos else "shorten it"
        raise ValueError(
            f"The prompt has {len(frames)} video frames of up to {costs[-1]} tokens each and is {length} tokens long, "
            f"but the model's context is {context}: beside the rest of the prompt {fit} frames fit, so {advice}."
        )
