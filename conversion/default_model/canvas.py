"""Drawing: backgrounds, glyphs and coloured shapes on a small canvas that knows what covers each pixel."""

from __future__ import annotations

import math
from functools import cache
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from .assets import load_glyphs
from .vocabulary import COLOURS

IMAGE_SIZE = 96
SUPERSAMPLING = 3
"""Shapes are drawn this many times larger and averaged down, for smooth edges."""

Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]
"""Left, top, width and height in pixels."""


class Canvas:
    """An image being drawn, and for each pixel the index of the thing that covers it (-1 for the background)."""

    def __init__(self, background: np.ndarray):
        self.pixels = background  # (96, 96, 3) float32, 0-255
        self.owner = np.full(background.shape[:2], -1, np.int16)

    def paste(self, box: Box, colour: np.ndarray, alpha: np.ndarray, thing: int) -> None:
        """Blend `colour` (h, w, 3) or (3,) over the canvas with opacity `alpha` (h, w) in 0-1, cut at the edges."""
        left, top, width, height = box
        x, y = max(left, 0), max(top, 0)
        right, bottom = min(left + width, IMAGE_SIZE), min(top + height, IMAGE_SIZE)
        part = np.s_[y - top : bottom - top, x - left : right - left]
        alpha = alpha[part]
        under = self.pixels[y:bottom, x:right]
        under += alpha[..., None] * ((colour[part] if colour.ndim == 3 else colour) - under)
        self.owner[y:bottom, x:right][alpha > 0.5] = thing

    def image(self) -> np.ndarray:
        """The finished picture, (96, 96, 3) uint8."""
        return self.pixels.clip(0, 255).astype(np.uint8)


def plain_background(colour: Colour) -> np.ndarray:
    """One colour everywhere, (96, 96, 3) float32."""
    return np.full((IMAGE_SIZE, IMAGE_SIZE, 3), colour, np.float32)


def random_background(random: Random) -> np.ndarray:
    """White, pastel, any plain colour, a gradient, or a little noise; (96, 96, 3) float32."""
    kind = random.random()
    if kind < 0.3:
        return plain_background((255, 255, 255))
    if kind < 0.5:
        return plain_background(pastel(random))
    if kind < 0.7:
        return plain_background(_any_colour(random))
    if kind < 0.85:
        return _gradient(random)
    noise = np.random.default_rng(random.getrandbits(32)).normal(0, random.uniform(2, 14), (IMAGE_SIZE, IMAGE_SIZE, 3))
    return plain_background(pastel(random)) + noise.astype(np.float32)


def pastel(random: Random) -> Colour:
    """A light colour, as easy-VQA's backgrounds are."""
    return random.randint(225, 255), random.randint(225, 255), random.randint(225, 255)


def _any_colour(random: Random) -> Colour:
    return random.randint(0, 255), random.randint(0, 255), random.randint(0, 255)


def _gradient(random: Random) -> np.ndarray:
    start, end = np.float32(_any_colour(random)), np.float32(_any_colour(random))
    angle = random.uniform(0, 2 * math.pi)
    ramp = np.linspace(-0.5, 0.5, IMAGE_SIZE, dtype=np.float32)
    position = (ramp[:, None] * math.sin(angle) + ramp[None] * math.cos(angle) + 0.7) / 1.4
    return start + position[..., None] * (end - start)


def distance(a: Colour, b: Colour) -> float:
    """Euclidean distance of two colours in RGB, 0-441."""
    return math.dist(a, b)


def shade(name: str, random: Random, jitter: int = 16) -> Colour:
    """A colour that people would call `name`."""
    anchor = random.choice(COLOURS[name])
    if name == "white":
        return anchor
    return tuple(min(255, max(0, channel + random.randint(-jitter, jitter))) for channel in anchor)


@cache
def glyph_pixels(style: str, name: str, width: int, height: int, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
    """The glyph's colours (h, w, 3), 0-255, and opacity (h, w), 0-1, at a size; float32."""
    glyph = load_glyphs(style)[name]
    if mirrored:
        glyph = glyph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(glyph.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    return pixels[..., :3], pixels[..., 3] / 255


def shape_mask(shape: str, width: int, height: int, tilt: float) -> np.ndarray:
    """Opacity (h, w), 0-1 float32, of `shape` filling a box, turned by `tilt` radians about its centre."""
    large = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    draw = ImageDraw.Draw(large)
    if shape == "circle":
        draw.ellipse((0, 0, large.width - 1, large.height - 1), fill=255)
    else:
        cosine, sine = math.cos(tilt), math.sin(tilt)
        turned = [(x * cosine - y * sine, x * sine + y * cosine) for x, y in OUTLINES[shape]]
        reach = max(1.0, *(abs(coordinate) for point in turned for coordinate in point))
        draw.polygon(
            [((x / reach + 1) * large.width / 2, (y / reach + 1) * large.height / 2) for x, y in turned], fill=255
        )
    return np.asarray(large.reduce(SUPERSAMPLING), np.float32) / 255


def _star() -> list[tuple[float, float]]:
    points = [(i * math.pi / 5, 1.0 if i % 2 == 0 else 0.42) for i in range(10)]
    return [(radius * math.sin(angle), -radius * math.cos(angle)) for angle, radius in points]


def _heart() -> list[tuple[float, float]]:
    def height(t: float) -> float:
        return 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)

    angles = [i * math.pi / 16 for i in range(32)]
    return [(math.sin(t) ** 3, -(height(t) + 2.5) / 14.5) for t in angles]


def _cross() -> list[tuple[float, float]]:
    arm = 0.33
    quarter = [(-arm, -1), (arm, -1), (arm, -arm)]
    return [
        point
        for turn in ((1, 0), (0, 1), (-1, 0), (0, -1))
        for point in ((x * turn[0] - y * turn[1], x * turn[1] + y * turn[0]) for x, y in quarter)
    ]


OUTLINES = {
    "rectangle": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "triangle": [(0, -1), (1, 1), (-1, 1)],
    "diamond": [(0, -1), (0.75, 0), (0, 1), (-0.75, 0)],
    "star": _star(),
    "heart": _heart(),
    "cross": _cross(),
}
"""Corner points of each polygon in a box from -1 to 1, y downwards."""
