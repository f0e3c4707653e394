"""An image as vLLM's encoder cache keeps it: each visual token beside the patches that it was pooled from."""

import torch

from ..model.configuration_flashsloth import FlashSlothConfig


def pack(tokens: torch.Tensor, patches: torch.Tensor, config: FlashSlothConfig) -> torch.Tensor:
    """Visual tokens `(N, V*T, D)` and un-pooled patches `(N, V*P, Dv)` as `(N, V*T, D + w*w*Dv)`, w*w a window."""
    (rows, columns), (height, width) = config.patch_grid, config.window
    windows = patches.unflatten(1, (-1, rows // height, height, columns // width, width))
    windows = windows.permute(0, 1, 2, 4, 3, 5, 6).reshape(*tokens.shape[:2], -1)  # (N, V*T, w*w*Dv)
    return torch.cat([tokens, windows.to(tokens.dtype)], dim=-1)


def unpack(packed: torch.Tensor, config: FlashSlothConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """The visual tokens and patches that were packed."""
    (rows, columns), (height, width) = config.patch_grid, config.window
    tokens, windows = packed.tensor_split([config.text_config.hidden_size], dim=-1)
    windows = windows.unflatten(2, (height, width, -1)).unflatten(1, (-1, rows // height, columns // width))
    return tokens, windows.permute(0, 1, 2, 4, 3, 5, 6).flatten(1, 5)  # (N, V*T, D), (N, V*P, Dv)
