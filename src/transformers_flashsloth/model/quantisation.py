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

# What the configs of transformers call the modules to skip; bitsandbytes has a word of its own.
SKIP_LISTS = ("llm_int8_skip_modules", "modules_to_not_convert")


def decoder_only(config: QuantizationConfigMixin | dict) -> QuantizationConfigMixin:
    """
    A copy of a quantisation config that skips `KEPT`, if its list of modules to skip is `None`. A list of the user's,
    also an empty one, stays as it is.

    Args:
        config (`QuantizationConfigMixin` or `dict`): as `from_pretrained` takes it.

    Raises:
        ValueError: for a `dict` that names no quantisation method of transformers.
    """
    config = AutoQuantizationConfig.from_dict(config) if isinstance(config, dict) else copy.deepcopy(config)
    for name in SKIP_LISTS:
        if getattr(config, name, KEPT) is None:
            setattr(config, name, list(KEPT))
    return config
