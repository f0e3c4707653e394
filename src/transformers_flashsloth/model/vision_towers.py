"""What differs from vision tower to vision tower: tokens that are no patches, final norms, what images look like."""

from copy import deepcopy
from math import isqrt

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .decoders import ACCEPTANCE

# The tower of the released FlashSloth-3.2B.
SIGLIP_SO400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 384,
    "vision_use_head": False,
}
# Behind the last layer; features are read before them.
FINAL_NORMS = ("post_layernorm", "layernorm", "norm", "rms_norm")
# Switches of heads that read them.
HEADS = ("use_head", "vision_use_head")
# Takes patches, in rows and columns, and not images.
TAKES_PATCHES = ("siglip2_vision_model",)
# Positions are computed for any image; these have no switch for it.
INTERPOLATES_ALWAYS = ("dinov2", "dinov2_with_registers", "dinov3_vit", "siglip2_vision_model")


def as_pair(size: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    """A side, or a height and a width, as a height and a width. Raises ValueError for anything else."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2:
        raise ValueError(f"A size is a number or a height and a width, got {size}.")
    return pair


def native_view_size(config: PreTrainedConfig) -> int | list[int] | tuple[int, ...]:
    """Side, or height and width, in pixels, of the images that the tower was made for."""
    size = getattr(config, "image_size", None)
    if size is not None:
        return size
    if getattr(config, "num_patches", None) is None:
        raise tower_refusal(config, "its config does not say `image_size`")
    return isqrt(config.num_patches) * config.patch_size  # SigLIP 2


def build_tower(
    config: PreTrainedConfig, num_layers: int, view_size: tuple[int, int], grid: tuple[int, int]
) -> PreTrainedModel:
    """
    Builds the first `num_layers` layers of the vision tower of `config`, with new weights and nothing behind them, for
    views of `view_size`, height and width in pixels, that are a `grid` of patches, rows and columns. Raises ValueError,
    with the reason, if the tower's features are no grid of patches.
    """
    kept = config_of_layers(config, num_layers)
    try:
        tower = cut_tower(AutoModel.from_config(kept), config)
    except TypeError as error:
        size, reason = native_view_size(config), f"it cannot be built ({error})"
        if not isinstance(size, int):
            reason = (
                f"it cannot be built with an `image_size` of {size} ({error}). Give it one number, and name height and "
                "width in FlashSlothConfig's own `image_size`"
            )
        raise tower_refusal(config, reason) from error
    for known in ACCEPTANCE:
        known.check_tower(config, kept, view_size, grid)
    return tower


def config_of_layers(config: PreTrainedConfig, num_layers: int) -> PreTrainedConfig:
    """The config of a tower's first `num_layers` layers, without a head."""
    config = deepcopy(config)
    config.num_hidden_layers = num_layers
    for name in HEADS:
        setattr(config, name, False)
    return config


def cut_tower(tower: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Takes what stands behind the last layer off a tower, gives it the config of the whole one, and returns it."""
    # Upstream's switches, such as that of the attention, find a part by the identity of its config.
    kept = tower.config
    config._attn_implementation = kept._attn_implementation
    for module in tower.modules():
        if getattr(module, "config", None) is kept:
            module.config = config
    for name in FINAL_NORMS:
        if isinstance(getattr(tower, name, None), nn.Module):
            setattr(tower, name, nn.Identity())
    if isinstance(getattr(tower, "pooler", None), nn.Module):
        tower.pooler = None
    for name, parameter in tower.named_parameters():
        if name.endswith("mask_token"):
            parameter.requires_grad_(False)  # of pre-training alone
    return tower


def read_patches(
    tower: PreTrainedModel, views: torch.Tensor, grid: tuple[int, int], **kwargs
) -> tuple[torch.Tensor, BaseModelOutputWithPooling]:
    """
    Runs a tower that `build_tower` made on `(views, 3, H, W)`, each of a `grid` of patches, rows and columns. Returns
    the patch features, row by row, `(views, P, Dv)`, and all that the tower returned.

    Raises:
        ValueError: if the tower gives fewer features than there are patches, or cannot take pixels as it is quantised.
    """
    kind = tower.config.model_type
    num_patches = grid[0] * grid[1]
    if kind in TAKES_PATCHES:
        weight = tower.get_input_embeddings().weight
        if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
            raise ValueError(
                "The `patch_embedding` of the vision tower is quantised, and transformers would cast the pixels to the "
                "bytes of its weight: leave it as it is (`from_pretrained` with a `quantization_config` does)."
            )
        images, inputs = _as_patches(views, grid, tower.config.patch_size)
    else:
        images, inputs = views, {}
        native = getattr(tower.config, "image_size", None)
        native = (native, native) if isinstance(native, int) else tuple(native)
        if native != tuple(views.shape[2:]) and kind not in INTERPOLATES_ALWAYS:
            inputs["interpolate_pos_encoding"] = True
    outputs = tower(images, **inputs, return_dict=True, **kwargs)
    features = outputs.last_hidden_state  # (views, class and register tokens + P, Dv)
    if features.ndim != 3 or len(features) != len(views) or features.shape[1] < num_patches:
        shape = tuple(features.shape)
        raise tower_refusal(
            tower.config, f"its features have the shape {shape} for {len(views)} views of {grid[0]}x{grid[1]} patches"
        )
    return features[:, -num_patches:], outputs


def _as_patches(views: torch.Tensor, grid: tuple[int, int], side: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What SigLIP 2 takes: patches `(views, P, side * side * 3)`, all of them visible, and the grid of each view."""
    rows, columns = grid
    views = views[:, :, : rows * side, : columns * side]
    patches = views.unflatten(2, (rows, side)).unflatten(4, (columns, side))  # (views, 3, rows, side, columns, side)
    patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    shapes = torch.tensor([grid], device=views.device).expand(len(views), 2)
    visible = torch.ones(patches.shape[:2], dtype=torch.long, device=views.device)
    return patches, {"pixel_attention_mask": visible, "spatial_shapes": shapes}


def tower_refusal(config: PreTrainedConfig, reason: str) -> ValueError:
    """What to raise for a vision tower that FlashSloth cannot be built on."""
    return ValueError(f"FlashSloth cannot be built on a vision tower of the type {config.model_type!r}: {reason}.")
