"""Where a model looks: how far its queries' maps overlap, and whether SAP keeps things or empty ground."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from .answering import Answerer, batches
from .grounding import MIN_COVER, overlap
from .held_out import Item


class Looking(NamedTuple):
    """Means over the questions of a family."""

    overlap: float
    """Attention that two of the queries share, 0-1; 1 if all look alike."""
    kept: float
    """SAP's weight on covered patches of mixed windows, 0-1; NaN without any."""
    covered: float
    """What plain averages would have there: the share of these windows' patches that are covered."""


@torch.no_grad()
def looking(ask: Answerer, items: list[Item]) -> Looking:
    """Measured on questions whose pictures are known; windows are mixed if things cover some of their patches."""
    overlaps, kept, area = [], [], []
    for batch in batches(items):
        explanation = ask.model.explain(**ask.inputs(batch))
        maps = explanation.query_attention.flatten(3)[:, -1]  # (N, Q, 144): each row has one picture and one run
        overlaps += overlap(maps).tolist()
        weights = explanation.pooling_weights[:, 0]  # (N, rows, columns)
        shown = torch.from_numpy(np.stack([item.covered for item in batch]) >= MIN_COVER).to(weights.device)
        window = ask.model.config.window
        weights, shown = (_windows(part, window) for part in (weights, shown.view_as(weights)))  # (windows, patches)
        mixed = shown.any(-1) & ~shown.all(-1)
        kept += (weights * shown).sum(-1)[mixed].tolist()
        area += shown.float().mean(-1)[mixed].tolist()
    return Looking(float(np.mean(overlaps)), _mean(kept), _mean(area))


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _windows(grid: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """`(N, rows, columns)` as `(windows, patches of a window)`."""
    height, width = window
    parts = grid.unflatten(2, (-1, width)).unflatten(1, (-1, height))  # (N, rows, height, columns, width)
    return parts.transpose(2, 3).flatten(3).flatten(0, 2)
