"""Which vision towers FlashSloth can be built on: refused by name, by what a config says, or by trying."""

import torch
from transformers import MODEL_MAPPING, AutoModel, PreTrainedConfig

from ..model.vision_towers import TAKES_PATCHES, config_of_layers, read_patches, tower_refusal

# Families with a patch grid whose class, register and distillation tokens stand before the patches. What is not here
# is tried out at construction.
KNOWN = (
    "aimv2_vision_model",
    "clip_vision_model",
    "deit",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "siglip2_vision_model",
    "siglip_vision_model",
    "vit",
)
REFUSED = {
    "vit_mae": "it hides a random part of the patches",
    "yolos": "its detection tokens stand behind the patches",
}


def check_vision_config(config: PreTrainedConfig) -> None:
    """Raises ValueError, with the reason, for a tower whose config says that FlashSloth cannot be built on it."""
    if config.model_type in REFUSED:
        raise tower_refusal(config, REFUSED[config.model_type])
    if hasattr(config, "vision_config"):
        raise tower_refusal(config, "it is a model of several parts: pass its `vision_config` alone")
    if type(config) not in MODEL_MAPPING and not hasattr(config, "auto_map"):
        raise tower_refusal(config, "transformers has no AutoModel for it")
    for name in ("hidden_size", "num_hidden_layers", "patch_size"):
        if not isinstance(getattr(config, name, None), (int, list, tuple)):
            raise tower_refusal(config, f"its config does not say `{name}`, so it has no grid of patches of one size")


def check_tower(
    config: PreTrainedConfig, kept: PreTrainedConfig, view_size: tuple[int, int], grid: tuple[int, int]
) -> None:
    """
    Tries a tower out, unless its family is known.

    Args:
        config (`PreTrainedConfig`): of the whole tower.
        kept (`PreTrainedConfig`): of the layers that are built.
        view_size (`tuple[int, int]`): height and width of a view in pixels.
        grid (`tuple[int, int]`): rows and columns of its patches.

    Raises:
        ValueError: with the reason, if its features are no grid of patches.
    """
    square = view_size[0] == view_size[1]
    if config.model_type not in KNOWN or not (square or config.model_type in TAKES_PATCHES):
        _try_out(kept, view_size, grid)
    if config.model_type not in KNOWN and kept.num_hidden_layers < config.num_hidden_layers:
        whole = config_of_layers(config, config.num_hidden_layers)
        if _num_parameters(whole) == _num_parameters(kept):  # Swin, of a single stage
            raise tower_refusal(config, "its config says `num_hidden_layers`, but not so that fewer of them are built")


@torch.no_grad()
def _try_out(config: PreTrainedConfig, view_size: tuple[int, int], grid: tuple[int, int]) -> None:
    """Runs a tower on shapes alone, to see whether its features are a grid of patches."""
    try:
        with torch.device("meta"):
            tower = AutoModel.from_config(config)
            features, _ = read_patches(tower, torch.zeros((2, 3, *view_size), dtype=tower.dtype), grid)
    except Exception as error:
        raise tower_refusal(config, f"it does not run on views of {view_size} pixels: {error}") from error
    if features.shape[-1] != config.hidden_size:
        raise tower_refusal(
            config, f"its features are {features.shape[-1]} wide, but its config says {config.hidden_size}"
        )


def _num_parameters(config: PreTrainedConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in AutoModel.from_config(config).parameters())
