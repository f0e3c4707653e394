"""
What quantisation leaves as it is: everything but the decoder's layers.

The decoder holds most of the weights and bears few bits well. The path of the image (vision tower, SAP, projector,
queries, EmbQ) is small, and its errors reach every answer; so it keeps its dtype unless the user says otherwise.
"""

import copy

from transformers.quantizers import AutoQuantizationConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

# Names in FlashSlothModel; FlashSlothForConditionalGeneration has them in `model`.
IMAGE_PATH = ("vision_tower", "multi_modal_projector", "query_tokens", "embq")
KEPT = ["lm_head", *IMAGE_PATH, *(f"model.{name}" for name in IMAGE_PATH)]

# Never quantised: a linear of one row, which kernels for packed weights refuse, and that to the dtype of whose weight
# transformers casts pixels (SigLIP 2).
UNPACKABLE = [r".*\.score_proj", r".*\.patch_embedding"]

# What the configs of transformers call the modules to skip; bitsandbytes has a word of its own.
SKIP_LISTS = ("llm_int8_skip_modules", "modules_to_not_convert")


def decoder_only(config: QuantizationConfigMixin | dict) -> QuantizationConfigMixin:
    """
    A copy of a quantisation config that skips `KEPT`, if its list of modules to skip is `None`. To a list of the
    user's, also an empty one, only `UNPACKABLE` is added; parts of the model may be named in it with and without
    `model.` in front.

    Args:
        config (`QuantizationConfigMixin` or `dict`): as `from_pretrained` takes it.

    Raises:
        ValueError: for a `dict` that names no quantisation method of transformers.
    """
    config = AutoQuantizationConfig.from_dict(config) if isinstance(config, dict) else copy.deepcopy(config)
    for attribute in SKIP_LISTS:
        if hasattr(config, attribute):
            named = getattr(config, attribute)
            setattr(config, attribute, list(KEPT) if named is None else [*_either_way(named), *UNPACKABLE])
    return config


def _either_way(names: list[str]) -> list[str]:
    """The names, those of parts of the model both as FlashSlothModel and as the model with a head has them."""
    short = [name.removeprefix("model.") for name in names]
    parts = [name for name in short if name.split(".")[0] in (*IMAGE_PATH, "language_model")]
    return list(dict.fromkeys([*names, *parts, *(f"model.{name}" for name in parts)]))
