"""Grounding: where the embedded query module should look for an answer, and a loss that tells it.

Without it EmbQ finds single things soon but takes very long to learn which of several a question is about.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from transformers_flashsloth.embedded_query import CrossAttention

from .questions import Turn
from .scenes import GRID, Scene

MIN_COVER = 0.3
"""Share of a patch that a thing must cover for the patch to show it."""


def grounding_targets(scenes: list[Scene], turns: list[list[Turn]]) -> torch.Tensor:
    """Which patches the answer to each turn is read from, (B, R, 144) bool, R the turns of the longest row.

    Nothing is marked where nobody knows, where there is nothing to see, and for turns that a row does not have.
    """
    targets = np.zeros((len(scenes), max(map(len, turns)), GRID * GRID), bool)
    for row, (scene, row_turns) in enumerate(zip(scenes, turns, strict=True)):
        if scene.owner is not None:
            shows = scene.covered() >= MIN_COVER
            for run, turn in enumerate(row_turns):
                targets[row, run] = shows[:, turn.about].any(-1)
    return torch.from_numpy(targets)


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
    """Minus the log of the attention that a run's queries and heads together pay to its targets; a scalar.

    `scores` (B, H, R*Q, 144) are those of EmbQ's image attention, one image a row; `targets` (B, R, 144).
    """
    runs = scores.float().softmax(-1).unflatten(2, (targets.shape[1], -1))  # (B, H, R, Q, 144)
    attention = runs.mean((1, 3))  # (B, R, 144)
    paid = (attention * targets).sum(-1)[targets.any(-1)]
    return -paid.clamp(min=1e-6).log().mean()
