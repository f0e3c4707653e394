"""Reading: what the last query found of a number, and losses that make it plain to read.

Nine heads that look where they should are not yet a number: whether a thing or ground was seen must be one direction
in what EmbQ adds to the query, as long for a shape on stripes as for an emoji on white, or else a sum of nine is off by
one. The loss on answers says so late, in one token; two linear readers say it for each ninth. They learn along and are
thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.functional import mse_loss

from transformers_flashsloth import FlashSlothForConditionalGeneration

from .grounding import NINTHS, Grounding

FIRST_LEARN = 80
"""Batches in which the readers learn and nothing learns from them."""
MIDDLE = 3.0
"""What the reader of numbers begins with: about the mean of the numbers asked for."""


@contextmanager
def number_read(model: FlashSlothForConditionalGeneration) -> Iterator[dict[str, torch.Tensor]]:
    """What the block's last forward made: "update", (B, R*Q, D), which EmbQ adds to the queries, and "hidden",
    (B, L, D), what the decoder's next layer makes of them."""
    read: dict[str, torch.Tensor] = {}
    layer = model.model.language_model.layers[model.config.embq_layers[0]]
    hooks = [
        model.model.embq.up_proj.register_forward_hook(lambda module, args, output: read.update(update=output)),
        layer.register_forward_hook(
            lambda module, args, output: read.update(hidden=output[0] if isinstance(output, tuple) else output)
        ),
    ]
    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()


class NumberReaders(nn.Module):
    """Reads from the last query, `width` wide, which ninths show a counted thing, and how many there are in all."""

    def __init__(self, width: int):
        super().__init__()
        self.ninths = nn.Linear(width, NINTHS)
        self.number = nn.Linear(width, 1)
        for reader in (self.ninths, self.number):  # at nothing, so that a run does not hang on who drew random numbers
            nn.init.zeros_(reader.weight)
            nn.init.zeros_(reader.bias)
        self.register_buffer("scales", torch.zeros(2))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(
        self, update: torch.Tensor, hidden: torch.Tensor, is_query: torch.Tensor, grounding: Grounding
    ) -> dict[str, torch.Tensor]:
        """Mean squared errors "ninths" and "number", scalars, or neither where nothing is counted.

        `update` (B, R*Q, D) and `hidden` (B, L, D) are those of `number_read`, `is_query` (B, L) says where queries
        stand.
        """
        counted = grounding.counted.any(-1).any(-1)  # (B, R)
        if not counted.any():
            return {}
        runs = counted.shape[1]
        queries = update.shape[1] // runs
        last = update.unflatten(1, (runs, queries))[:, :, -1][counted].float()  # (n, D)
        behind = _at_last(hidden, is_query, runs, queries)[counted].float()
        if not self.calls:
            self.scales.copy_(torch.stack([last.detach().std(), behind.detach().std()]))
        self.calls += 1
        if self.calls <= FIRST_LEARN:
            last, behind = last.detach(), behind.detach()
        numbers = grounding.numbers[counted]  # (n, 9)
        ninths = self.ninths(last / self.scales[0])
        number = self.number(behind / self.scales[1]).squeeze(-1) + MIDDLE
        return {
            "ninths": mse_loss(ninths, numbers.clamp(max=1).float()),
            "number": mse_loss(number, numbers.sum(-1).float()),
        }


def _at_last(hidden: torch.Tensor, is_query: torch.Tensor, runs: int, queries: int) -> torch.Tensor:
    """`hidden` (B, L, D) at the last query of each run, (B, R, D); anything for runs that a row lacks."""
    ends = queries * torch.arange(1, runs + 1, device=hidden.device)
    positions = (is_query.cumsum(1)[..., None].eq(ends) & is_query[..., None]).int().argmax(1)  # (B, R)
    return hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))
