"""What differs from decoder to decoder: where its layers are, what its head does, how it scales what it is given."""

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_masks_for_generate

# The decoder of the released FlashSloth-3.2B.
PHI_2 = {
    "model_type": "phi",
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "partial_rotary_factor": 0.4,
    "resid_pdrop": 0.1,
    "max_position_embeddings": 2048,
    "bos_token_id": 50256,
    "eos_token_id": 50296,
    "pad_token_id": 50256,
}
# Where decoders of transformers keep their layers.
LAYER_LISTS = ("layers", "h", "blocks", "decoder.layers")
# Decoders whose language head has a bias though their config has no word for it.
HEADS_WITH_BIAS = ("phi", "gptj", "codegen", "ctrl")
# What a model can be built on: whoever knows enters an object like `building/acceptance.py`'s, whose `check_configs`,
# `check_numbers`, `check_decoder` and `check_tower` refuse the rest. In remote code it is empty, as what is loaded was
# built already.
ACCEPTANCE: list = []
# Of decoders that multiply the embeddings they are given by `embedding_multiplier`, inside their `forward`.
SCALES_INSIDE = ("granite", "hyperclovax")


def head_has_bias(config: PreTrainedConfig) -> bool:
    """Whether the decoder's own language head has a bias."""
    return bool(getattr(config, "lm_head_bias", config.model_type in HEADS_WITH_BIAS))


def finish_logits(logits: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """What the decoder's own head does behind its linear layer: logits `(..., vocabulary)` scaled or soft-capped."""
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if scale := getattr(config, "logits_scaling", None):  # Granite divides, HyperCLOVA X multiplies
        logits = logits * scale if config.model_type == "hyperclovax" else logits / scale
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
        logits = torch.tanh(logits / cap) * cap
    return logits


def masks_for_generate(config: PreTrainedConfig, **inputs) -> torch.Tensor | dict[str, torch.Tensor] | None:
    """The masks of a static cache as the decoder's own language model makes them, some for each kind of layer."""
    language_model = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return getattr(language_model, "create_masks_for_generate", create_masks_for_generate)(config=config, **inputs)


def undo_scale(tokens: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """
    Divides visual tokens `(N, V*T, D)` by what the decoder multiplies all embeddings by that it is given, so that they
    enter its first layer as the projector made them. Decoders that scale as they look tokens up (Gemma) need nothing.
    """
    if not config.model_type.startswith(SCALES_INSIDE) or config.embedding_multiplier == 1:
        return tokens
    return tokens / config.embedding_multiplier


def build_decoder(config: PreTrainedConfig) -> PreTrainedModel:
    """Builds a decoder, with new weights. Raises ValueError, with the reason, if FlashSloth cannot be built on it."""
    decoder = AutoModel.from_config(config)
    for known in ACCEPTANCE:
        known.check_decoder(decoder)
    return decoder


def layers_of(decoder: PreTrainedModel) -> nn.ModuleList:
    """A decoder's layers, in order. Raises ValueError if it has none where decoders of transformers have them."""
    for name in LAYER_LISTS:
        *path, last = name.split(".")
        owner = getattr(decoder, path[0], None) if path else decoder
        layers = getattr(owner, last, None)
        if isinstance(layers, nn.ModuleList) and len(layers) == decoder.config.num_hidden_layers:
            return layers
    name, count = type(decoder).__name__, decoder.config.num_hidden_layers
    raise refusal(decoder.config, f"{name} has no list of its {count} layers ({', '.join(LAYER_LISTS)})")


def embedding_name(decoder: PreTrainedModel) -> str:
    """Name of the input embeddings within a decoder, such as `embed_tokens`."""
    embeddings = decoder.get_input_embeddings()
    return next(name for name, module in decoder.named_modules() if module is embeddings)


def refusal(config: PreTrainedConfig, reason: str) -> ValueError:
    """What to raise for a decoder that FlashSloth cannot be built on."""
    return ValueError(f"FlashSloth cannot be built on a decoder of the type {config.model_type!r}: {reason}.")
