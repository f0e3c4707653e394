"""What both models share: how they are loaded, saved and initialised, and what they return."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_flashsloth import FlashSlothConfig
from .embedded_query import QueryTokens
from .loading_flashsloth import check_before_loading, end_at_answers
from .quantisation import decoder_only

# Where the Auto classes find the models in the code that a saved checkpoint carries.
AUTO_MAP = {
    "AutoModel": "modeling_flashsloth.FlashSlothModel",
    "AutoModelForImageTextToText": "modeling_flashsloth.FlashSlothForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_flashsloth.FlashSlothForConditionalGeneration",
}


@dataclass
class FlashSlothModelOutputWithPast(BaseModelOutputWithPast):
    """
    Adds to upstream's output:
    image_hidden_states (`torch.Tensor`, *optional*): the visual tokens that the decoder saw, `(N, V*T, D)`.
    """

    image_hidden_states: torch.Tensor | None = None


@dataclass
class FlashSlothCausalLMOutputWithPast(CausalLMOutputWithPast):
    """
    Adds to upstream's output:
    image_hidden_states (`torch.Tensor`, *optional*): the visual tokens that the decoder saw, `(N, V*T, D)`.
    """

    image_hidden_states: torch.Tensor | None = None


class FlashSlothPreTrainedModel(PreTrainedModel):
    """Base of both models: what transformers asks of them, and how they are loaded, saved and initialised."""

    config_class = FlashSlothConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["FlashSlothMultiModalProjector", "EmbeddedQuery", "QueryTokens"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """
        As upstream's, and also loads checkpoints in the authors' format, from a directory or the Hub. A
        `quantization_config` that names no modules to skip quantises the decoder's linears only (see
        `quantisation.py`).

        Raises:
            ValueError or OSError: as upstream's; for pickled weights, unless `use_safetensors=False` says that their
                source is trusted; and for a checkpoint in the authors' format that is not whole or not sound.
        """
        from .modeling_flashsloth import FlashSlothForConditionalGeneration  # which builds on this class

        authors_config = check_before_loading(
            pretrained_model_name_or_path, FlashSlothForConditionalGeneration, options=kwargs
        )
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = decoder_only(kwargs["quantization_config"])
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if authors_config is not None and model.can_generate() and kwargs.get("generation_config") is None:
            end_at_answers(model.generation_config, authors_config)
        return loaded

    def save_pretrained(self, save_directory, *args, save_original_format: bool = False, **kwargs):
        """As upstream's, with the code; a model loaded from the authors' format is saved under our names."""
        if save_original_format:
            raise ValueError(
                "A model is saved under this package's names. For the authors' format run "
                "`python conversion/convert_checkpoint.py SAVED_DIRECTORY DST --to-authors-format`."
            )
        self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, *args, save_original_format=False, **kwargs)

    def post_init(self):
        super().post_init()
        # A tower also names modules that only the whole SigLIP has, and FSDP stops at a name that it does not find.
        self._no_split_modules = set(self._no_split_modules) & {type(module).__name__ for module in self.modules()}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, QueryTokens):
            init.kaiming_uniform_(module.weight, a=5**0.5)
