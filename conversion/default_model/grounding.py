"""Grounding: where the embedded query module should look for an answer, and a loss that tells it.

Without it EmbQ finds a lone thing soon but takes very long to learn which of several a question is about. The rule:

- nearly all attention goes to the things that the answer is read from;
- where a thing is asked for that is not there, it goes to the background;
- to describe, each of the nine queries watches one ninth of the picture: it looks at a thing whose middle lies there,
  or at the ground if there is none;
- to count, nine heads of the last query do so, for the things that are meant. The number is then a sum of nine yes or
  no, and EmbQ's own output projection adds them up; a share of attention that grows with the number stays too vague to
  tell four from five.

Nothing makes nine queries differ by itself. Questions of the last kind do, and a loss on what their maps share.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from transformers_flashsloth.model.embedded_query import CrossAttention

from .questions import Turn
from .scene import GRID, Scene

MIN_COVER = 0.3
"""Share of a patch that a thing must cover for the patch to show it."""
NINTHS = 9
"""Parts of the picture that are counted apart, and queries or heads that watch one each."""
ENOUGH = 0.9
"""Share of all queries' attention that must fall on what a question is about."""
MAX_OVERLAP = 0.6
"""Mean share of attention that two queries may have in common."""
PLACES = np.stack(np.divmod(np.arange(GRID * GRID), GRID), -1)
"""Row and column of each patch, (144, 2)."""
_THIRDS = PLACES * 3 // GRID
PART = _THIRDS[:, 0] * 3 + _THIRDS[:, 1] == np.arange(NINTHS)[:, None]
"""Whether a patch lies in a ninth of the picture, (9, 144) bool."""


class Grounding(NamedTuple):
    """Patches that the queries of each run should look at; R runs a row. None where nobody knows."""

    looked_at: torch.Tensor
    """By all queries together, (B, R, 144) bool; none where each watches a ninth."""
    watched: torch.Tensor
    """By each of the nine queries, (B, R, 9, 144) bool; none where nothing is described."""
    counted: torch.Tensor
    """By each of the last query's first nine heads, (B, R, 9, 144) bool; none where nothing is counted."""
    numbers: torch.Tensor
    """Of counted things whose middle lies in each ninth, (B, R, 9) int64."""

    @property
    def asked(self) -> torch.Tensor:
        """The runs of which it is known, (B, R) bool."""
        return self.looked_at.any(-1) | self.watched.any((-2, -1))

    def in_windows(self, count: int) -> Grounding:
        """The same for `count` square windows instead of patches: one is looked at if a patch of it is."""
        side = math.isqrt(count)
        windows = [part.unflatten(-1, (side, -1, side, GRID // side)) for part in self[:-1]]
        return Grounding(*[part.any(-1).any(-2).flatten(-2) for part in windows], self.numbers)


def grounding_of(scenes: list[Scene], turns: list[list[Turn]], num_queries: int = NINTHS) -> Grounding:
    """Where to look for the answer to each turn about its scene; other than nine queries describe together."""
    looked_at = np.zeros((len(scenes), max(map(len, turns)), GRID * GRID), bool)
    watched, counted = np.zeros((2, *looked_at.shape[:2], NINTHS, GRID * GRID), bool)
    numbers = np.zeros((*looked_at.shape[:2], NINTHS), np.int64)
    for row, (scene, row_turns) in enumerate(zip(scenes, turns, strict=True)):
        if scene.owner is None:
            continue
        shown, middles = scene.covered() >= MIN_COVER, scene.middles()  # (144, things), (things,)
        for run, turn in enumerate(row_turns):
            about = list(turn.about)
            if turn.family == "count":
                counted[row, run] = _in_ninths(shown, middles, about)
                numbers[row, run] = PART[:, middles[about]].sum(-1)
            if turn.family == "describe" and num_queries == NINTHS:
                watched[row, run] = _in_ninths(shown, middles, about)
            else:
                looked_at[row, run] = shown[:, about].any(-1) if about else ~shown.any(-1)
    return Grounding(*map(torch.from_numpy, (looked_at, watched, counted, numbers)))


def _in_ninths(shown: np.ndarray, middles: np.ndarray, about: list[int]) -> np.ndarray:
    """What each ninth offers to who looks for the things `about`: the patches around a middle, or the ground."""
    offered = np.zeros((NINTHS, GRID * GRID), bool)
    for thing in about:
        near = np.abs(PLACES - PLACES[middles[thing]]).max(-1) <= 1
        near &= shown[:, thing] | (np.arange(GRID * GRID) == middles[thing])
        offered |= PART & near & PART[:, middles[thing], None]
    ground = PART & ~shown.any(-1)
    elsewhere = np.where(ground.any(-1, keepdims=True), ground, PART & ~shown[:, about].any(-1))
    return np.where(offered.any(-1, keepdims=True), offered, elsewhere)


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


def attention_shares(scores: torch.Tensor, runs: int) -> torch.Tensor:
    """Each head's share of each patch by query, (B, R, Q, H, 144), from EmbQ's `scores` (B, H, R*Q, 144)."""
    return scores.float().softmax(-1).unflatten(2, (runs, -1)).movedim(1, 3)


def grounding_loss(shares: torch.Tensor, grounding: Grounding) -> torch.Tensor:
    """Minus the logarithm of the attention that falls where it should, a scalar, for `shares` (B, R, Q, H, 144)."""
    looked_at, watched, counted, _ = grounding
    maps = shares.mean(3)  # (B, R, Q, 144)
    together = torch.einsum("brqp,brp->br", maps, looked_at.float()) / maps.shape[2]
    together = (together / ENOUGH).clamp(max=1)[..., None]
    by_query = torch.einsum("brqp,brqp->brq", maps[:, :, : watched.shape[2]], watched[:, :, : maps.shape[2]].float())
    by_head = torch.einsum("brhp,brhp->brh", shares[:, :, -1, : counted.shape[2]], counted.float())
    asked = looked_at.any(-1)[..., None], watched.any(-1)[:, :, : maps.shape[2]], counted.any(-1)
    return sum(_missed(hit, which) for hit, which in zip((together, by_query, by_head), asked, strict=True))


def _missed(hit: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """Mean over `asked` of minus the logarithm of the shares `hit`, both (B, R, n); 0 if nothing is asked."""
    return (-hit.clamp(min=1e-6).log() * asked).sum() / asked.sum().clamp(min=1)


def overlap(maps: torch.Tensor) -> torch.Tensor:
    """Mean over pairs of queries of the attention that they share, 0-1, for `maps` (..., Q, 144): (...)."""
    count = maps.shape[-2]
    shared = torch.minimum(maps[..., :, None, :], maps[..., None, :, :]).sum(-1)  # (..., Q, Q)
    return (shared.sum((-2, -1)) - maps.sum((-2, -1))) / (count * (count - 1))


def overlap_loss(maps: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """How far the overlap of runs exceeds `MAX_OVERLAP`, a scalar, for `maps` (B, R, Q, 144) and `asked` (B, R)."""
    return ((overlap(maps) - MAX_OVERLAP).clamp(min=0) * asked).sum() / asked.sum().clamp(min=1)
