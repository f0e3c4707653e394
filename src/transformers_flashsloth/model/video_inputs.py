"""Whatever may be passed as a video, to its sampled frames and what is known about it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageSequence
from transformers.utils import is_av_available, is_cv2_available, is_decord_available, is_torchcodec_available
from transformers.video_utils import VideoMetadata, load_video

from .image_inputs import MAX_VIDEO_BYTES, locate, read_images

# Those of transformers that need no torchvision, the surest count of frames first.
DECODERS = {
    "torchcodec": is_torchcodec_available,
    "decord": is_decord_available,
    "pyav": is_av_available,
    "opencv": is_cv2_available,
}
ANIMATIONS = ("GIF", "WEBP", "PNG")
STILL_IMAGES = ("JPEG", "BMP", "TIFF")

SampleFrames = Callable[[VideoMetadata], np.ndarray]


class SamplingError(ValueError):
    """The frames asked for cannot be had from a video, whatever decodes it."""


class Clip(NamedTuple):
    """
    A sampled video.

    Attributes:
        frames (`list`): PIL images, or arrays or tensors as they were passed.
        metadata (`VideoMetadata`): `frames_indices` says where in the video the frames stand.
    """

    frames: list
    metadata: VideoMetadata


def list_videos(videos) -> tuple[list, list[int] | None]:
    """
    Tells videos apart: a video, a list of videos, or a list with a list of videos for each text. A video is a path,
    URL, `data:` URI, base64 string or encoded bytes, an array or tensor with 4 dimensions, or a list of frames (PIL
    images, arrays or tensors). In a list for each text it can also be a list of paths of frames.

    Returns the videos in reading order and, where there is a list for each text, how many each text has. Raises
    ValueError for anything else.
    """
    if _is_video(videos):
        return [videos], None
    if isinstance(videos, (np.ndarray, torch.Tensor)) and videos.ndim == 5:
        return list(videos), None
    if isinstance(videos, (list, tuple)):
        if all(_is_video(video) for video in videos):
            return list(videos), None
        if all(isinstance(row, (list, tuple)) for row in videos):
            flat = [video for row in videos for video in row]
            if all(_is_video(video) or isinstance(video, (list, tuple)) for video in flat):
                return flat, [len(row) for row in videos]
    raise ValueError(
        "`videos` must be a video, a list of videos, or a list with a list of videos for each text; a video is a path, "
        "URL or encoded bytes, a list of frames, or an array of frames with 4 dimensions."
    )


def _is_video(source) -> bool:
    if isinstance(source, (list, tuple)):
        return bool(source) and all(_is_frame(frame) for frame in source)
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return source.ndim == 4
    return isinstance(source, (str, os.PathLike, bytes, bytearray))


def _is_frame(source) -> bool:
    return isinstance(source, Image.Image) or (isinstance(source, (np.ndarray, torch.Tensor)) and source.ndim in (2, 3))


def read_video(video, sample: SampleFrames, metadata: dict | VideoMetadata | None = None, name: str = "video") -> Clip:
    """
    Reads the sampled frames of a video that [`list_videos`] returned, and no others. `sample` returns the indices of
    the frames to take, given what is known about the video. `metadata` says that, such as `fps`, of frames that are
    passed decoded or as paths, with `frames_indices` if they are a choice from a longer video; a file knows better.
    Messages call the video `name`.

    Raises:
        ValueError: naming the video that cannot be read, what is wrong with it and how to mend it.
        ImportError: if nothing that decodes video files is installed.
    """
    if not isinstance(video, (str, os.PathLike, bytes, bytearray)):
        return _choose(video, sample, metadata, name)
    if isinstance(video, (str, os.PathLike)):
        name = f"{name} ({str(video)[:100]!r})"
    with _as_file(video, name) as path:
        return _read_animation(path, sample, name) or _decode(path, sample, name)


def _choose(frames, sample: SampleFrames, metadata: dict | VideoMetadata | None, name: str) -> Clip:
    if len(frames) == 0:
        raise ValueError(f"{name} has no frames.")
    known = VideoMetadata(**{"total_num_frames": len(frames)} | dict(metadata or {}))
    numbers = known.frames_indices
    if numbers is None:
        numbers, passed = range(len(frames)), VideoMetadata(len(frames), fps=known.fps)
    elif len(numbers) != len(frames):
        raise ValueError(f"{name} has {len(frames)} frames, but `frames_indices` of its metadata are {len(numbers)}.")
    else:
        passed = VideoMetadata(len(frames), fps=known.sampled_fps if known.fps else None)
    chosen = [int(index) for index in sample(passed)]
    known.frames_indices = [int(numbers[index]) for index in chosen]
    return Clip(read_images([frames[index] for index in chosen], name), known)


@contextmanager
def _as_file(source, name: str) -> Iterator[str]:
    located = locate(source, name, MAX_VIDEO_BYTES)
    if not isinstance(located, BytesIO):
        yield str(located)
        return
    with TemporaryDirectory() as directory:  # not every decoder reads from memory
        path = Path(directory, "video")
        path.write_bytes(located.getbuffer())
        yield str(path)


def _read_animation(path: str, sample: SampleFrames, name: str) -> Clip | None:
    """Reads an animated GIF, WebP or PNG with Pillow; None for a file that Pillow does not know."""
    try:
        image = Image.open(path, formats=ANIMATIONS + STILL_IMAGES)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large to be safe ({error}).") from error
    except Exception:  # no image, so possibly a video
        return None
    with image:
        count = getattr(image, "n_frames", 1)
        if count == 1 or image.format in STILL_IMAGES:
            raise ValueError(f"{name} is a still image, which belongs to `images=` or a part of {{'type': 'image'}}.")
        try:
            milliseconds = 0
            for frame in ImageSequence.Iterator(image):
                frame.load()  # WebP frames know their duration only then
                milliseconds += frame.info.get("duration", 0)
            fps = 1000 * count / milliseconds if milliseconds else None
            metadata = VideoMetadata(
                count, fps=fps, width=image.width, height=image.height, duration=fps and count / fps
            )
            metadata.frames_indices = [int(index) for index in sample(metadata)]
            frames = []
            for index in metadata.frames_indices:
                image.seek(index)
                frames.append(image.convert("RGB"))
        except SamplingError as error:
            raise SamplingError(f"{name}: {error}") from error
        except Exception as error:  # decoders of damaged files raise whatever they like
            raise ValueError(f"{name} cannot be decoded ({error}): it is damaged or cut short.") from error
    return Clip(frames, metadata)


def _decode(path: str, sample: SampleFrames, name: str) -> Clip:
    """Decodes a video file with the first of the installed decoders that can."""
    installed = [decoder for decoder, is_installed in DECODERS.items() if is_installed()]
    if not installed:
        raise ImportError(
            f"{name} needs a decoder of video files, and none is installed: `pip install av` (or torchcodec, decord or "
            "opencv-python). Decoded frames and animated GIF, WebP and PNG files need none."
        )
    problems = []
    for decoder in installed:

        def sample_counted(metadata, decoder=decoder, **kwargs):
            if metadata.total_num_frames < 1 and decoder == "pyav":
                metadata.total_num_frames = _count_packets(path)
            if metadata.total_num_frames < 1:
                raise ValueError("it does not say how many frames it has")
            metadata.fps = metadata.fps or None
            metadata.duration = metadata.duration or (metadata.fps and metadata.total_num_frames / metadata.fps)
            return sample(metadata)

        try:
            frames, metadata = load_video(path, backend=decoder, sample_indices_fn=sample_counted)
            if len(frames) == 0:
                raise ValueError("it has no frames")
        except SamplingError as error:
            raise SamplingError(f"{name}: {error}") from error
        except Exception as error:  # decoders raise whatever they like
            problems.append(f"{decoder}: {error}")
            continue
        if isinstance(frames, torch.Tensor):
            frames = frames.permute(0, 2, 3, 1).cpu().numpy()  # torchcodec's are channels first
        # A file cut short gives fewer frames than it says.
        metadata.frames_indices = [int(index) for index in metadata.frames_indices[: len(frames)]]
        return Clip([Image.fromarray(frame) for frame in frames], metadata)
    raise ValueError(f"{name} cannot be decoded ({'; '.join(problems)}): it is empty, damaged or no video.")


def _count_packets(path: str) -> int:
    """Counts the frames of a WebM or Matroska file, which does not say; by name, as PyAV is optional."""
    with import_module("av").open(path) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))
