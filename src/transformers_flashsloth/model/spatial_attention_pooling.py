"""
Spatial attention pooling (SAP): every window of 3 x 3 patches becomes one token, weighted by learned scores.

A patch's score is its own, whatever window it lies in, so that windows of another size pool as well.
"""

import torch
from torch import nn


def square_windows(grid: tuple[int, int]) -> dict[int, tuple[int, int]]:
    """The square windows that tile a grid of patches, by the tokens that they leave of it: `{81: (3, 3), ...}`."""
    rows, columns = grid
    sides = [side for side in range(1, min(grid) + 1) if rows % side == columns % side == 0]
    return {rows // side * (columns // side): (side, side) for side in sides}


class SpatialPooling(nn.Module):
    """
    Sums non-overlapping windows of a view's patch grid under `weights`, which subclasses compute.

    Args:
        window (`tuple[int, int]`): height and width of a window, in patches, where a call names no other.
        grid (`tuple[int, int]`): rows and columns of the patches of a view.
    """

    def __init__(self, window: tuple[int, int], grid: tuple[int, int]):
        super().__init__()
        self.window, self.grid = window, grid

    def weights(self, patches: torch.Tensor, window: tuple[int, int] | None = None) -> torch.Tensor:
        """
        The share of each patch in its window, summing to 1 over a window. Patch features `(views, P, Dv)`, row by row,
        to float32 `(views, rows, window height, columns, window width)`, of rows and columns of windows. Another
        `window` than the module's own has to tile the grid.
        """
        raise NotImplementedError

    def forward(self, patches: torch.Tensor, window: tuple[int, int] | None = None) -> torch.Tensor:
        """Patches `(views, P, Dv)` to one feature a window, row by row, `(views, T, Dv)`; see `weights`."""
        weights = self.weights(patches, window).to(patches.dtype)
        pooled = torch.einsum("vhiwj,vhiwjd->vhwd", weights, self._windows(patches, window))
        return pooled.flatten(1, 2)  # (views, T, Dv)

    def _windows(self, patches: torch.Tensor, window: tuple[int, int] | None) -> torch.Tensor:
        """`(views, P, n)` seen as `(views, rows, window height, columns, window width, n)`, without a copy."""
        (rows, columns), (height, width) = self.grid, window or self.window
        return patches.unflatten(1, (rows // height, height, columns // width, width))


class SpatialAttentionPooling(SpatialPooling):
    """
    Weights the patches of a window by learned scores (paper section 3.2; the paper's figure draws 2 x 2 windows, the
    released weights use 3 x 3). `width` is that of a patch feature, Dv; `dropout` is inside the scoring network, in
    training only.
    """

    def __init__(self, width: int, window: tuple[int, int], grid: tuple[int, int], dropout: float = 0.0):
        super().__init__(window, grid)
        self.hidden_proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.score_proj = nn.Linear(width, 1)

    def weights(self, patches: torch.Tensor, window: tuple[int, int] | None = None) -> torch.Tensor:
        """See [`SpatialPooling.weights`]."""
        scores = self.score_proj(self.dropout(self.hidden_proj(patches).relu()))  # (views, P, 1)
        scores = self._windows(scores, window).squeeze(-1).float()  # (views, rows, height, columns, width)
        # The softmax runs over the two window axes together.
        shifted = scores - scores.amax(dim=(2, 4), keepdim=True).detach()
        exponentials = shifted.exp()
        return exponentials / exponentials.sum(dim=(2, 4), keepdim=True)


class SpatialAveragePooling(SpatialPooling):
    """Weights the patches of a window alike; without parameters. Windows of one patch leave the patches as they are."""

    def weights(self, patches: torch.Tensor, window: tuple[int, int] | None = None) -> torch.Tensor:
        """See [`SpatialPooling.weights`]."""
        height, width = window or self.window
        shape = self._windows(patches, window).shape[:-1]
        return torch.full(shape, 1 / (height * width), device=patches.device)

    def forward(self, patches: torch.Tensor, window: tuple[int, int] | None = None) -> torch.Tensor:
        """See [`SpatialPooling.forward`]."""
        return self._windows(patches, window).mean(dim=(2, 4)).flatten(1, 2)  # (views, T, Dv)
