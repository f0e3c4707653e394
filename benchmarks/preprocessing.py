"""
From a file's bytes to pixel values, without a model: `python -m benchmarks.preprocessing`.

A 768 x 768 image and a JPEG of 12 megapixels, decoded and resized as FlashSloth's image processor does, and in parts.
Pillow's draft mode decodes a JPEG at a fraction of its size; it changes pixels (the last column says by how many grey
levels on average), so that the default, which equals the released preprocessing bit for bit, does not use it.
"""

import io

import torch
from PIL import Image

from transformers_flashsloth import FlashSlothImageProcessor

from .measure import Clock, summary
from .options import common_parser, settings_of
from .report import markdown_table, publish, with_spread
from .subjects import photo

LARGE = (4000, 3000)
HEADER = ["", "768 x 768, ms", "12-megapixel JPEG, ms", "the same, CPU time, ms", "grey levels off"]
VIEWS = {"base": False, "HD": True}


def main(arguments: list[str] | None = None) -> None:
    parser = common_parser(__doc__, "benchmarks/results/preprocessing")
    parser.add_argument("--repeats", type=int, default=9, help="samples (default %(default)s)")
    options = parser.parse_args(arguments)
    settings = settings_of(options)
    result = measure(options.repeats, (400, 300) if settings.tiny else LARGE)
    publish(options, "preprocessing", result, table(result))


def measure(repeats: int, size: tuple[int, int]) -> dict:
    """Seconds of each way for both images, and how far its pixels are from the default's."""
    files = {"small": _jpeg(photo()), "large": _jpeg(photo(*size))}
    ways = {"decoding alone": lambda data: Image.open(io.BytesIO(data)).convert("RGB")}
    off = {}
    for name, hd in VIEWS.items():
        processor = FlashSlothImageProcessor(image_hd=hd)
        side = 768 if hd else 384
        ways[name] = lambda data, processor=processor: processor(data, return_tensors="pt").pixel_values
        ways[f"{name}, draft mode"] = lambda data, processor=processor, side=side: (
            processor(_draft(data, side), return_tensors="pt").pixel_values
        )
        for way in (name, f"{name}, draft mode"):
            # Pixel values from -1 to 1 are 255 grey levels.
            off[way] = float((ways[way](files["large"]) - ways[name](files["large"])).abs().mean() * 127.5)
    clock, result = Clock("cpu"), {}
    seconds = {way: {file: [] for file in files} for way in ways}
    for _ in range(repeats):
        for way, call in ways.items():
            for file, data in files.items():
                seconds[way][file].append(clock.time(lambda call=call, data=data: call(data)))
    for way, found in seconds.items():
        result[way] = {
            "small": summary([sample["wall"] for sample in found["small"]]),
            "large": summary([sample["wall"] for sample in found["large"]]),
            "large_cpu": summary([sample["cpu"] for sample in found["large"]]),
            "grey_levels_off": off.get(way),
        }
    return result


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def _draft(data: bytes, side: int) -> Image.Image:
    """Decoded at the smallest fraction (1/2, 1/4, 1/8) of its size that is still at least twice `side`."""
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (2 * side, 2 * side))
    return image


def table(result: dict) -> str:
    rows = []
    for way, found in result.items():
        times = [with_spread(found[name], 1000, 1) for name in ("small", "large", "large_cpu")]
        off = found["grey_levels_off"]
        rows.append([way, *times, "" if off is None else f"{off:.2f}"])
    return markdown_table(HEADER, rows)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
