"""Videos in every form that they are passed in: frames, paths of frames, animations and video files."""

import base64
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.odd_server import odd_website
from transformers_flashsloth.model import video_inputs
from transformers_flashsloth.model.video_inputs import list_videos, read_video

COLOURS = [(0, 0, 0), (250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250), (250, 0, 250), (250,) * 3]
FRAMES = [Image.new("RGB", (64, 48), colour) for colour in COLOURS]
ARRAY = np.stack([np.asarray(frame) for frame in FRAMES])


def every(metadata):
    return np.arange(metadata.total_num_frames)


def ends(metadata):
    return np.array([0, metadata.total_num_frames - 1])


def colours(clip) -> list[tuple[int, int, int]]:
    """The colours of the frames, as far as lossy codecs keep them."""
    return [tuple(round(value / 250) * 250 for value in frame.getpixel((32, 24))) for frame in clip.frames]


@pytest.mark.parametrize(
    ("videos", "count", "rows"),
    [
        ("a.mp4", 1, None),
        (Path("a.mp4"), 1, None),
        (b"bytes", 1, None),
        (ARRAY, 1, None),
        (torch.from_numpy(ARRAY), 1, None),
        (ARRAY[None], 1, None),
        (FRAMES, 1, None),
        (list(ARRAY), 1, None),
        (["a.mp4", "b.mp4"], 2, None),
        (["a.mp4", FRAMES, ARRAY], 3, None),
        ([FRAMES, FRAMES[:2]], 2, None),
        ([["a.mp4"], [], ["b.mp4", ARRAY]], 3, [1, 0, 2]),
        ([[FRAMES], [FRAMES, FRAMES]], 3, [1, 2]),
        ([[["1.png", "2.png"]]], 1, [1]),
        ([], 0, None),
        ([[], []], 0, [0, 0]),
    ],
)
def test_videos_are_told_apart(videos, count, rows):
    listed, listed_rows = list_videos(videos)
    assert (len(listed), listed_rows) == (count, rows)


@pytest.mark.parametrize("videos", [3, FRAMES[0], ARRAY[0], ["a.mp4", 3], [["a.mp4"], "b.mp4"], [[3]]])
def test_what_is_no_video_is_refused(videos):
    with pytest.raises(ValueError, match="`videos` must be a video, a list of videos"):
        list_videos(videos)


def test_decoded_frames_keep_what_is_known_about_them():
    clip = read_video(FRAMES, ends, {"fps": 4})
    assert clip.frames == [FRAMES[0], FRAMES[-1]]
    assert (clip.metadata.fps, clip.metadata.frames_indices, clip.metadata.total_num_frames) == (4, [0, 7], 8)

    indices = [10 * index for index in range(8)]
    clip = read_video(FRAMES, ends, {"fps": 4, "total_num_frames": 80, "frames_indices": indices})
    assert (clip.metadata.frames_indices, clip.metadata.total_num_frames) == ([0, 70], 80)


def test_a_choice_of_frames_is_sampled_at_its_own_rate():
    seen = []
    metadata = {"fps": 4, "total_num_frames": 80, "frames_indices": list(range(0, 80, 10))}
    read_video(FRAMES, lambda metadata: seen.append(metadata) or every(metadata), metadata)
    assert (seen[0].total_num_frames, seen[0].fps) == (8, pytest.approx(0.4))


def test_only_the_sampled_of_the_paths_of_frames_are_read(tmp_path):
    paths = [str(tmp_path / f"{index}.png") for index in range(8)]
    FRAMES[0].save(paths[0])
    FRAMES[7].save(paths[7])
    assert colours(read_video(paths, ends)) == [COLOURS[0], COLOURS[7]]
    with pytest.raises(ValueError, match=r"videos\[1\]\[0\] .*1\.png'\) is no file"):
        read_video(paths[1:], ends, name="videos[1]")


@pytest.mark.parametrize(
    ("video", "metadata", "message"),
    [
        ([], None, "video has no frames"),
        (ARRAY[:0], None, "video has no frames"),
        (FRAMES, {"frames_indices": [1, 2]}, "8 frames, but `frames_indices` of its metadata are 2"),
    ],
)
def test_bad_frames_are_refused(video, metadata, message):
    with pytest.raises(ValueError, match=message):
        read_video(video, every, metadata)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations_need_no_decoder(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(video_inputs, "DECODERS", {})
    path = tmp_path / f"clip.{suffix}"
    FRAMES[0].save(path, save_all=True, append_images=FRAMES[1:], duration=500, loop=0, lossless=True)

    for source in (path, str(path), path.read_bytes(), base64.b64encode(path.read_bytes()).decode()):
        clip = read_video(source, every)
        assert colours(clip) == COLOURS
        assert (clip.metadata.fps, clip.metadata.total_num_frames) == (2, 8)
    assert colours(read_video(path, ends)) == [COLOURS[0], COLOURS[7]]


def test_still_images_and_missing_files_are_named(tmp_path):
    FRAMES[0].save(tmp_path / "still.png")
    with pytest.raises(ValueError, match=r"videos\[0\] \('.*still.png'\) is a still image, which belongs to `images=`"):
        read_video(tmp_path / "still.png", every, name="videos[0]")
    with pytest.raises(ValueError, match=r"'.*nothing.mp4'\) is no file"):
        read_video(str(tmp_path / "nothing.mp4"), every)


def test_a_missing_decoder_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(video_inputs, "DECODERS", {"pyav": lambda: False})
    (tmp_path / "clip.mp4").write_bytes(b"any")
    with pytest.raises(ImportError, match=r"clip.mp4'\) needs a decoder of video files.*`pip install av`"):
        read_video(tmp_path / "clip.mp4", every)


# Video files, by the decoders that are installed


def write_video(path: Path, repeats: int = 5) -> None:
    """Writes each colour `repeats` times, 10 frames a second."""
    if importlib.util.find_spec("av"):
        import av

        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for frame in FRAMES:
                for _ in range(repeats):
                    container.mux(stream.encode(av.VideoFrame.from_image(frame)))
            container.mux(stream.encode())
        return
    import cv2

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    for frame in FRAMES:
        for _ in range(repeats):
            writer.write(np.asarray(frame)[..., ::-1].copy())
    writer.release()


MODULES = {"torchcodec": "torchcodec", "decord": "decord", "pyav": "av", "opencv": "cv2"}


@pytest.fixture(params=["pyav", "opencv", "decord", "torchcodec"])
def decoder(request, monkeypatch):
    pytest.importorskip(MODULES[request.param])
    monkeypatch.setattr(video_inputs, "DECODERS", {request.param: lambda: True})
    return request.param


@pytest.fixture
def video_file(tmp_path):
    if not (importlib.util.find_spec("av") or importlib.util.find_spec("cv2")):
        pytest.skip("nothing that writes video files is installed (av or cv2)")
    write_video(tmp_path / "clip.mp4")
    return tmp_path / "clip.mp4"


def test_sampled_frames_of_a_file(video_file, decoder):
    middles = [2 + 5 * index for index in range(8)]
    for source in (video_file, video_file.read_bytes()):
        clip = read_video(source, lambda metadata: np.array(middles))
        assert colours(clip) == COLOURS
        assert (clip.metadata.fps, clip.metadata.total_num_frames) == (10, 40)
        assert clip.metadata.frames_indices == middles


def test_a_file_that_does_not_say_how_many_frames_it_has(tmp_path, decoder):
    pytest.importorskip("av")
    write_video(tmp_path / "clip.mkv")
    clip = read_video(tmp_path / "clip.mkv", every)
    assert (clip.metadata.total_num_frames, len(clip.frames)) == (40, 40)
    assert clip.metadata.duration == pytest.approx(4)


@pytest.mark.parametrize("damage", [lambda encoded: b"", lambda encoded: b"not a video", lambda encoded: encoded[:100]])
def test_damaged_files_are_named(damage, video_file, decoder):
    video_file.write_bytes(damage(video_file.read_bytes()))
    with pytest.raises(ValueError, match=rf"clip.mp4'\) cannot be decoded \({decoder}: .*: it is empty, damaged or no"):
        read_video(video_file, every)


def test_the_next_decoder_tries_where_one_fails(video_file, decoder, monkeypatch):
    monkeypatch.setattr(video_inputs, "DECODERS", {"broken": lambda: True, decoder: lambda: True})
    load_video = video_inputs.load_video

    def load(path, backend, **kwargs):
        if backend == "broken":
            raise RuntimeError("no codec")
        return load_video(path, backend=backend, **kwargs)

    monkeypatch.setattr(video_inputs, "load_video", load)
    assert len(read_video(video_file, ends).frames) == 2


def test_videos_over_odd_connections(tmp_path):
    clip = tmp_path / "clip.gif"
    frames = [Image.new("RGB", (8, 8), (index * 40, 0, 0)) for index in range(4)]
    frames[0].save(clip, save_all=True, append_images=frames[1:])
    with odd_website(clip.read_bytes()) as (address, _):
        read = read_video(f"{address}/a cl\u00efp.gif", lambda metadata: np.arange(metadata.total_num_frames))
        assert len(read.frames) == 4
        with pytest.raises(ValueError, match="cannot be downloaded: the connection was cut"):
            read_video(f"{address}/cut", lambda metadata: np.arange(1))
        encoded = base64.encodebytes(clip.read_bytes()).decode()
        for source in (encoded, f"data:image/gif;base64,{encoded}"):
            assert len(read_video(source, lambda metadata: np.arange(metadata.total_num_frames)).frames) == 4
