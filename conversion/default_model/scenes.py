"""Which random scenes there are.

A scene is drawn from a `random.Random`; the same state gives the same scene. `scene_of(kind, random)` makes one.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from . import canvas
from .assets import TRAINED_STYLES
from .canvas import IMAGE_SIZE, Canvas
from .clutter import cluttered, touching
from .drawing import corner_box, draw_glyph, emoji_scene, free_boxes, grid_boxes, shape_scene
from .scene import Scene, Thing
from .vocabulary import COLOURS, CORNERS, EASY_VQA_COLOURS, EASY_VQA_SHAPES, EMOJI, SHAPES

EASY_VQA_SIZE = 64


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
    draw_glyph(picture, name, box, random, styles, 0, exact=True)
    return Scene("single", picture.image(), [Thing(name)], picture.owner)


def _several(random: Random, styles: tuple[str, ...]) -> Scene:
    """Two to five emoji, mostly different, anywhere."""
    boxes = free_boxes(random.randint(2, 5), (24, 48), random)
    names = random.sample(tuple(EMOJI), len(boxes))
    if len(names) > 1 and random.random() < 0.25:
        names[1] = names[0]
    return emoji_scene("several", names, boxes, random, styles)


def _corners(random: Random, styles: tuple[str, ...]) -> Scene:
    """Three or four emoji (now and then two), one to a corner; the others stay empty."""
    corners = random.sample(CORNERS, random.choice((2, 3, 4, 4, 4)))
    names = random.sample(tuple(EMOJI), len(corners))
    return emoji_scene("corners", names, [corner_box(corner, random) for corner in corners], random, styles, corners)


def _counting(random: Random, styles: tuple[str, ...]) -> Scene:
    """One to six copies of one thing among up to three others."""
    copies, others = random.randint(1, 6), random.randint(0, 3)
    if random.random() < 0.3:
        first, *rest = random.sample(SHAPES[:3] + SHAPES[4:], 1 + others)
        names = [first] * copies + rest
        boxes = grid_boxes(len(names), random)
        colours = [random.choice(tuple(COLOURS)) for _ in boxes]
        return shape_scene("counting", names, colours, boxes, random)
    first, *rest = random.sample(tuple(EMOJI), 1 + others)
    names = [first] * copies + rest
    return emoji_scene("counting", names, grid_boxes(len(names), random), random, styles)


def _shapes(random: Random, styles: tuple[str, ...]) -> Scene:
    """One to four shapes, each of its own colour."""
    count = random.choice((1, 2, 2, 3, 3, 4))
    boxes = free_boxes(count, (20, 72 if count == 1 else 44), random)
    names = [random.choice(SHAPES) for _ in boxes] if random.random() < 0.4 else random.sample(SHAPES, len(boxes))
    return shape_scene("shapes", names, random.sample(tuple(COLOURS), len(boxes)), boxes, random)


def _shape_corners(random: Random, styles: tuple[str, ...]) -> Scene:
    """A shape in each of three or four corners."""
    corners = random.sample(CORNERS, random.choice((3, 4)))
    boxes = [corner_box(corner, random) for corner in corners]
    names, colours = random.sample(SHAPES, len(boxes)), random.sample(tuple(COLOURS), len(boxes))
    return shape_scene("shape corners", names, colours, boxes, random, corners)


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
    "clutter": cluttered,
    "touching": touching,
}
