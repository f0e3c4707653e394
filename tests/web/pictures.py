"""PNGs of every kind, which Pillow itself writes only some of; with all filters."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
SAMPLES = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGB_ALPHA: (8, 16)}
PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    kind: int, depth: int, width: int, height: int, *, interlaced: bool = False, colours: int = 256, extra: bytes = b""
) -> bytes:
    """A PNG of random samples; `colours` are those its palette has, `extra` are chunks before its data."""
    random = np.random.default_rng([kind, depth, width, height, interlaced])
    top = min(2**depth, colours) if kind == PALETTE else 2**depth
    samples = random.integers(0, top, (height, width, SAMPLES[kind]))
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    chunks = [chunk(b"IHDR", header)]
    if kind == PALETTE:
        chunks.append(chunk(b"PLTE", random.bytes(3 * min(2**depth, colours))))
    lines = b""
    for x, y, dx, dy in PASSES if interlaced else [(0, 0, 1, 1)]:
        part = samples[y::dy, x::dx]
        if part.size:
            lines += _filtered(part, depth, random)
    data = zlib.compress(lines)
    chunks += [extra, chunk(b"IDAT", data[: len(data) // 2]), chunk(b"IDAT", data[len(data) // 2 :])]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def _filtered(samples: np.ndarray, depth: int, random: np.random.Generator) -> bytes:
    """Rows of samples as bytes, each behind the number of its filter."""
    if depth < 8:
        bits = (samples[..., None] >> np.arange(depth)[::-1]) & 1
        packed = np.packbits(bits.reshape(len(samples), -1).astype(np.uint8), axis=1)
    else:
        packed = samples.astype(">u2" if depth == 16 else "u1").reshape(len(samples), -1).view(np.uint8)
    step = max(1, samples.shape[2] * depth // 8)
    above = np.zeros(packed.shape[1], int)
    out = b""
    for line in packed.astype(int):
        left, corner = (np.concatenate([np.zeros(step, int), row])[: len(row)] for row in (line, above))
        kind = int(random.integers(0, 5))
        guess = [0, left, above, (left + above) // 2, _paeth(left, above, corner)][kind]
        out += bytes([kind]) + ((line - guess) % 256).astype(np.uint8).tobytes()
        above = line
    return out


def _paeth(left: np.ndarray, above: np.ndarray, corner: np.ndarray) -> np.ndarray:
    guess = left + above - corner
    to_left, to_above, to_corner = abs(guess - left), abs(guess - above), abs(guess - corner)
    nearest = np.where(to_above <= to_corner, above, corner)
    return np.where((to_left <= to_above) & (to_left <= to_corner), left, nearest)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    """An image as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A picture of soft noise, as harsh noise tells decoders of JPEG apart that are one in practice."""
    bands = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    small = np.random.default_rng(seed).integers(0, 256, (max(1, height // 4), max(1, width // 4), bands), np.uint8)
    return Image.fromarray(small[..., 0] if bands == 1 else small).resize((width, height), Image.Resampling.BILINEAR)


def oriented(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif
