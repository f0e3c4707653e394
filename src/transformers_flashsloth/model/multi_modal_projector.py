"""The projector: pooling and two linears turn the patches of a view into tokens of the decoder."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_flashsloth import FlashSlothConfig
from .spatial_attention_pooling import SpatialAttentionPooling, SpatialAveragePooling


class FlashSlothMultiModalProjector(nn.Module):
    """Pooling, then two linears with an activation between: patches become decoder tokens."""

    def __init__(self, config: FlashSlothConfig):
        super().__init__()
        vision_width, width = config.vision_config.hidden_size, config.text_config.hidden_size
        if config.pooling == "attention":
            self.pooling = SpatialAttentionPooling(
                vision_width, config.window, config.patch_grid, config.pooling_dropout
            )
        else:  # without pooling the window is a single patch
            self.pooling = SpatialAveragePooling(config.window, config.patch_grid)
        self.linear_1 = nn.Linear(vision_width, width)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(width, width)

    def forward(self, patches: torch.Tensor, window: tuple[int, int] | None = None) -> torch.Tensor:
        """`(N*V, P, Dv)` to `(N*V, T, D)`; pooled in windows of `window` patches, by default the config's."""
        return self.linear_2(self.act(self.linear_1(self.pooling(patches, window))))
