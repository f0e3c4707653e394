"""What a scene is: a picture and the truth about it: which things it shows, where, and which patch shows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .canvas import IMAGE_SIZE
from .vocabulary import COLOURS, EMOJI, PLACES, SHAPES

PATCH_SIZE = 8
GRID = IMAGE_SIZE // PATCH_SIZE
LABELS = ("background", *EMOJI, *SHAPES)
"""What a patch can show, by class index."""
COLOUR_LABELS = ("background", *COLOURS)
UNLABELLED = -100
CLEAR = 2
"""Least distance in pixels of a middle from the edge between two places."""


@dataclass(frozen=True)
class Thing:
    """One emoji or coloured shape of a scene."""

    name: str
    colour: str | None = None
    """Name of a shape's colour; None for an emoji."""
    corner: str | None = None

    @property
    def words(self) -> str:
        """What to call it: "cat", "red star"."""
        return f"{self.colour} {self.name}" if self.colour else self.name


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

    def places(self) -> list[str | None]:
        """One of `PLACES` for each thing: its corner, or else the ninth in which its middle lies.

        None where nobody knows, or within 2 pixels of another ninth.
        """
        return [thing.corner or self._ninth(index) for index, thing in enumerate(self.things)]

    def _ninth(self, index: int) -> str | None:
        if self.owner is None:
            return None
        middle = [axis.mean() + 0.5 for axis in np.nonzero(self.owner == index)]
        if any(abs(at - edge) < CLEAR for at in middle for edge in (IMAGE_SIZE / 3, IMAGE_SIZE * 2 / 3)):
            return None
        row, column = (int(at * 3 / IMAGE_SIZE) for at in middle)
        return tuple(PLACES)[row * 3 + column]

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
