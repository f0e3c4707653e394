"""Scenes in which the patches of a window differ in worth: small things on busy grounds, and things that touch."""

from __future__ import annotations

from random import Random

from .canvas import IMAGE_SIZE, Box
from .drawing import emoji_scene, free_boxes, shape_scene
from .grounds import busy_background
from .scene import Scene
from .vocabulary import COLOURS, EMOJI, SHAPES

SMALL = (16, 24)
"""Least and largest side of a small thing, pixels."""


def cluttered(random: Random, styles: tuple[str, ...]) -> Scene:
    """One to six small things, now and then one of them larger, on a busy ground."""
    boxes = free_boxes(1, (26, 44), random) if random.random() < 0.25 else []
    return _scene("clutter", free_boxes(random.randint(1, 6), SMALL, random, boxes), random, styles)


def touching(random: Random, styles: tuple[str, ...]) -> Scene:
    """Two to five things of which each touches another, on a busy ground."""
    return _scene("touching", _touching_boxes(random.randint(2, 5), random), random, styles)


def _scene(kind: str, boxes: list[Box], random: Random, styles: tuple[str, ...]) -> Scene:
    """Emoji, or else shapes, in `boxes`; the first is there more than once now and then."""
    copies = random.choice((1, 1, 2, 3)) if len(boxes) > 1 else 1
    if random.random() < 0.35:
        shapes = [random.choice(SHAPES) for _ in boxes] if random.random() < 0.4 else random.sample(SHAPES, len(boxes))
        colours = random.sample(tuple(COLOURS), len(boxes))
        return shape_scene(kind, shapes, colours, boxes, random, ground=busy_background)
    names = random.sample(tuple(EMOJI), len(boxes))
    names[:copies] = [names[0]] * len(names[:copies])
    return emoji_scene(kind, names, boxes, random, styles, ground=busy_background(random, []))


def _touching_boxes(count: int, random: Random) -> list[Box]:
    """Square boxes that form one heap: each lies against another, a pixel or two over its edge, and over no third."""
    boxes: list[Box] = []
    while len(boxes) < count:
        boxes = free_boxes(1, (18, 34), random)
        for _ in range(40 * count):
            left, top, side, _ = random.choice(boxes)
            size, along, over = random.randint(18, 34), random.randint(-8, 8), random.randint(1, 2)
            x, y = random.choice(
                (
                    (left + side - over, top + along),
                    (left - size + over, top + along),
                    (left + along, top + side - over),
                    (left + along, top - size + over),
                )
            )
            inside = 0 <= x <= IMAGE_SIZE - size and 0 <= y <= IMAGE_SIZE - size
            if inside and all(_apart((x, y, size, size), box, 2) for box in boxes):
                boxes.append((x, y, size, size))
                if len(boxes) == count:
                    break
    return boxes


def _apart(a: Box, b: Box, over: int) -> bool:
    """Whether two boxes overlap by at most `over` pixels one way."""
    across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    down = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return min(across, down) <= over
