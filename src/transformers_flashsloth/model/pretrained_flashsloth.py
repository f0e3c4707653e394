"""What both models share: how they are loaded, saved and initialised, and what they return."""

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.quantizers import AutoQuantizationConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from .adapters_flashsloth import say_if_adapted
from .configuration_flashsloth import FlashSlothConfig
from .embedded_query import QueryTokens
from .foreign_formats import foreign_format_at

# Where the Auto classes find the models in the code that a saved checkpoint carries.
AUTO_MAP = {
    "AutoModel": "modeling_flashsloth.FlashSlothModel",
    "AutoModelForImageTextToText": "modeling_flashsloth.FlashSlothForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_flashsloth.FlashSlothForConditionalGeneration",
}
PICKLES_REFUSED = (
    "The weights in {directory} are pickles ({name}), which can run any code when they are read. Get the checkpoint "
    "as safetensors. If you trust its source, {remedy}; then they are read with `weights_only=True`."
)
TRUST_PICKLES = "pass `use_safetensors=False`"
# What quantisation leaves as it is: everything but the decoder's layers, which hold most of the weights and bear few
# bits well. The path of the image is small, and its errors reach every answer; so it keeps its dtype unless the user
# says otherwise. Names in FlashSlothModel; FlashSlothForConditionalGeneration has them in `model`.
IMAGE_PATH = ("vision_tower", "multi_modal_projector", "query_tokens", "embq")
KEPT = ["lm_head", *IMAGE_PATH, *(f"model.{name}" for name in IMAGE_PATH)]
# Never quantised: a linear of one row, which kernels for packed weights refuse, and that to the dtype of whose weight
# transformers casts pixels (SigLIP 2).
UNPACKABLE = [r".*\.score_proj", r".*\.patch_embedding"]
# What the configs of transformers call the modules to skip; bitsandbytes has a word of its own.
SKIP_LISTS = ("llm_int8_skip_modules", "modules_to_not_convert")


@dataclass
class FlashSlothModelOutputWithPast(BaseModelOutputWithPast):
    """
    Adds to upstream's output:
    image_hidden_states (`torch.Tensor`, *optional*): the visual tokens that the decoder saw, `(N, V*T, D)`.
    image_outputs (`BaseModelOutputWithPooling`, *optional*): as `get_image_features` returns them, of this call.
    """

    image_hidden_states: torch.Tensor | None = None
    image_outputs: BaseModelOutputWithPooling | None = None


@dataclass
class FlashSlothCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Adds to upstream's output what [`FlashSlothModelOutputWithPast`] adds."""

    image_hidden_states: torch.Tensor | None = None
    image_outputs: BaseModelOutputWithPooling | None = None


Model = TypeVar("Model", bound="FlashSlothPreTrainedModel")


class FlashSlothPreTrainedModel(PreTrainedModel):
    """Base of both models: what transformers asks of them, and how they are loaded, saved and initialised."""

    config_class = FlashSlothConfig
    config: FlashSlothConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["FlashSlothMultiModalProjector", "EmbeddedQuery", "QueryTokens"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    if TYPE_CHECKING:  # type checkers take the model for the first argument of upstream's own

        def to(self: Model, *args: Any, **kwargs: Any) -> Model:
            """As upstream's."""

        def cuda(self: Model, *args: Any, **kwargs: Any) -> Model:
            """As upstream's."""

    @classmethod
    def from_pretrained(cls: type[Model], pretrained_model_name_or_path, *model_args, **kwargs) -> Model:
        """
        As upstream's, and also loads checkpoints in a foreign format, such as the authors', from a directory or the
        Hub. A `quantization_config` that names no modules to skip quantises the decoder's linears only.

        Raises:
            ValueError or OSError: as upstream's; for pickled weights, unless `use_safetensors=False` says that their
                source is trusted; and for a checkpoint in a foreign format that is not whole or not sound.
        """
        foreign = check_before_loading(pretrained_model_name_or_path, options=kwargs)
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = decoder_only(kwargs["quantization_config"])
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if foreign is not None and model.can_generate() and kwargs.get("generation_config") is None:
            foreign.finish(model)
        return loaded

    def save_pretrained(self, save_directory, *args, save_original_format: bool = False, **kwargs):
        """As upstream's, with the code; a model loaded from the authors' format is saved under our names."""
        if save_original_format:
            raise ValueError(
                "A model is saved under this package's names. For the authors' format run "
                "`flashsloth convert SAVED_DIRECTORY DST --to-authors-format`."
            )
        self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, *args, save_original_format=False, **kwargs)

    def train(self, mode: bool = True):
        """As upstream's; says so if the vision tower is about to be trained by adapters."""
        if mode:
            say_if_adapted(self.base_model.vision_tower)
        return super().train(mode)

    def post_init(self):
        super().post_init()
        # A tower also names modules that only the whole SigLIP has, and FSDP stops at a name that it does not find.
        self._no_split_modules = set(self._no_split_modules) & {type(module).__name__ for module in self.modules()}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, QueryTokens):
            init.kaiming_uniform_(module.weight, a=5**0.5)


def check_before_loading(path: str | os.PathLike | None, options: dict) -> Any | None:
    """
    Checks a checkpoint, a directory or Hub id, as far as that is possible without its weights in memory, and returns
    the foreign format that it is in, `None` for this package's own. Of the `options` of `from_pretrained`
    `use_safetensors=False` says that pickles are trusted; without it, it is set to `True`.

    Raises:
        FileNotFoundError: if weights in a foreign format are missing.
        ValueError: if weights are pickles, or in a foreign format and damaged or not those of config.json.
    """
    if path is None or options.get("gguf_file"):
        return None
    if options.get("weights_only") is False:
        raise ValueError("`weights_only=False` would run code from the checkpoint: FlashSloth loads weights only.")
    trust_pickles = options.get("use_safetensors") is False
    options["use_safetensors"] = not trust_pickles

    foreign, _ = foreign_format_at(path, **options)
    if foreign is not None:
        foreign.check(path, trust_pickles, options)
    elif not trust_pickles and os.path.isdir(path):  # on the Hub upstream looks for safetensors
        directory = Path(path, options.get("subfolder") or "")
        pickles = sorted(directory.glob("*.bin"))
        if pickles and not any(directory.glob("*.safetensors")):
            raise ValueError(PICKLES_REFUSED.format(directory=directory, name=pickles[0].name, remedy=TRUST_PICKLES))
    return foreign


def decoder_only(config: QuantizationConfigMixin | dict) -> QuantizationConfigMixin:
    """
    A copy of a quantisation config that skips `KEPT`, if its list of modules to skip is `None`. To a list of the
    user's, also an empty one, only `UNPACKABLE` is added; parts of the model may be named in it with and without
    `model.` in front. Raises ValueError for a `dict` that names no quantisation method of transformers.
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
