"""How scenes are laid out and painted: boxes that do not overlap, emoji, and shapes that stand out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import numpy as np

from . import canvas
from .canvas import IMAGE_SIZE, Box, Canvas, Colour
from .scene import Scene, Thing

MIN_CONTRAST = 80
"""Least RGB distance between a shape and what it is drawn on."""


def emoji_scene(
    kind: str,
    names: list[str],
    boxes: list[Box],
    random: Random,
    styles: tuple[str, ...],
    corners: list[str] | None = None,
    ground: np.ndarray | None = None,
) -> Scene:
    """Emoji in `boxes`, on `ground` or a random one."""
    picture = Canvas(canvas.random_background(random) if ground is None else ground)
    for index, (name, box) in enumerate(zip(names, boxes, strict=True)):
        draw_glyph(picture, name, box, random, styles, index)
    things = [Thing(name, None, corner) for name, corner in zip(names, corners or [None] * len(names), strict=True)]
    return Scene(kind, picture.image(), things, picture.owner)


def draw_glyph(
    picture: Canvas, name: str, box: Box, random: Random, styles: tuple[str, ...], index: int, exact: bool = False
) -> None:
    """Draw an emoji into `box`; unless `exact`, at the next smaller even size, of which resized copies are kept."""
    left, top, width, height = box
    pixels = canvas.glyph_pixels.__wrapped__ if exact else canvas.glyph_pixels
    if not exact:
        width = height = width // 2 * 2
    colour, alpha = pixels(random.choice(styles), name, width, height, random.random() < 0.15)
    picture.paste((left, top, width, height), colour, alpha, index)


def shape_scene(
    kind: str,
    names: list[str],
    colours: list[str],
    boxes: list[Box],
    random: Random,
    corners: list[str] | None = None,
    ground: Callable[[Random, list[Colour]], np.ndarray] | None = None,
) -> Scene:
    """Coloured shapes in `boxes`, on what `ground` makes for their shades or else on a plain one."""
    shades = [canvas.shade(colour, random) for colour in colours]
    light = not (len(names) == 1 and names[0] == "square")
    picture = Canvas(ground(random, shades) if ground else _contrasting_background(shades, random, light))
    things = []
    for index, (name, colour, fill, box) in enumerate(zip(names, colours, shades, boxes, strict=True)):
        left, top, width, height = box
        if name == "rectangle":
            short = round(width * random.uniform(0.35, 0.75))
            width, height = random.choice(((width, short), (short, height)))
        tilt = 0 if name == "rectangle" else random.choice((0, random.uniform(-0.25, 0.25)))
        mask = canvas.shape_mask(name, width, height, tilt)
        picture.paste((left, top, width, height), np.float32(fill), mask, index)
        things.append(Thing(name, colour, corners[index] if corners else None))
    return Scene(kind, picture.image(), things, picture.owner)


def _contrasting_background(shades: list[Colour], random: Random, light: bool) -> np.ndarray:
    """A plain or graded ground that every one of `shades` stands out from; not a pastel one unless `light`.

    A lone square on a pastel ground would be one of easy-VQA's rectangles.
    """
    while True:
        ground = canvas.plain_background((255, 255, 255)) if random.random() < 0.3 else canvas.random_background(random)
        centre = tuple(ground[IMAGE_SIZE // 2, IMAGE_SIZE // 2])
        pastel = min(centre) >= 225 and centre != (255, 255, 255)
        extremes = [tuple(ground[y, x]) for y in (0, -1) for x in (0, -1)]
        contrast = min(canvas.distance(shade, corner) for shade in shades for corner in (centre, *extremes))
        if contrast >= MIN_CONTRAST and (light or not pastel):
            return ground


def corner_box(corner: str, random: Random) -> Box:
    """A square box inside the quarter of the picture that `corner` names."""
    half = IMAGE_SIZE // 2
    size = random.randint(26, 44)
    top = random.randint(0, half - size) + (half if "bottom" in corner else 0)
    left = random.randint(0, half - size) + (half if "right" in corner else 0)
    return left, top, size, size


def grid_boxes(count: int, random: Random) -> list[Box]:
    """Up to nine boxes of about one size in cells of a jittered 3x3 grid, so that nothing overlaps."""
    cell = IMAGE_SIZE // 3
    largest = random.randint(24, cell)
    boxes = []
    for index in random.sample(range(9), count):
        size = random.randint(22, largest)
        row, column = divmod(index, 3)
        left, top = column * cell + random.randint(0, cell - size), row * cell + random.randint(0, cell - size)
        boxes.append((left, top, size, size))
    return boxes


def free_boxes(count: int, sizes: tuple[int, int], random: Random, taken: Sequence[Box] = ()) -> list[Box]:
    """`taken` and up to `count` square boxes that overlap nothing, sides between `sizes`; fewer where no room is."""
    boxes = list(taken)
    for _ in range(12 * count):
        size = random.randint(*sizes)
        left, top = random.randint(0, IMAGE_SIZE - size), random.randint(0, IMAGE_SIZE - size)
        if all(left + size <= x or x + w <= left or top + size <= y or y + h <= top for x, y, w, h in boxes):
            boxes.append((left, top, size, size))
            if len(boxes) == count + len(taken):
                break
    return boxes
