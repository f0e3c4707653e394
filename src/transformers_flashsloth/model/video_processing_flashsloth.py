"""Videos to views: frames sampled over the time of a video, each read as an image."""

from functools import partial

import numpy as np
from huggingface_hub.dataclasses import validate_typed_dict
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import SizeDict, validate_kwargs
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from .image_inputs import flatten
from .image_processing_flashsloth import FlashSlothImageProcessor
from .video_inputs import Clip, SamplingError, list_videos, read_video

# What a frame is read with, as an image is.
PIXEL_OPTIONS = (
    "do_convert_rgb", "do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean",
    "image_std", "image_hd", "input_data_format",
)  # fmt: skip


class FlashSlothVideoProcessorKwargs(VideosKwargs, total=False):
    """
    Options of the video processor beyond transformers' own.

    Attributes:
        image_hd (`bool`): whether a frame becomes five views instead of one.
        frame_limit (`int`): most frames that a video may give; a video that gives more is refused, not cut.
    """

    image_hd: bool | None
    frame_limit: int | None


class FlashSlothVideoProcessor(BaseVideoProcessor):
    """
    Samples the frames of videos and turns each into views as [`FlashSlothImageProcessor`] does, so that a picture has
    the same pixels in a video and alone. Upstream's base class works on torchvision; only its options, loading and
    saving are used here, so that videos need no torchvision.

    A video is a path, URL, `data:` URI, base64 string or encoded bytes, an array or tensor (frames first), or a list of
    frames. Files are decoded with torchcodec, decord, PyAV or OpenCV, whichever is installed and can, and animated GIF,
    WebP and PNG with Pillow. Times of frames are their numbers divided by the mean frame rate.

    Args:
        num_frames (`int`, defaults to 8):
            Most frames that are taken of a video: spread evenly from its first to its last frame, both included (frame
            `round(i * (F - 1) / (n - 1))` of F for the i-th of n); a single one is the middle frame. A video with fewer
            frames gives all of them. `None` in a call means no such bound.
        fps (`float`, *optional*):
            Frames taken a second, from the first frame on. Given in a call without `num_frames` it is not bounded by
            that; with both, `num_frames` spread evenly are taken where `fps` would give more.
        do_sample_frames (`bool`, defaults to `True`):
            Whether frames are sampled; otherwise all are taken.
        image_hd (`bool`, defaults to `False`):
            Whether a frame becomes five views (HD) instead of one.
        size, do_convert_rgb, do_resize, resample, do_rescale, rescale_factor, do_normalize, image_mean, image_std:
            As in [`FlashSlothImageProcessor`].

    Returns (from a call):
        [`BatchFeature`] with `pixel_values_videos` (`float32`, `(frames, V, 3, height, width)`, the frames of all
        videos in order), `frames_per_video` (`int`, `(videos,)`) and, with `return_metadata=True`, `video_metadata`, a
        list of transformers' `VideoMetadata`.

    Raises:
        ValueError: for an input that is no video, or frames that cannot be had, naming it and how to mend it.
        ImportError: for a video file where no decoder is installed.
    """

    valid_kwargs = FlashSlothVideoProcessorKwargs
    model_input_names = ["pixel_values_videos"]

    num_frames = 8
    do_sample_frames = True
    image_hd = False
    size = FlashSlothImageProcessor.size
    resample = FlashSlothImageProcessor.resample
    image_mean = FlashSlothImageProcessor.image_mean
    image_std = FlashSlothImageProcessor.image_std
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True

    def __init__(self, **kwargs: Unpack[FlashSlothVideoProcessorKwargs]):
        super().__init__(**kwargs)

    @classmethod
    def like(cls, image_processor: FlashSlothImageProcessor) -> "FlashSlothVideoProcessor":
        """Returns a video processor that reads frames as `image_processor` reads images, one view each."""
        options = {name: getattr(image_processor, name, None) for name in PIXEL_OPTIONS}
        return cls(**options | {"image_hd": False, "size": dict(image_processor.size)})

    def sample_frames(
        self,
        metadata: VideoMetadata,
        num_frames: int | None = None,
        fps: float | None = None,
        frame_limit: int | None = None,
        **kwargs,
    ) -> np.ndarray:
        """
        Returns the indices of the frames to take of a video, by the rule in the docstring of the class: `num_frames` at
        most, `fps` a second, without either all.

        Raises:
            ValueError: for `fps` where `metadata` knows no frame rate, or for more frames than `frame_limit`.
        """
        if (num_frames is not None and num_frames < 1) or (fps is not None and fps <= 0):
            raise SamplingError(f"`num_frames` must be at least 1 and `fps` above 0, got {num_frames} and {fps}.")
        total = metadata.total_num_frames
        indices = np.arange(total)
        if fps is not None:
            if not metadata.fps:
                raise SamplingError(
                    "`fps` needs to know how many frames a second the video has: pass `video_metadata` with its `fps`, "
                    "or `num_frames` instead."
                )
            step = max(metadata.fps / fps, 1)
            count = int((total - 1) / step + 1e-6) + 1
            indices = np.floor(np.arange(count) * step + 0.5).astype(int).clip(max=total - 1)
        if num_frames is not None and num_frames < len(indices):
            steps = np.arange(num_frames) / (num_frames - 1) if num_frames > 1 else np.array([0.5])
            indices = np.floor(steps * (total - 1) + 0.5).astype(int)
        if frame_limit is not None and len(indices) > frame_limit:
            raise SamplingError(
                f"{len(indices)} of its {total} frames were asked for, but only {frame_limit} fit into the model's "
                f"context. Pass `num_frames={frame_limit}` or fewer, or a smaller `fps`."
            )
        return indices

    def fetch_videos(self, video_url_or_urls, sample_indices_fn=None, video_metadata=None) -> list[Clip]:
        """
        Reads the sampled frames of a video, or of videos in lists as [`FlashSlothProcessor`] takes them.
        `sample_indices_fn` takes `VideoMetadata` and returns indices of frames, by default as [`sample_frames`] with
        the options of this processor; `video_metadata` are what is known about decoded frames, one for each video.
        """
        videos, _ = list_videos(video_url_or_urls)
        metadata = [None] * len(videos) if video_metadata is None else flatten(video_metadata)
        if len(metadata) != len(videos):
            raise ValueError(f"There are {len(videos)} videos, but `video_metadata` are {len(metadata)}: one for each.")
        sample = sample_indices_fn or partial(self.sample_frames, num_frames=self.num_frames, fps=self.fps)
        return [
            read_video(video, sample, known, f"videos[{index}]")
            for index, (video, known) in enumerate(zip(videos, metadata, strict=True))
        ]

    def preprocess(self, videos, **kwargs) -> BatchFeature:
        """Samples videos and makes their views; see the docstring of the class."""
        names = self.valid_kwargs.__annotations__
        validate_kwargs(captured_kwargs=kwargs.keys(), valid_processor_keys=[*names])
        validate_typed_dict(self.valid_kwargs, kwargs)
        if kwargs.get("fps") is not None:
            kwargs.setdefault("num_frames", None)
        elif kwargs.get("num_frames") is not None:
            kwargs.setdefault("fps", None)
        options = {name: kwargs.get(name, getattr(self, name, None)) for name in names}

        sampling = ("num_frames", "fps", "frame_limit") if options["do_sample_frames"] else ("frame_limit",)
        sample = partial(self.sample_frames, **{name: options[name] for name in sampling})
        clips = self.fetch_videos(videos, sample, options["video_metadata"])
        frames = [frame for clip in clips for frame in clip.frames]
        if not frames:
            raise ValueError("There are no videos to process: leave `videos` out for a text without videos.")
        pixel_options = {name: options[name] for name in PIXEL_OPTIONS if options[name] is not None}
        if isinstance(options["size"], SizeDict):
            pixel_options["size"] = dict(options["size"])
        try:
            pixels = FlashSlothImageProcessor()(frames, **pixel_options)["pixel_values"]  # (frames, V, 3, H, W)
        except ValueError as error:
            raise ValueError(f"The frames of the videos cannot be read: {error}") from error
        data = {"pixel_values_videos": pixels, "frames_per_video": np.array([len(clip.frames) for clip in clips])}
        output = BatchFeature(data, tensor_type=options["return_tensors"])
        if options["return_metadata"]:
            output["video_metadata"] = [clip.metadata for clip in clips]
        return output


__all__ = ["FlashSlothVideoProcessor"]
