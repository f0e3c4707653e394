"""Views of images: equal to the released preprocessing."""

import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.models.auto import image_processing_auto
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.utils import is_torchvision_available

from transformers_flashsloth.model import image_processing_flashsloth
from transformers_flashsloth.model.image_processing_flashsloth import (
    FlashSlothImageProcessor,
    FlashSlothImageProcessorTorchvision,
)

IMAGES = Path(__file__).parents[1] / "goldens" / "images"
STATS = {name: stats for name, stats in json.loads((IMAGES / "stats.json").read_text()).items() if name != "pillow"}
SMALL = {"height": 6, "width": 6}


@pytest.fixture(scope="module")
def processor():
    return FlashSlothImageProcessor()


def random_image(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels)


def grey_levels(pixel_values) -> np.ndarray:
    """The 8-bit pixels behind the default normalization."""
    return np.round((np.asarray(pixel_values) * 0.5 + 0.5) * 255).astype(np.uint8)


def released_views(image: Image.Image, side: int) -> np.ndarray:
    """HD as the reference words it: (5, 3, side, side)."""
    square = Image.new("RGB", (max(image.size),) * 2, (127, 127, 127))
    square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
    square = square.resize((2 * side, 2 * side), Image.Resampling.BICUBIC)
    quarters = [square.crop((x, y, x + side, y + side)) for y in (0, side) for x in (0, side)]
    views = [image.resize((side, side), Image.Resampling.BICUBIC), *quarters]
    return np.stack([np.asarray(view).transpose(2, 0, 1) for view in views])


# Equal to the release


@pytest.mark.parametrize("name", STATS)
@pytest.mark.parametrize("hd", [False, True], ids=["base", "hd"])
def test_pixels_equal_the_release_bit_for_bit(processor, name, hd):
    pixel_values = processor(IMAGES / f"{name}.png", image_hd=hd, return_tensors="pt").pixel_values
    assert pixel_values.shape == (1, 5 if hd else 1, 3, 384, 384)
    assert pixel_values.dtype == torch.float32
    kind = "hd" if hd else "sd"
    assert hashlib.sha256(grey_levels(pixel_values).tobytes()).hexdigest() == STATS[name][f"{kind}_sha256"]
    mean = pixel_values[0].mean(dim=(1, 2, 3))
    np.testing.assert_allclose(mean, np.atleast_1d(STATS[name][f"{kind}_mean"]), atol=1e-6)


def test_normalization_equals_siglips(processor):
    image = random_image(50, 40)
    theirs = SiglipImageProcessorPil(size={"height": 384, "width": 384}, resample=Image.Resampling.BICUBIC)
    expected = theirs(image, return_tensors="pt").pixel_values
    assert torch.equal(processor(image, return_tensors="pt").pixel_values[:, 0], expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (37, 101), (101, 38), (12, 12), (5, 7)])
@pytest.mark.parametrize("strip_pixels", [2**24, 300], ids=["one strip", "many strips"])
def test_hd_views_in_strips_equal_the_whole_square(monkeypatch, processor, size, strip_pixels):
    monkeypatch.setattr(image_processing_flashsloth, "STRIP_PIXELS", strip_pixels)
    image = random_image(*size)
    views = processor(image, image_hd=True, size=SMALL, return_tensors="np").pixel_values[0]
    assert np.array_equal(grey_levels(views), released_views(image, 6))


@pytest.mark.parametrize("size", [(1, 6_000), (6_000, 1)])
def test_a_panorama_never_needs_its_whole_square(monkeypatch, processor, size):
    areas = []
    new = Image.new
    monkeypatch.setattr(
        Image, "new", lambda mode, size, *color: areas.append(size[0] * size[1]) or new(mode, size, *color)
    )
    assert processor(random_image(*size), image_hd=True, return_tensors="np").pixel_values.shape[1] == 5
    assert max(areas) <= image_processing_flashsloth.STRIP_PIXELS


# Options


def test_a_call_overrides_what_was_configured():
    processor = FlashSlothImageProcessor(image_hd=True, size={"height": 28, "width": 42})
    image = random_image(20, 10)
    assert processor(image, return_tensors="pt").pixel_values.shape == (1, 5, 3, 28, 42)
    assert processor(image, image_hd=False, size=SMALL, return_tensors="pt").pixel_values.shape == (1, 1, 3, 6, 6)


def test_steps_can_be_turned_off(processor):
    image = random_image(6, 6)
    options = {"do_normalize": False, "size": SMALL, "return_tensors": "np"}
    raw = processor(image, do_rescale=False, **options).pixel_values
    assert raw.dtype == np.uint8
    assert np.array_equal(raw[0, 0], np.asarray(image).transpose(2, 0, 1))
    np.testing.assert_allclose(processor(image, **options).pixel_values, raw / 255, rtol=1e-6)
    as_is = processor([image, image], do_resize=False, return_tensors="np").pixel_values
    assert as_is.shape == (2, 1, 3, 6, 6)


def test_without_conversion_the_channels_stay(processor):
    image = np.asarray(random_image(9, 8, "RGBA"))
    statistics = {"image_mean": [0.0] * 4, "image_std": [1.0] * 4}
    options = {"do_convert_rgb": False, "image_hd": True, "size": SMALL, "return_tensors": "np"}
    assert processor(image, **options, **statistics).pixel_values.shape == (1, 5, 4, 6, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": {"shortest_edge": 6}}, "`height` and `width`"),
        ({"do_resize": False, "image_hd": True}, "needs `do_resize=True`"),
        ({"do_resize": False}, r"one size, got \[\(3, 4, 4\), \(3, 6, 6\)\]"),
    ],
)
def test_impossible_options_are_refused(processor, options, message):
    with pytest.raises(ValueError, match=message):
        processor([random_image(6, 6), random_image(4, 4)], **options)


def test_images_of_other_channels_are_refused(processor):
    with pytest.raises(ValueError, match=r"one size, got \[\(1, 6, 6\), \(3, 6, 6\)\]"):
        processor([random_image(6, 6), random_image(6, 6, "L")], do_resize=False, do_convert_rgb=False)


@pytest.mark.parametrize("image_hd", [False, True])
def test_saved_and_loaded_it_gives_the_same_pixels(tmp_path, image_hd):
    saved = FlashSlothImageProcessor(size=SMALL, image_hd=image_hd, do_exif_transpose=False, image_mean=[0.1, 0.2, 0.3])
    saved.save_pretrained(tmp_path)
    image = random_image(20, 30)
    expected = saved(image, return_tensors="pt").pixel_values
    for cls in (FlashSlothImageProcessor, partial(AutoImageProcessor.from_pretrained, backend="pil")):
        loaded = cls(tmp_path) if isinstance(cls, partial) else cls.from_pretrained(tmp_path)
        assert type(loaded) is FlashSlothImageProcessor
        assert loaded.to_dict() == saved.to_dict()
        assert torch.equal(loaded(image, return_tensors="pt").pixel_values, expected)


def test_pillow_is_the_default_even_where_torchvision_is_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(image_processing_auto, "is_torchvision_available", lambda: True)
    FlashSlothImageProcessor().save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is FlashSlothImageProcessor


@pytest.mark.parametrize("images", [[], [[], []]])
def test_no_images_are_refused(processor, images):
    with pytest.raises(ValueError, match="no images"):
        processor(images)


# torchvision


@pytest.mark.skipif(not is_torchvision_available(), reason="needs torchvision")
@pytest.mark.parametrize("hd", [False, True])
@pytest.mark.parametrize("size", [(60, 41), (41, 60)])
def test_torchvision_is_close_to_pillow(processor, hd, size):
    on_torchvision = FlashSlothImageProcessorTorchvision()
    image = random_image(*size)
    expected = processor(image, image_hd=hd, return_tensors="pt").pixel_values
    for source in (image, torch.from_numpy(np.array(image)).permute(2, 0, 1)):
        actual = on_torchvision(source, image_hd=hd, return_tensors="pt").pixel_values
        assert actual.shape == expected.shape
        assert (actual - expected).abs().max() < 0.05
    assert on_torchvision.to_dict() == processor.to_dict()
