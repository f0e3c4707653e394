"""Dense supervision of the vision tower: what each patch shows, in which colour, and where the patch lies."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from .scene import COLOUR_LABELS, GRID, LABELS, UNLABELLED, PatchLabels, Scene


class DenseHeads(nn.Module):
    """Linear read-outs of what a patch shows, used in training only.

    Name, colour and middle of things are what questions are about. Row and column keep each patch's place in its
    features: nothing else would, and neither a corner nor a number of things could be told without it.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.name = nn.Linear(width, len(LABELS))
        self.colour = nn.Linear(width, len(COLOUR_LABELS))
        self.centre = nn.Linear(width, 2)
        self.row = nn.Linear(width, GRID)
        self.column = nn.Linear(width, GRID)

    def forward(self, patches: torch.Tensor, labels: PatchLabels) -> torch.Tensor:
        """Loss of `patches` (N, 144, Dv) against `labels`, (N, 144) each; a scalar."""
        patches = self.norm(patches)
        place = torch.arange(GRID * GRID, device=patches.device).expand(patches.shape[:2])
        targets = (
            (self.name, labels.names),
            (self.colour, labels.colours),
            (self.centre, labels.centres),
            (self.row, place // GRID),
            (self.column, place % GRID),
        )
        return sum(
            cross_entropy(head(patches).flatten(0, 1).float(), target.flatten(), ignore_index=UNLABELLED)
            for head, target in targets
        )

    @torch.no_grad()
    def accuracy(self, patches: torch.Tensor, names: torch.Tensor) -> torch.Tensor:
        """Share of the patches that show a thing, in `names` (N, 144), whose name is read off correctly; a scalar."""
        shown = names > 0
        return (self.name(self.norm(patches)).argmax(-1) == names)[shown].float().mean()


def dense_labels(scenes: list[Scene]) -> PatchLabels:
    """Labels of the patches of `scenes`, tensors of (N, 144) int64."""
    labels = [scene.patch_labels() for scene in scenes]
    return PatchLabels(*(torch.from_numpy(np.stack(arrays)) for arrays in zip(*labels, strict=True)))


def pixel_values(scenes: list[Scene]) -> torch.Tensor:
    """Pictures as the processor gives them: (N, V=1, 3, 96, 96) float32 in -1 to 1."""
    images = torch.from_numpy(np.stack([scene.image for scene in scenes]))
    return images.permute(0, 3, 1, 2).unsqueeze(1).float() / 127.5 - 1
