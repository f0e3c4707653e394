"""Which frames of a video are taken, their pixels, and the video processor in files."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.video_utils import VideoMetadata

from tests.phi_tokenizer import build_phi_tokenizer
from transformers_flashsloth import FlashSlothImageProcessor, FlashSlothProcessor, FlashSlothVideoProcessor

SIZE = {"height": 42, "width": 42}


@pytest.fixture
def video_processor():
    return FlashSlothVideoProcessor(size=SIZE)


def clip(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 30, 50, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("total", "fps", "options", "expected"),
    [
        (100, 25, {"num_frames": 5}, [0, 25, 50, 74, 99]),
        (4, 25, {"num_frames": 2}, [0, 3]),
        (100, 25, {"num_frames": 1}, [50]),
        (1, 25, {"num_frames": 1}, [0]),
        (3, 25, {"num_frames": 8}, [0, 1, 2]),
        (3, None, {}, [0, 1, 2]),
        (100, 25, {"fps": 1}, [0, 25, 50, 75]),
        (101, 25, {"fps": 1}, [0, 25, 50, 75, 100]),
        (10, 2.5, {"fps": 1}, [0, 3, 5, 8]),
        (4, 2, {"fps": 30}, [0, 1, 2, 3]),
        (100, 25, {"fps": 0.01}, [0]),
        (100, 25, {"fps": 1, "num_frames": 3}, [0, 50, 99]),
        (100, 25, {"fps": 1, "num_frames": 4}, [0, 25, 50, 75]),
    ],
)
def test_frames_are_spread_from_the_first_to_the_last(total, fps, options, expected, video_processor):
    assert video_processor.sample_frames(VideoMetadata(total, fps=fps), **options).tolist() == expected


def test_a_frame_rate_needs_that_of_the_video(video_processor):
    with pytest.raises(ValueError, match="pass `video_metadata` with its `fps`"):
        video_processor(clip(4), fps=1)


def test_frames_have_the_pixels_of_images(video_processor):
    image_processor = FlashSlothImageProcessor(size=SIZE)
    frames = clip(3)
    images = [Image.fromarray(frame) for frame in frames]
    for options in ({}, {"image_hd": True}, {"size": {"height": 28, "width": 56}}, {"do_normalize": False}):
        expected = image_processor(images, return_tensors="pt", **options)["pixel_values"]
        for video in (
            frames,
            list(frames),
            images,
            torch.from_numpy(frames),
            torch.from_numpy(frames).permute(0, 3, 1, 2),
            torch.from_numpy(frames)[None],
            [[frames]],
        ):
            outputs = video_processor(video, return_tensors="pt", **options)
            assert torch.equal(outputs["pixel_values_videos"], expected)
            assert outputs["frames_per_video"].tolist() == [3]


def test_eight_frames_unless_told_otherwise(video_processor):
    video = clip(20)
    metadata = {"fps": 2}

    def count(**options):
        return video_processor(video, video_metadata=metadata, **options)["frames_per_video"].tolist()

    assert count() == [8]
    assert count(num_frames=12) == [12]
    assert count(num_frames=None) == [20]
    assert count(fps=2) == [20]
    assert count(fps=2, num_frames=12) == [12]
    assert count(do_sample_frames=False) == [20]


def test_videos_of_different_lengths(video_processor):
    outputs = video_processor([clip(3), clip(20, 1)], return_tensors="pt", return_metadata=True, num_frames=4)

    assert outputs["pixel_values_videos"].shape == (7, 1, 3, 42, 42)
    assert outputs["frames_per_video"].tolist() == [3, 4]
    assert [known.frames_indices for known in outputs["video_metadata"]] == [[0, 1, 2], [0, 6, 13, 19]]
    alone = video_processor(clip(20, 1), return_tensors="pt", num_frames=4)["pixel_values_videos"]
    assert torch.equal(outputs["pixel_values_videos"][3:], alone)


def test_frames_beyond_a_limit_are_refused_before_they_are_read(video_processor):
    paths = [[[f"no-such-{index}.png" for index in range(30)]]]
    with pytest.raises(ValueError, match="30 of its 30 frames were asked for, but only 25 fit"):
        video_processor(paths, num_frames=None, frame_limit=25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "num_frames"),
        ({"fps": -1}, "fps"),
        ({"video_metadata": [{"fps": 1}, {"fps": 1}]}, "1 videos, but `video_metadata` are 2"),
    ],
)
def test_options_are_checked(options, message, video_processor):
    with pytest.raises(ValueError, match=message):
        video_processor(clip(4), **options)


def test_no_videos_are_refused(video_processor):
    with pytest.raises(ValueError, match="no videos to process"):
        video_processor([])


def test_saved_and_loaded_alone_and_with_the_processor(tmp_path):
    video_processor = FlashSlothVideoProcessor(size=SIZE, num_frames=5, fps=2.0)
    video_processor.save_pretrained(tmp_path / "alone")
    image_processor = FlashSlothImageProcessor(size=SIZE)
    FlashSlothProcessor(image_processor, build_phi_tokenizer(), video_processor).save_pretrained(tmp_path / "with")

    for loaded in (
        AutoVideoProcessor.from_pretrained(tmp_path / "alone"),
        AutoVideoProcessor.from_pretrained(tmp_path / "with"),
        FlashSlothProcessor.from_pretrained(tmp_path / "with").video_processor,
    ):
        assert type(loaded) is FlashSlothVideoProcessor
        assert (loaded.num_frames, loaded.fps, dict(loaded.size)) == (5, 2.0, dict(video_processor.size))
