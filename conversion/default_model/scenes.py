"""Random scenes whose contents are known: what is drawn, where, in which colour, and which patch shows it.

A scene is drawn from a `random.Random`; the same state gives the same scene. `scene_of(kind, random)` makes one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from . import canvas
from .assets import TRAINED_STYLES
from .canvas import IMAGE_SIZE, Box, Canvas, Colour
from .vocabulary import COLOURS, CORNERS, EASY_VQA_COLOURS, EASY_VQA_SHAPES, EMOJI, SHAPES

PATCH_SIZE = 8
GRID = IMAGE_SIZE // PATCH_SIZE
LABELS = ("background", *EMOJI, *SHAPES)
"""What a patch can show, by class index."""
COLOUR_LABELS = ("background", *COLOURS)
UNLABELLED = -100
EASY_VQA_SIZE = 64
MIN_CONTRAST = 80
"""Least RGB distance between a shape and what it is drawn on."""


@dataclass(frozen=True)
class Thing:
    """One emoji or coloured shape of a scene."""

    name: str
    colour: str | None = None
    """Name of a shape's colour; None for an emoji."""
    corner: str | None = None


class PatchLabels(NamedTuple):
    """The truth about each patch of a picture, (144,) int64 each; `UNLABELLED` where it is open."""

    names: np.ndarray
    """Index into `LABELS` of what covers most of the patch."""
    colours: np.ndarray
    """Index into `COLOUR_LABELS`; emoji are unlabelled."""
    centres: np.ndarray
    """1 where the middle of a thing lies, 0 elsewhere."""


@dataclass
class Scene:
    """A picture and the truth about it."""

    kind: str
    image: np.ndarray
    """(96, 96, 3) uint8."""
    things: list[Thing]
    owner: np.ndarray | None
    """(96, 96) index of the thing that covers each pixel, -1 for the background; None if nobody knows."""
    questions: tuple[tuple[str, str], ...] = field(default=())
    """Questions that come with the picture (easy-VQA's official ones)."""

    def patch_labels(self) -> PatchLabels:
        """What the patches show. A patch hardly touched by its largest thing is unlabelled."""
        if self.owner is None:
            return PatchLabels(*[np.full(GRID * GRID, UNLABELLED, np.int64)] * 3)
        area = self.covered()
        largest, covered = area.argmax(-1), area.max(-1)
        names = np.array([LABELS.index(thing.name) for thing in self.things])
        colours = np.array([_colour_label(thing) for thing in self.things])
        names, colours = (
            np.where(covered >= 0.3, of_thing[largest], np.where(covered > 0.02, UNLABELLED, 0)).astype(np.int64)
            for of_thing in (names, colours)
        )
        centres = np.zeros(GRID * GRID, np.int64)
        centres[self.middles()] = 1
        return PatchLabels(names, colours, centres)

    def covered(self) -> np.ndarray:
        """Share of each patch that each thing covers, (144, things) float64."""
        patches = self.owner.reshape(GRID, PATCH_SIZE, GRID, PATCH_SIZE).swapaxes(1, 2).reshape(GRID * GRID, -1)
        return np.stack([(patches == index).mean(-1) for index in range(len(self.things))], -1)

    def middles(self) -> np.ndarray:
        """The patch in which the middle of each thing lies, (things,) int64."""
        places = [np.nonzero(self.owner == index) for index in range(len(self.things))]
        return np.array(
            [rows.mean() // PATCH_SIZE * GRID + columns.mean() // PATCH_SIZE for rows, columns in places], int
        )


def _colour_label(thing: Thing) -> int:
    return COLOUR_LABELS.index(thing.colour) if thing.colour else UNLABELLED


def scene_of(kind: str, random: Random, styles: tuple[str, ...] = TRAINED_STYLES) -> Scene:
    """A random scene of one of `KINDS`, its emoji in the given art styles."""
    return KINDS[kind](random, styles)


def _single(random: Random, styles: tuple[str, ...]) -> Scene:
    """One large emoji, as in somebody's own emoji file: anywhere from half the picture to all of it."""
    size = random.choice((IMAGE_SIZE, random.randint(40, IMAGE_SIZE)))
    width, height = size, min(IMAGE_SIZE, max(32, round(size * random.uniform(0.85, 1.15))))
    box = (random.randint(0, IMAGE_SIZE - width), random.randint(0, IMAGE_SIZE - height), width, height)
    name = random.choice(tuple(EMOJI))
    picture = Canvas(canvas.random_background(random))
    _draw_glyph(picture, name, box, random, styles, 0, exact=True)
    return Scene("single", picture.image(), [Thing(name)], picture.owner)


def _several(random: Random, styles: tuple[str, ...]) -> Scene:
    """Two to five emoji, mostly different, anywhere."""
    boxes = _free_boxes(random.randint(2, 5), (24, 48), random)
    names = random.sample(tuple(EMOJI), len(boxes))
    if len(names) > 1 and random.random() < 0.25:
        names[1] = names[0]
    return _emoji_scene("several", names, boxes, random, styles)


def _corners(random: Random, styles: tuple[str, ...]) -> Scene:
    """Three or four emoji (now and then two), one to a corner; the others stay empty."""
    corners = random.sample(CORNERS, random.choice((2, 3, 4, 4, 4)))
    names = random.sample(tuple(EMOJI), len(corners))
    return _emoji_scene("corners", names, [_corner_box(corner, random) for corner in corners], random, styles, corners)


def _counting(random: Random, styles: tuple[str, ...]) -> Scene:
    """One to six copies of one thing among up to three others."""
    copies, others = random.randint(1, 6), random.randint(0, 3)
    if random.random() < 0.3:
        first, *rest = random.sample(SHAPES[:3] + SHAPES[4:], 1 + others)
        names = [first] * copies + rest
        boxes = _grid_boxes(len(names), random)
        colours = [random.choice(tuple(COLOURS)) for _ in boxes]
        return _shape_scene("counting", names, colours, boxes, random)
    first, *rest = random.sample(tuple(EMOJI), 1 + others)
    names = [first] * copies + rest
    return _emoji_scene("counting", names, _grid_boxes(len(names), random), random, styles)


def _shapes(random: Random, styles: tuple[str, ...]) -> Scene:
    """One to four shapes, each of its own colour."""
    count = random.choice((1, 2, 2, 3, 3, 4))
    boxes = _free_boxes(count, (20, 72 if count == 1 else 44), random)
    names = [random.choice(SHAPES) for _ in boxes] if random.random() < 0.4 else random.sample(SHAPES, len(boxes))
    return _shape_scene("shapes", names, random.sample(tuple(COLOURS), len(boxes)), boxes, random)


def _shape_corners(random: Random, styles: tuple[str, ...]) -> Scene:
    """A shape in each of three or four corners."""
    corners = random.sample(CORNERS, random.choice((3, 4)))
    boxes = [_corner_box(corner, random) for corner in corners]
    names, colours = random.sample(SHAPES, len(boxes)), random.sample(tuple(COLOURS), len(boxes))
    return _shape_scene("shape corners", names, colours, boxes, random, corners)


def _easy_vqa_like(random: Random, styles: tuple[str, ...]) -> Scene:
    """A picture as easy-VQA draws them: one shape without smooth edges on a pastel ground, 64 pixels, enlarged."""
    name, colour = random.choice(EASY_VQA_SHAPES), random.choice(EASY_VQA_COLOURS)
    width = random.randint(8, 32)
    height = {"circle": width, "triangle": round(width * 0.87), "rectangle": random.randint(8, 32)}[name]
    left, top = random.randint(0, EASY_VQA_SIZE - width), random.randint(0, EASY_VQA_SIZE - height)
    right, bottom = left + width - 1, top + height - 1
    small, mask = Image.new("RGB", (EASY_VQA_SIZE,) * 2, canvas.pastel(random)), Image.new("L", (EASY_VQA_SIZE,) * 2)
    for image, fill in ((small, COLOURS[colour][0]), (mask, 255)):
        draw = ImageDraw.Draw(image)
        if name == "circle":
            draw.ellipse((left, top, right, bottom), fill=fill)
        elif name == "rectangle":
            draw.rectangle((left, top, right, bottom), fill=fill)
        else:
            draw.polygon([((left + right) / 2, top), (right, bottom), (left, bottom)], fill=fill)
    enlarged, covered = (
        np.asarray(image.resize((IMAGE_SIZE,) * 2, Image.Resampling.BICUBIC)) for image in (small, mask)
    )
    return Scene("easy-vqa", enlarged, [Thing(name, colour)], np.where(covered > 127, 0, -1))


KINDS: dict[str, Callable[[Random, tuple[str, ...]], Scene]] = {
    "single": _single,
    "several": _several,
    "corners": _corners,
    "counting": _counting,
    "shapes": _shapes,
    "shape corners": _shape_corners,
    "easy-vqa": _easy_vqa_like,
}


def _emoji_scene(
    kind: str,
    names: list[str],
    boxes: list[Box],
    random: Random,
    styles: tuple[str, ...],
    corners: list[str] | None = None,
) -> Scene:
    picture = Canvas(canvas.random_background(random))
    for index, (name, box) in enumerate(zip(names, boxes, strict=True)):
        _draw_glyph(picture, name, box, random, styles, index)
    things = [Thing(name, None, corner) for name, corner in zip(names, corners or [None] * len(names), strict=True)]
    return Scene(kind, picture.image(), things, picture.owner)


def _draw_glyph(
    picture: Canvas, name: str, box: Box, random: Random, styles: tuple[str, ...], index: int, exact: bool = False
) -> None:
    """Draw an emoji into `box`; unless `exact`, at the next smaller even size, of which resized copies are kept."""
    left, top, width, height = box
    pixels = canvas.glyph_pixels.__wrapped__ if exact else canvas.glyph_pixels
    if not exact:
        width = height = width // 2 * 2
    colour, alpha = pixels(random.choice(styles), name, width, height, random.random() < 0.15)
    picture.paste((left, top, width, height), colour, alpha, index)


def _shape_scene(
    kind: str,
    names: list[str],
    colours: list[str],
    boxes: list[Box],
    random: Random,
    corners: list[str] | None = None,
) -> Scene:
    shades = [canvas.shade(colour, random) for colour in colours]
    picture = Canvas(_contrasting_background(shades, random, light=not (len(names) == 1 and names[0] == "square")))
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


def _corner_box(corner: str, random: Random) -> Box:
    """A square box inside the quarter of the picture that `corner` names."""
    half = IMAGE_SIZE // 2
    size = random.randint(26, 44)
    top = random.randint(0, half - size) + (half if "bottom" in corner else 0)
    left = random.randint(0, half - size) + (half if "right" in corner else 0)
    return left, top, size, size


def _grid_boxes(count: int, random: Random) -> list[Box]:
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


def _free_boxes(count: int, sizes: tuple[int, int], random: Random) -> list[Box]:
    """Square boxes that do not overlap, each side between `sizes`; at most `count`, fewer where no room is left."""
    boxes: list[Box] = []
    for _ in range(12 * count):
        size = random.randint(*sizes)
        left, top = random.randint(0, IMAGE_SIZE - size), random.randint(0, IMAGE_SIZE - size)
        if all(left + size <= x or x + w <= left or top + size <= y or y + h <= top for x, y, w, h in boxes):
            boxes.append((left, top, size, size))
            if len(boxes) == count:
                break
    return boxes
