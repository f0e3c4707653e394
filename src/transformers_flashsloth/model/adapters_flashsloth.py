r"""
Which modules adapters train.

`LoraConfig()` without `target_modules` adapts every linear of the decoder and nothing else: not the vision tower, the
projector, SAP, EmbQ, the queries or the language head. To train what turns an image into tokens as well, in full:

    LoraConfig(modules_to_save=COMPRESSOR_MODULES)

Lists of names such as `["q_proj", "v_proj"]` and PEFT's `"all-linear"` match linears of the vision tower and of EmbQ
too; `exclude_modules=OUTSIDE_THE_DECODER` keeps those out.

IA3 alone has no defaults, as it must be told which linears are feedforward ones:
pass `IA3Config(target_modules=DECODER_LINEARS, feedforward_modules=r".*\.(?:fc2|down_proj)")`.
"""

import copy
import re
import sys
from collections.abc import Collection, Iterator

import torch
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedConfig
from transformers.utils import logging

from .decoders import LAYER_LISTS

logger = logging.get_logger(__name__)

# Regular expressions over module names, as PEFT takes them; the leaf names are those of transformers' decoders.
_LAYERS = "|".join(map(re.escape, LAYER_LISTS))
_IN_DECODER = rf"(?:.*\.)?language_model\.(?:{_LAYERS})\.\d+\.(?:.*\.)?"
# Nemotron-H's latent projections are linears in some of its models only.
DECODER_LINEARS = _IN_DECODER + r"(?:(?!fc\d_latent)\w*_proj|fc\d|fc_\w+|w\d|dense(?:_\w+)?|query_key_value|c_fc)"
OUTSIDE_THE_DECODER = r"(?:.*\.)?(?:vision_tower|multi_modal_projector|embq)\..*"
# SAP and the projector, the learned queries, and the embedded query module.
COMPRESSOR_MODULES = ["multi_modal_projector", "query_tokens", "embq"]

# PEFT's methods that put something beside a linear; each has a table of default targets of its own.
TUNERS = (
    "LORA", "ADALORA", "LOHA", "LOKR", "VERA", "RANDLORA", "VBLORA", "FOURIERFT", "OFT", "BOFT", "HRA", "C3A", "MISS",
    "ROAD", "SHIRA", "HIRA", "GRALORA", "DELORA", "WAVEFT",
)  # fmt: skip


class DefaultTargets:
    """
    Names of the linears that `DECODER_LINEARS` matches in a decoder, such as `language_model.layers.0.mlp.fc1`, found
    once PEFT asks for them. Names and no expression, which `layers_to_transform` and the like do not take.
    """

    def __init__(self, text_config: PreTrainedConfig):
        self.text_config = text_config

    def __iter__(self) -> Iterator[str]:
        with torch.device("meta"):
            decoder = MODEL_MAPPING[type(self.text_config)](copy.deepcopy(self.text_config))
        names = (f"language_model.{name}" for name, _ in decoder.named_modules())
        return (name for name in names if re.fullmatch(DECODER_LINEARS, name))


def register_default_targets(text_config: PreTrainedConfig) -> None:
    """
    Tells PEFT, if it is imported, what to adapt where a config names no targets. The model's config calls this when it
    is read as a dictionary, which PEFT does right before it looks targets up; so PEFT need not be imported here.
    """
    constants = sys.modules.get("peft.utils.constants")
    for tuner in TUNERS if constants else ():
        targets = getattr(constants, f"TRANSFORMERS_MODELS_TO_{tuner}_TARGET_MODULES_MAPPING", {})
        if not isinstance(targets.get("flashsloth"), Collection):  # names of the user's own stay
            targets["flashsloth"] = DefaultTargets(text_config)


def say_if_adapted(vision_tower: nn.Module) -> None:
    """Warns, once, if PEFT has put adapters into the vision tower: name lists and "all-linear" do so silently."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    count = sum(isinstance(module, tuners.BaseTunerLayer) for module in vision_tower.modules()) if tuners else 0
    if count:
        logger.warning_once(
            f"{count} modules of the vision tower have adapters. If that is not what you want, leave `target_modules` "
            f"out (the decoder's linears are the default) or pass `exclude_modules={OUTSIDE_THE_DECODER!r}`."
        )


__all__ = ["COMPRESSOR_MODULES", "DECODER_LINEARS", "OUTSIDE_THE_DECODER"]
