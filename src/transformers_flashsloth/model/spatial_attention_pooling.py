"""Spatial attention pooling (SAP): every window of 3 x 3 patches becomes one token, weighted by learned scores."""

import torch
from torch import nn


class SpatialPooling(nn.Module):
    """
    Sums non-overlapping windows of a view's patch grid under `weights`, which subclasses compute.

    Args:
        window (`tuple[int, int]`): height and width of a window, in patches.
        grid (`tuple[int, int]`): rows and columns of the patches of a view.
    """

    def __init__(self, window: tuple[int, int], grid: tuple[int, int]):
        super().__init__()
        (self.height, self.width) = window
        self.rows, self.columns = grid[0] // window[0], grid[1] // window[1]

    def weights(self, patches: torch.Tensor) -> torch.Tensor:
        """
        The share of each patch in its window, summing to 1 over a window.

        Args:
            patches (`torch.Tensor`): patch features, row by row, `(views, P, Dv)`.

        Returns:
            `torch.Tensor`: float32, `(views, rows, window height, columns, window width)`, of rows and columns of
            windows.
        """
        raise NotImplementedError

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """
        Args:
            patches (`torch.Tensor`): patch features, row by row, `(views, P, Dv)`.

        Returns:
            `torch.Tensor`: one feature a window, row by row, `(views, T, Dv)`.
        """
        weights = self.weights(patches).to(patches.dtype)
        pooled = torch.einsum("vhiwj,vhiwjd->vhwd", weights, self._windows(patches))
        return pooled.flatten(1, 2)  # (views, T, Dv)

    def _windows(self, patches: torch.Tensor) -> torch.Tensor:
        """`(views, P, n)` seen as `(views, rows, window height, columns, window width, n)`, without a copy."""
        return patches.unflatten(1, (self.rows, self.height, self.columns, self.width))


class SpatialAttentionPooling(SpatialPooling):
    """
    Weights the patches of a window by learned scores (paper section 3.2; the paper's figure draws 2 x 2 windows, the
    released weights use 3 x 3).

    Args:
        width (`int`): Dv, the width of a patch feature.
        window (`tuple[int, int]`): height and width of a window, in patches.
        grid (`tuple[int, int]`): rows and columns of the patches of a view.
        dropout (`float`): dropout inside the scoring network, in training only.
    """

    def __init__(self, width: int, window: tuple[int, int], grid: tuple[int, int], dropout: float = 0.0):
        super().__init__(window, grid)
        self.hidden_proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.score_proj = nn.Linear(width, 1)

    def weights(self, patches: torch.Tensor) -> torch.Tensor:
        """See [`SpatialPooling.weights`]."""
        scores = self.score_proj(self.dropout(self.hidden_proj(patches).relu()))  # (views, P, 1)
        scores = self._windows(scores).squeeze(-1).float()  # (views, rows, height, columns, width)
        # The softmax runs over the two window axes together.
        shifted = scores - scores.amax(dim=(2, 4), keepdim=True).detach()
        exponentials = shifted.exp()
        return exponentials / exponentials.sum(dim=(2, 4), keepdim=True)


class SpatialAveragePooling(SpatialPooling):
    """Weights the patches of a window alike; without parameters. Windows of one patch leave the patches as they are."""

    def weights(self, patches: torch.Tensor) -> torch.Tensor:
        """See [`SpatialPooling.weights`]."""
        shape = (patches.shape[0], self.rows, self.height, self.columns, self.width)
        return torch.full(shape, 1 / (self.height * self.width), device=patches.device)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """See [`SpatialPooling.forward`]."""
        return self._windows(patches).mean(dim=(2, 4)).flatten(1, 2)  # (views, T, Dv)
