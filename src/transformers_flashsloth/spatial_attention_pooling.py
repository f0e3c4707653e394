"""Spatial attention pooling (SAP): every window of 3 x 3 patches becomes one token, weighted by learned scores."""

import torch
from torch import nn


class SpatialAttentionPooling(nn.Module):
    """
    Pools non-overlapping square windows of a view's patch grid (paper section 3.2; the paper's figure draws 2 x 2
    windows, the released weights use 3 x 3).

    Args:
        width (`int`): Dv, the width of a patch feature.
        window (`int`): side of a window.
        dropout (`float`): dropout inside the scoring network, in training only.
    """

    def __init__(self, width: int, window: int, dropout: float = 0.0):
        super().__init__()
        self.window = window
        self.hidden_proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.score_proj = nn.Linear(width, 1)

    def weights(self, patches: torch.Tensor) -> torch.Tensor:
        """
        The share of each patch in its window, summing to 1 over a window.

        Args:
            patches (`torch.Tensor`): patch features of square views, row by row, `(views, P, Dv)`.

        Returns:
            `torch.Tensor`: float32, `(views, side, window, side, window)` with `side = sqrt(P) / window`.
        """
        scores = self.score_proj(self.dropout(self.hidden_proj(patches).relu()))  # (views, P, 1)
        scores = self._windows(scores).squeeze(-1).float()  # (views, side, window, side, window)
        # The softmax runs over the two window axes together.
        shifted = scores - scores.amax(dim=(2, 4), keepdim=True).detach()
        exponentials = shifted.exp()
        return exponentials / exponentials.sum(dim=(2, 4), keepdim=True)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """
        Args:
            patches (`torch.Tensor`): patch features of square views, row by row, `(views, P, Dv)`.

        Returns:
            `torch.Tensor`: one feature a window, row by row, `(views, T, Dv)`.
        """
        weights = self.weights(patches).to(patches.dtype)
        pooled = torch.einsum("vhiwj,vhiwjd->vhwd", weights, self._windows(patches))
        return pooled.flatten(1, 2)  # (views, T, Dv)

    def _windows(self, patches: torch.Tensor) -> torch.Tensor:
        """`(views, P, width)` seen as `(views, side, window, side, window, width)`, without a copy."""
        grid = round(patches.shape[1] ** 0.5)
        side = grid // self.window
        return patches.unflatten(1, (side, self.window, side, self.window))
