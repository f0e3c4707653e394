"""The browser's pixels equal Pillow's, as the image processor takes them."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.web.page import TO_BYTES, TO_TEXT, from_text, to_text
from tests.web.pictures import DEPTHS, GREY, PALETTE, RGB, chunk, noise, oriented, png, saved
from transformers_flashsloth import FlashSlothImageProcessor
from transformers_flashsloth.model.image_inputs import decode_pil

READ = f"""{TO_BYTES} {TO_TEXT}
    const {{ readImage }} = await import("/pixels/read.js");
    const read = async (text) => {{
        try {{
            const {{ rgb, width, height }} = await readImage(new Blob([toBytes(text)]), "it");
            return {{ rgb: toText(rgb), width, height }};
        }} catch (error) {{
            return {{ refused: `${{error.constructor.name}}: ${{error.message}}` }};
        }}
    }};
    return Promise.all(args[0].map(read));"""


def read(page, files: dict[str, bytes]) -> dict[str, dict]:
    return dict(zip(files, page.run(READ, [to_text(content) for content in files.values()]), strict=True))


def by_python(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        return np.asarray(decode_pil(image, do_exif_transpose=True, do_convert_rgb=True))


def assert_equal(page, files: dict[str, bytes]):
    for name, found in read(page, files).items():
        expected = by_python(files[name])
        assert "refused" not in found, (name, found)
        pixels = from_text(found["rgb"], np.uint8).reshape(found["height"], found["width"], 3)
        assert pixels.shape == expected.shape, name
        differences = abs(pixels.astype(int) - expected)
        assert not differences.any(), f"{name}: up to {differences.max()} in {(differences > 0).mean():.1%}"


def test_png_of_every_kind(blank):
    sizes = [(13, 9), (1, 1), (3, 2), (64, 5)]
    assert_equal(
        blank,
        {
            f"kind {kind}, {depth} bits, {size}, {interlaced}": png(kind, depth, *size, interlaced=interlaced)
            for kind, depths in DEPTHS.items()
            for depth in depths
            for size in sizes
            for interlaced in (False, True)
        },
    )


def test_png_palettes_and_transparency(blank):
    transparency = chunk(b"tRNS", bytes([0, 128, 255, 3]))
    exif = {
        f"turned {number}": png(RGB, 8, 7, 5, extra=chunk(b"eXIf", oriented(number).tobytes()[6:]))
        for number in range(1, 9)
    }
    files = {
        "palette with transparency": png(PALETTE, 8, 9, 9, extra=transparency),
        "short palette": png(PALETTE, 8, 9, 9, colours=3),
        "grey with transparency": png(GREY, 8, 9, 9, extra=chunk(b"tRNS", b"\0\7")),
        "alpha": saved(noise(40, 30, "RGBA"), "PNG"),
    }
    assert len({by_python(content).tobytes() for content in exif.values()}) == 8
    assert_equal(blank, files | exif)


def test_gif(blank):
    picture = noise(33, 20).quantize(20)
    first, second = picture.copy(), noise(33, 20, seed=1).quantize(20)
    transparent = picture.copy()
    transparent.info["transparency"] = int(np.asarray(picture)[5, 5])
    files = {
        "plain": saved(picture, "GIF"),
        "interlaced": saved(picture, "GIF", interlace=1),
        "transparent": saved(transparent, "GIF"),
        "grey": saved(noise(300, 200, "L"), "GIF"),
        "two colours": saved(noise(20, 20, "L").convert("1"), "GIF"),
        "animated": saved(first, "GIF", save_all=True, append_images=[second]),
    }
    small = bytearray(files["transparent"])
    small[6:10] = b"\x40\0\x30\0"  # a frame smaller than its screen
    assert_equal(blank, files | {"small frame": bytes(small)})


def test_what_the_browser_decodes(blank):
    picture, grey = noise(61, 47), noise(61, 47, "L")
    jpegs = {
        "JPEG": saved(picture, "JPEG", quality=90),
        "JPEG 4:4:4": saved(picture, "JPEG", quality=90, subsampling=0),
        "JPEG 4:2:2": saved(picture, "JPEG", quality=60, subsampling=1),
        "progressive JPEG": saved(picture, "JPEG", progressive=True),
        "grey JPEG": saved(grey, "JPEG"),
        **{f"JPEG turned {n}": saved(picture, "JPEG", exif=oriented(n)) for n in range(1, 9)},
    }
    others = {
        "WebP": saved(picture, "WEBP", lossless=True),
        "WebP with alpha": saved(noise(61, 47, "RGBA"), "WEBP", lossless=True, exact=True),
        "WebP turned": saved(picture, "WEBP", lossless=True, exif=oriented(6)),
        "BMP": saved(picture, "BMP"),
        "large JPEG, in strips": saved(noise(2600, 1800), "JPEG", quality=95),
    }
    assert_equal(blank, jpegs | others)


def test_what_is_no_image_or_damaged_is_refused(blank):
    picture = noise(61, 47)
    whole = {kind: saved(picture, kind) for kind in ("PNG", "JPEG", "WEBP", "BMP")}
    whole["GIF"] = saved(picture.quantize(16), "GIF")
    thumbnail = whole["JPEG"][:2] + b"\xff\xe1\0\x06\xff\xd8\xff\xd9" + whole["JPEG"][2:]
    assert "refused" not in read(blank, {"thumbnail": thumbnail})["thumbnail"]
    files = {f"cut {kind}": content[: len(content) * 2 // 3] for kind, content in whole.items()}
    files["cut JPEG with a thumbnail"] = thumbnail[: len(thumbnail) // 2]
    files["PNG with a flipped bit"] = whole["PNG"][:200] + bytes([whole["PNG"][200] ^ 1]) + whole["PNG"][201:]
    files["WebP of noise"] = whole["WEBP"][:20] + np.random.default_rng(0).bytes(len(whole["WEBP"]) - 20)
    files |= {"headers alone": whole["PNG"][:20], "PNG without data": whole["PNG"][:33] + chunk(b"IEND", b"")}
    for name, found in read(blank, files).items():
        assert found.get("refused", "").startswith("Refusal: it cannot be used: it "), (name, found)
    huge = chunk(b"IHDR", (10**5).to_bytes(4, "big") * 2 + b"\x08\2\0\0\0") + chunk(b"IEND", b"")
    texts = {"text": b"hello", "html": b"<html>", "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}
    refused = read(blank, texts | {"empty": b"", "huge": whole["PNG"][:8] + huge})
    for name in texts:
        assert refused[name]["refused"] == "Refusal: it is no image in PNG, JPEG, WebP, GIF or BMP."
    assert refused["empty"]["refused"].endswith("or BMP: it is empty.")
    assert "an image may have 50,000,000 pixels" in refused["huge"]["refused"]


RESIZE = f"""{TO_BYTES} {TO_TEXT}
    const {{ resize }} = await import("/pixels/bicubic.js");
    return args[0].map(([rgb, ...sizes]) => toText(resize(toBytes(rgb), ...sizes)));"""


def test_bicubic_is_pillows_at_any_size(blank):
    random = np.random.default_rng(0)
    sizes = [tuple(map(int, random.integers(1, 150, 4))) for _ in range(60)]
    sizes += [(1, 1, 96, 96), (1, 900, 96, 96), (900, 1, 96, 96), (96, 96, 96, 96), (96, 40, 96, 96), (40, 96, 96, 96),
              (1000, 3, 7, 1), (2, 2, 1, 1)]  # fmt: skip
    images = [random.integers(0, 256, (height, width, 3), np.uint8) for width, height, *_ in sizes]
    images[:5] = [np.where(image > 127, 255, 0).astype(np.uint8) for image in images[:5]]  # overshoots
    found = blank.run(RESIZE, [[to_text(i.tobytes()), *size] for i, size in zip(images, sizes, strict=True)])
    for image, (width, height, *to), text in zip(images, sizes, found, strict=True):
        expected = Image.fromarray(image).resize(tuple(to), Image.Resampling.BICUBIC)
        assert from_text(text, np.uint8).tobytes() == expected.tobytes(), (width, height, to)


VIEWS = f"""{TO_BYTES} {TO_TEXT}
    const {{ normalise, viewsOf }} = await import("/pixels/views.js");
    const [rgb, width, height, options] = args;
    return toText(normalise(viewsOf({{ rgb: toBytes(rgb), width, height }}, options), options));"""


@pytest.mark.parametrize("size", [(40, 30), (7, 200), (96, 96), (301, 300)])
@pytest.mark.parametrize("options", [
    {"size": {"height": 96, "width": 96}},
    {"size": {"height": 24, "width": 40}, "image_hd": True},
    {"size": {"height": 9, "width": 9}, "image_hd": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.3, 0.2, 0.1]},
    {"size": {"height": 30, "width": 30}, "do_normalize": False},
])  # fmt: skip
def test_views_are_the_image_processors(blank, size, options):
    processor = FlashSlothImageProcessor(**options)  # its square is resized in two steps, in any Pillow alike
    image = noise(*size)
    expected = processor(image, return_tensors="np")["pixel_values"]
    said = json.loads(processor.to_json_string())
    found = from_text(blank.run(VIEWS, to_text(image.tobytes()), *size, said), np.float32)
    assert np.array_equal(found.reshape(expected.shape), expected)
