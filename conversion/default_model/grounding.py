"""Grounding: how much the embedded query module should look where, and a loss that tells it.

Without it EmbQ finds a lone thing soon but takes very long to learn which of several a question is about. The rule:

- all attention goes to the things that the answer is read from;
- where a thing is asked for that is not there, it goes to the background;
- to count n things, a share of n / (n + 4) goes to their middles. A softmax that scores each middle alike and all else
  alike gives such shares by itself, and the number can be read from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from transformers_flashsloth.embedded_query import CrossAttention

from .questions import Turn
from .scenes import GRID, Scene

MIN_COVER = 0.3
"""Share of a patch that a thing must cover for the patch to show it."""
UNCOUNTED = 4
"""What is looked at besides the things counted, in things."""


class Grounding(NamedTuple):
    """What the queries of each run should look at, and how much; R runs a row."""

    targets: torch.Tensor
    """Patches, (B, R, 144) bool; none where nobody knows and for runs that a row does not have."""
    share: torch.Tensor
    """Of their attention, (B, R) float32 in 0-1."""


def grounding_of(scenes: list[Scene], turns: list[list[Turn]]) -> Grounding:
    """Where to look for the answer to each turn about its scene."""
    targets = np.zeros((len(scenes), max(map(len, turns)), GRID * GRID), bool)
    share = np.ones(targets.shape[:2], np.float32)
    for row, (scene, row_turns) in enumerate(zip(scenes, turns, strict=True)):
        if scene.owner is not None:
            shown, middles = scene.covered() >= MIN_COVER, scene.middles()  # (144, things), (things,)
            for run, turn in enumerate(row_turns):
                if turn.family == "count":
                    targets[row, run, middles[list(turn.about)]] = True
                    share[row, run] = len(turn.about) / (len(turn.about) + UNCOUNTED)
                else:
                    targets[row, run] = shown[:, turn.about].any(-1) if turn.about else ~shown.any(-1)
    return Grounding(torch.from_numpy(targets), torch.from_numpy(share))


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


def grounding_loss(scores: torch.Tensor, grounding: Grounding) -> torch.Tensor:
    """Cross-entropy of the share of attention that the heads of a query together pay to its targets; a scalar.

    `scores` (B, H, R*Q, 144) are those of EmbQ's image attention, one image a row.
    """
    targets, share = grounding
    attention = scores.float().softmax(-1).mean(1).unflatten(1, (targets.shape[1], -1))  # (B, R, Q, 144)
    paid = (attention * targets[:, :, None]).sum(-1).clamp(1e-6, 1 - 1e-6)  # (B, R, Q)
    share = share[:, :, None]
    missed = -share * paid.log() - (1 - share) * (-paid).log1p()
    return missed[targets.any(-1)].mean()
