"""Dense supervision of the vision tower: what covers each patch, and in which colour."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from .scenes import COLOUR_LABELS, LABELS, UNLABELLED, Scene


class DenseHeads(nn.Module):
    """Linear read-outs of a patch's label and colour; used in training only."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.name = nn.Linear(width, len(LABELS))
        self.colour = nn.Linear(width, len(COLOUR_LABELS))

    def forward(self, patches: torch.Tensor, names: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
        """Loss of `patches` (N, 144, Dv) against `names` and `colours` (N, 144), a scalar."""
        patches = self.norm(patches)
        return sum(
            cross_entropy(head(patches).flatten(0, 1).float(), labels.flatten(), ignore_index=UNLABELLED)
            for head, labels in ((self.name, names), (self.colour, colours))
        )

    @torch.no_grad()
    def accuracy(self, patches: torch.Tensor, names: torch.Tensor) -> torch.Tensor:
        """Share of the patches that show a thing, in `names` (N, 144), whose label is read off correctly; a scalar."""
        shown = names > 0
        return (self.name(self.norm(patches)).argmax(-1) == names)[shown].float().mean()


def dense_labels(scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """Label and colour indices of the patches of `scenes`, each (N, 144) int64."""
    names, colours = zip(*(scene.patch_labels() for scene in scenes), strict=True)
    return torch.from_numpy(np.stack(names)), torch.from_numpy(np.stack(colours))


def pixel_values(scenes: list[Scene]) -> torch.Tensor:
    """Pictures as the processor gives them: (N, V=1, 3, 96, 96) float32 in -1 to 1."""
    images = torch.from_numpy(np.stack([scene.image for scene in scenes]))
    return images.permute(0, 3, 1, 2).unsqueeze(1).float() / 127.5 - 1
