"""Grounds that compete with what lies on them: textures, and clutter that has no name."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from .canvas import IMAGE_SIZE, Colour, distance

NEAR = 70
"""RGB distance below which a shape would hardly stand out from its ground."""


def busy_background(random: Random, shades: list[Colour]) -> np.ndarray:
    """A texture with clutter on it, from which `shades` stand out nearly everywhere; (96, 96, 3) float32."""
    for _ in range(30):
        ground = _clutter(random.choice(TEXTURES)(*_palette(random, shades), random), random, shades)
        near = [(np.linalg.norm(ground - np.float32(shade), axis=-1) < NEAR).mean() for shade in shades]
        if not near or max(near) < 0.06:
            return ground
    grey = max(((level,) * 3 for level in range(0, 256, 15)), key=lambda g: min(distance(g, s) for s in shades))
    return np.full((IMAGE_SIZE, IMAGE_SIZE, 3), grey, np.float32)


def _palette(random: Random, shades: list[Colour]) -> tuple[np.ndarray, np.ndarray]:
    """Two colours, often alike, away from `shades`."""
    for _ in range(60):
        first = np.float32([random.randint(0, 255) for _ in range(3)])
        reach = random.choice((30, 60, 120))
        second = (first + [random.randint(-reach, reach) for _ in range(3)]).clip(0, 255).astype(np.float32)
        if all(min(math.dist(colour, shade) for colour in (first, second)) > 1.3 * NEAR for shade in shades):
            break
    return first, second


def _mix(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """`share` (96, 96), 0-1, of `second` in `first`; (96, 96, 3) float32."""
    return first + share[..., None].astype(np.float32) * (second - first)


def _wave(random: Random, angle: float | None = None) -> np.ndarray:
    """Stripes of a random width and direction, (96, 96), 0-1."""
    rows, columns = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
    angle = random.uniform(0, math.pi) if angle is None else angle
    width = random.uniform(5, 20)
    phase = (rows * math.sin(angle) + columns * math.cos(angle)) * 2 * math.pi / width + random.uniform(0, 6)
    return (np.sin(phase) * random.choice((0.6, 4)) + 0.5).clip(0, 1)


def _stripes(first: np.ndarray, second: np.ndarray, random: Random) -> np.ndarray:
    return _mix(first, second, _wave(random))


def _checks(first: np.ndarray, second: np.ndarray, random: Random) -> np.ndarray:
    angle = random.choice((0, random.uniform(0, math.pi / 2)))
    return _mix(first, second, (_wave(random, angle) + _wave(random, angle + math.pi / 2)) / 2)


def _dots(first: np.ndarray, second: np.ndarray, random: Random) -> np.ndarray:
    rows, columns = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
    step, shift = random.randint(7, 15), random.randint(0, 15)
    radius = random.uniform(0.15, 0.35) * step
    away = np.hypot((rows + shift) % step - step / 2, (columns + shift) % step - step / 2)
    return _mix(first, second, (radius - away + 0.5).clip(0, 1))


def _clouds(first: np.ndarray, second: np.ndarray, random: Random) -> np.ndarray:
    noise = np.random.default_rng(random.getrandbits(32))
    cells = random.choice((4, 7, 12, 20, 32))
    small = Image.fromarray((noise.random((cells, cells)) * 255).astype(np.uint8))
    share = np.asarray(small.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC), np.float32) / 255
    return _mix(first, second, share)


def _grain(first: np.ndarray, second: np.ndarray, random: Random) -> np.ndarray:
    noise = np.random.default_rng(random.getrandbits(32))
    ground = _clouds(first, second, random)
    return ground + noise.normal(0, random.uniform(8, 28), ground.shape).astype(np.float32)


TEXTURES: tuple[Callable[[np.ndarray, np.ndarray, Random], np.ndarray], ...] = (
    _stripes,
    _checks,
    _dots,
    _clouds,
    _grain,
)


def _clutter(ground: np.ndarray, random: Random, shades: list[Colour]) -> np.ndarray:
    """`ground` with up to fourteen strokes, specks and scraps, none of them like a thing that has a name."""
    image = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(random.choice((0, 4, 8, 14))):
        colour = tuple(random.randint(0, 255) for _ in range(3))
        if any(distance(colour, shade) < NEAR for shade in shades):
            continue
        x, y = random.randint(0, IMAGE_SIZE), random.randint(0, IMAGE_SIZE)
        kind = random.random()
        if kind < 0.4:  # a bent stroke
            points = [(x, y)]
            for _ in range(random.randint(1, 4)):
                points.append((points[-1][0] + random.randint(-16, 16), points[-1][1] + random.randint(-16, 16)))
            draw.line(points, colour, random.randint(1, 2))
        elif kind < 0.7:  # a handful of specks
            for _ in range(random.randint(2, 6)):
                left, top, side = x + random.randint(-9, 9), y + random.randint(-9, 9), random.randint(1, 3)
                draw.rectangle((left, top, left + side, top + side), colour)
        else:  # a jagged scrap
            corners = [(x + random.randint(-6, 6), y + random.randint(-6, 6)) for _ in range(random.randint(4, 7))]
            draw.polygon(corners, colour)
    return np.asarray(image, np.float32).copy()
