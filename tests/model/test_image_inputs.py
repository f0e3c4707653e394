"""Whatever may be passed as an image becomes the pixels it holds, or an error that names it."""

import base64
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from tests.model.test_image_processing_flashsloth import IMAGES, SMALL, grey_levels, random_image
from tests.odd_server import odd_website
from transformers_flashsloth.model.image_inputs import ascii_url, locate, read_images
from transformers_flashsloth.model.image_processing_flashsloth import FlashSlothImageProcessor


@pytest.fixture(scope="module")
def processor():
    return FlashSlothImageProcessor()


def png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


# What is an image


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "La", "RGBa"]
)
def test_modes_convert_as_pillow_converts_them(processor, mode):
    if mode in ("P", "PA"):
        image = random_image(6, 6).quantize(16).convert(mode)
    elif mode in ("La", "RGBa"):
        image = random_image(6, 6, "RGBA").convert(mode.upper()).convert(mode)
    elif mode == "LAB":
        image = Image.frombytes("LAB", (6, 6), random_image(6, 6).tobytes())
    else:
        image = random_image(6, 6, "RGBA").convert(mode)
    convertible = image.convert(mode.upper()) if mode in ("La", "RGBa") else image
    views = processor(image, size=SMALL, return_tensors="np").pixel_values[0, 0]
    assert np.array_equal(grey_levels(views).transpose(1, 2, 0), np.asarray(convertible.convert("RGB")))


def test_a_transparent_palette_loses_its_transparency(processor):
    image = random_image(6, 6).quantize(4)
    image.info["transparency"] = 0
    file = BytesIO(png(image))
    views = processor(file.getvalue(), size=SMALL, return_tensors="np").pixel_values[0, 0]
    assert np.array_equal(grey_levels(views).transpose(1, 2, 0), np.asarray(image.convert("RGB")))


RAMP = np.linspace(0, 65535, 36).round().astype(np.uint16).reshape(6, 6)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(RAMP),
        Image.fromarray(RAMP.astype(">u2")),
        Image.fromarray(RAMP.astype(np.int32)),
        png(Image.fromarray(RAMP)),
        RAMP,
        RAMP[..., None].repeat(3, 2),
        torch.from_numpy(RAMP.astype(np.int32)),
        Image.fromarray((RAMP / 65535).astype(np.float32)),
    ],
    ids=["I;16", "I;16B", "I", "PNG", "uint16", "uint16 RGB", "tensor", "F"],
)
def test_16_bits_and_floats_are_scaled_and_not_cut(processor, image):
    views = processor(image, size=SMALL, return_tensors="np").pixel_values[0, 0]
    expected = np.round(RAMP / 257).astype(np.uint8)
    assert np.array_equal(grey_levels(views), np.stack([expected] * 3))


RGB = np.asarray(random_image(6, 6))


@pytest.mark.parametrize(
    "image",
    [
        RGB,
        RGB.transpose(2, 0, 1),
        RGB[::-1][::-1],
        np.dstack([RGB, RGB[..., :1]]),
        RGB.astype(np.int64),
        (RGB / 255).astype(np.float32),
        RGB / 255 + 1e-7,
        RGB.astype(np.float64),
        torch.from_numpy(RGB.copy()).permute(2, 0, 1),
        torch.from_numpy(RGB / 255).permute(2, 0, 1).to(torch.float32),
        RGB[None],
        [[RGB]],
    ],
    ids=str.split("HWC CHW strided RGBA int64 float32 rounded float255 tensor float-tensor batch nested"),
)
def test_arrays_equal_the_image_they_hold(processor, image):
    views = processor(image, size=SMALL, return_tensors="np").pixel_values
    assert np.array_equal(grey_levels(views), RGB.transpose(2, 0, 1)[None, None])


def test_masks_are_black_and_white(processor):
    views = processor(np.eye(6, dtype=bool), size=SMALL, return_tensors="np").pixel_values[0, 0]
    assert np.array_equal(grey_levels(views), np.stack([np.eye(6) * 255] * 3))


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 7, 3), (7, 1, 3), (3, 1, 1), (3, 1, 7)])
def test_thin_arrays_are_read_the_likely_way(processor, shape):
    image = np.zeros(shape, np.uint8)
    image[(slice(None), slice(None), 0) if shape[2] == 3 else 0] = 255  # red
    views = processor(image, size=SMALL, return_tensors="np").pixel_values[0, 0]
    assert (views[0] == 1).all()
    assert (views[1:] == -1).all()


def test_the_layout_can_be_said(processor):
    image = np.zeros((3, 6, 3), np.uint8)
    image[..., 0] = 255
    views = processor(image, size=SMALL, input_data_format="channels_last", return_tensors="np").pixel_values[0, 0]
    assert (views[0] == 1).all()


def test_lists_may_be_nested(processor):
    images = [random_image(6, 6, seed=seed) for seed in range(3)]
    flat = processor(images, size=SMALL, return_tensors="np").pixel_values
    assert flat.shape[0] == 3
    for nested in ([images[:1], images[1:]], [[], images], tuple(images), [images[0], [images[1], [images[2]]]]):
        assert np.array_equal(processor(nested, size=SMALL, return_tensors="np").pixel_values, flat)


@pytest.fixture(scope="module")
def url():
    handler = partial(SimpleHTTPRequestHandler, directory=IMAGES)
    handler.func.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("kind", ["path", "Path", "bytes", "bytearray", "base64", "data URI", "URL"])
def test_files_paths_and_urls_are_read(processor, url, kind):
    path = IMAGES / "small.png"
    encoded = base64.b64encode(path.read_bytes()).decode()
    source = {
        "path": str(path),
        "Path": path,
        "bytes": path.read_bytes(),
        "bytearray": bytearray(path.read_bytes()),
        "base64": encoded,
        "data URI": f"data:image/png;base64,{encoded}",
        "URL": f"{url}/small.png",
    }[kind]
    with Image.open(path) as image:
        expected = processor(image, return_tensors="np").pixel_values
    assert np.array_equal(processor(source, return_tensors="np").pixel_values, expected)


@pytest.mark.parametrize("extension", ["gif", "tiff", "webp", "png"])
def test_of_an_animation_the_first_frame_counts(processor, tmp_path, extension):
    frames = [Image.new("RGB", (6, 6), color) for color in ("red", "blue")]
    path = tmp_path / f"frames.{extension}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    views = processor(path, size=SMALL, return_tensors="np").pixel_values[0, 0]
    assert views[0].min() > 0.9
    assert views[2].max() < -0.9


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured_unless_turned_off(processor, tmp_path, orientation):
    stored = random_image(6, 4)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    turns = {
        1: stored,
        2: stored.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: stored.transpose(Image.Transpose.ROTATE_180),
        4: stored.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: stored.transpose(Image.Transpose.TRANSPOSE),
        6: stored.transpose(Image.Transpose.ROTATE_270),
        7: stored.transpose(Image.Transpose.TRANSVERSE),
        8: stored.transpose(Image.Transpose.ROTATE_90),
    }
    photo = processor(tmp_path / "photo.png", return_tensors="np").pixel_values
    assert np.array_equal(photo, processor(turns[orientation], return_tensors="np").pixel_values)
    as_stored = processor(tmp_path / "photo.png", do_exif_transpose=False, return_tensors="np").pixel_values
    assert np.array_equal(as_stored, processor(stored, return_tensors="np").pixel_values)


# What is none


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", r"images\[1\] is no image that Pillow knows: the file is empty"),
        (b"not an image", r"images\[1\] is no image that Pillow knows"),
        (png(random_image(60, 60))[:200], r"images\[1\] cannot be decoded .*: it is damaged or cut short"),
        ("Is it a dog?", r"images\[1\] \('Is it a dog\?'\) is no file.*text belongs to `text=`"),
        ("abcd", r"images\[1\] \('abcd'\) is no image that Pillow knows.*belongs to `text=`"),
        (Path("no/such/file.png"), r"images\[1\] \('no/such/file.png'\) is no file.*check the path"),
        ("http://127.0.0.1:9/cat.png", r"images\[1\] \('http://127.0.0.1:9/cat.png'\) cannot be downloaded"),
        (None, r"images\[1\] is of type NoneType: pass a PIL image"),
        ({"path": "cat.png"}, r"images\[1\] is of type dict"),
        (Image.new("RGB", (0, 5)), r"images\[1\] is 0 x 5 pixels"),
        (np.zeros((0, 5, 3), np.uint8), r"images\[1\] has shape \(0, 5, 3\)"),
        (np.zeros(5, np.uint8), r"images\[1\] has shape \(5,\): an image is HW, HWC or CHW"),
        (np.zeros((5, 5, 2), np.uint8), r"images\[1\]: shape \(5, 5, 2\) is neither CHW nor HWC"),
        (np.full((5, 5, 3), -1.0), r"images\[1\]: torch.float64 pixels run from -1 to -1: pass 8-bit"),
        (np.full((5, 5, 3), 1.5), r"images\[1\]: torch.float64 pixels run from 1.5 to 1.5"),
        (np.full((5, 5), np.nan), r"images\[1\]: torch.float64 pixels run from nan"),
        (np.full((5, 5), 2**20), r"images\[1\]: torch.int64 pixels run from"),
        (np.full((5, 5), "x"), r"images\[1\]: can't convert np.ndarray"),
    ],
)
def test_what_is_no_image_is_named(processor, image, message):
    with pytest.raises(ValueError, match=message):
        processor([random_image(6, 6), image])


def test_a_damaged_file_is_named(processor, tmp_path):
    path = tmp_path / "cut.jpg"
    random_image(60, 60).save(path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"images \('.*cut.jpg'\) cannot be decoded"):
        processor(path)
    with pytest.raises(ValueError, match=r"images cannot be decoded"):
        processor(Image.open(path))


def test_a_decompression_bomb_is_explained(monkeypatch, processor):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"images is too large to be safe.*raise `PIL.Image.MAX_IMAGE_PIXELS`"):
        processor(png(random_image(60, 60)))


def test_damaged_exif_data_say_how_to_go_on(processor):
    image = random_image(6, 6)
    image.info["exif"] = b"Exif\x00\x00garbage"
    with pytest.raises(ValueError, match=r"images\[0\]: its EXIF data .*`do_exif_transpose=False`"):
        processor(image)
    assert processor(image, do_exif_transpose=False).pixel_values.shape == (1, 1, 3, 384, 384)


def test_float_images_without_rescaling_are_refused(processor):
    with pytest.raises(ValueError, match="leave `do_rescale` on"):
        processor(RGB / 255, do_rescale=False)


# Sources as other tools write them

ODD_URLS = {
    "/a picture.png": "/a%20picture.png",
    "/caf\u00e9/\u732b.png": "/caf%C3%A9/%E7%8C%AB.png",
    "/a%20b.png?q=a b&c=\u00fc": "/a%20b.png?q=a%20b&c=%C3%BC",
    "/plain.png#part": "/plain.png",
    "/q.png?a=1/2:3,4": "/q.png?a=1/2:3,4",
}


@pytest.fixture(scope="module")
def website():
    with odd_website((IMAGES / "small.png").read_bytes()) as (address, paths):
        yield address, paths


@pytest.mark.parametrize("path", ODD_URLS)
def test_urls_with_blanks_and_letters(processor, website, path):
    address, paths = website
    for url in (address + path, f"  {address}{path}\n", address.replace("http", "HTTP") + path):
        views = processor(url, return_tensors="np").pixel_values
        assert paths[-1] == ODD_URLS[path]
        assert np.array_equal(views, processor(IMAGES / "small.png", return_tensors="np").pixel_values)


def test_hosts_with_letters_are_written_in_ascii():
    assert ascii_url("https://b\u00fccher.example/\u00fc") == "https://xn--bcher-kva.example/%C3%BC"


@pytest.mark.parametrize("wrap", [76, 64, None])
@pytest.mark.parametrize("behind", ["", "data:image/png;base64,"])
def test_base64_with_line_breaks(processor, wrap, behind):
    encoded = base64.b64encode((IMAGES / "small.png").read_bytes()).decode()
    lines = [encoded[i : i + wrap] for i in range(0, len(encoded), wrap)] if wrap else [encoded]
    for end in ("\n", "\r\n"):
        views = processor(behind + end.join(lines) + end, return_tensors="np").pixel_values
        assert np.array_equal(views, processor(IMAGES / "small.png", return_tensors="np").pixel_values)


def test_downloads_that_fail_end_in_a_sentence(processor, website, monkeypatch):
    address, _ = website
    with pytest.raises(ValueError, match=r"cannot be downloaded: the connection was cut after .* bytes, .* missing"):
        processor(f"{address}/cut")
    monkeypatch.setattr("transformers_flashsloth.model.image_inputs.MAX_IMAGE_BYTES", 100)
    with pytest.raises(ValueError, match="cannot be downloaded"):
        processor("http://exa mple.com:port/x.png")
    for url in (
        "http://[::1/x.png",
        "http://",
        "http://127.0.0.1:99999/x.png",
        "http://a\u0000b/x",
        "http://x..y/z.png",
    ):
        with pytest.raises(ValueError, match=r"images \(.*cannot be downloaded"):
            read_images(url)


def test_downloads_have_a_limit(website):
    address, _ = website
    for path in ("/endless", "/whole.png"):
        with pytest.raises(ValueError, match=r"x cannot be downloaded: it has more than 300 bytes"):
            locate(f"{address}{path}", "x", 300)
    size = len((IMAGES / "small.png").read_bytes())
    assert len(locate(f"{address}/whole.png", "x", size).getbuffer()) == size
