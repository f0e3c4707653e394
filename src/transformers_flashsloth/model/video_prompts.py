"""Frames in prompts: what is said before each, which of them are whose, their place among images, and their budget."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

# A tokenizer that does not know its model's context says a number beyond any.
UNKNOWN_CONTEXT = 10**9
# Times are quotients of frame numbers and rates; this keeps 2.9999999 s from being written as 2 s.
ROUNDING_SECONDS = 1e-6


def frame_labels(frames_indices: Sequence[int], fps: float | None = None) -> list[str]:
    """
    Returns the label of each sampled frame of a video.

    With a frame rate a label counts the sampled frames and says when in the video each stands, `"Frame 2, 0:03: "`:
    minutes and seconds, rounded down (hours before them from the first hour on), and tenths of a second where whole
    seconds would write two times alike. Without one it says which of the frames that were passed it is, `"Frame 13: "`.

    Args:
        frames_indices (`Sequence[int]`): where in the video each sampled frame stands, counted from 0.
        fps (`float`, *optional*): frames of the video a second.
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
    Merges the pixels of images and of video frames.

    Args:
        order (`list[str]`): `"image"` or `"video"` for each placeholder in reading order; empty for images first.
        images (`torch.Tensor` or `np.ndarray`): `(images, V, 3, height, width)`.
        frames (`torch.Tensor` or `np.ndarray`): of all videos in order, `(frames, V, 3, height, width)`.
        frames_per_video (`list[int]`): how many of them each video has.

    Returns:
        `(images and frames, V, 3, height, width)`.

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
    Refuses prompts with videos that are longer than the context.

    Args:
        lengths (`list[int]`): tokens of each prompt, padding included.
        videos_of_prompts (`list[int]`): videos of each prompt.
        labels (`list[list[str]]`): those of the frames of each video.
        tokenizer: knows the context.
        tokens_per_frame (`int`): without the label.

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
