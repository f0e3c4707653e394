"""Grounding: where each query of the embedded query module should look, and a loss that tells it.

Without it EmbQ finds a lone thing soon but takes very long to learn which of several a question is about. The rule:

- all queries look at the things that the answer is read from;
- where a thing is asked for that is not there, they look at the background;
- to count, each of the nine queries has a ninth of the picture, and looks at what is counted there or else at the
  background, so that the number of queries that found something is the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from transformers_flashsloth.embedded_query import CrossAttention

from .canvas import IMAGE_SIZE
from .questions import Turn
from .scenes import GRID, Scene

MIN_COVER = 0.3
"""Share of a patch that a thing must cover for the patch to show it."""
CELLS = 3
"""Cells along each side of the picture, one cell a query."""


def grounding_targets(scenes: list[Scene], turns: list[list[Turn]]) -> torch.Tensor:
    """Which patches each query of a run should look at, (B, R, Q, 144) bool, R the turns of the longest row.

    Nothing is marked in pictures whose contents nobody knows, and for turns that a row does not have.
    """
    targets = np.zeros((len(scenes), max(map(len, turns)), CELLS**2, GRID * GRID), bool)
    for row, (scene, row_turns) in enumerate(zip(scenes, turns, strict=True)):
        if scene.owner is not None:
            shown = scene.covered() >= MIN_COVER  # (144, things)
            cells = [_cell_of(scene.owner == index) for index in range(len(scene.things))]
            for run, turn in enumerate(row_turns):
                targets[row, run] = _targets_of(turn, shown, cells)
    return torch.from_numpy(targets)


def _targets_of(turn: Turn, shown: np.ndarray, cells: list[int]) -> np.ndarray:
    """Targets of the queries of one turn, (Q, 144) bool, or (144,) where all are the same."""
    background = ~shown.any(-1)
    if turn.family != "count":
        return shown[:, turn.about].any(-1) if turn.about else background
    targets = np.tile(background, (CELLS**2, 1))
    for cell in {cells[index] for index in turn.about}:
        there = [index for index in turn.about if cells[index] == cell]
        targets[cell] = shown[:, there].any(-1)
    return targets


def _cell_of(mask: np.ndarray) -> int:
    """Cell, in reading order, in which the middle of what `mask` (96, 96) marks lies."""
    rows, columns = np.nonzero(mask)
    side = IMAGE_SIZE / CELLS
    return int(rows.mean() // side) * CELLS + int(columns.mean() // side)


@contextmanager
def recorded_scores(attention: CrossAttention) -> Iterator[list[torch.Tensor]]:
    """Collects the scores that `attention` computes inside the `with` block."""
    recorded = []
    compute = attention.scores

    def scores(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        recorded.append(compute(queries, keys))
        return recorded[-1]

    attention.scores = scores
    try:
        yield recorded
    finally:
        del attention.scores


def grounding_loss(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Minus the log of the attention that the heads of a query together pay to its targets; a scalar.

    `scores` (B, H, R*Q, 144) are those of EmbQ's image attention, one image a row; `targets` (B, R, Q, 144).
    """
    attention = scores.float().softmax(-1).mean(1)  # (B, R*Q, 144)
    targets = targets.flatten(1, 2)
    paid = (attention * targets).sum(-1)[targets.any(-1)]
    return -paid.clamp(min=1e-6).log().mean()
