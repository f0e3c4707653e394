"""What differs from decoder to decoder: where its layers are, what its head does, and which decoders cannot work."""

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModel, DynamicCache, PreTrainedConfig, PreTrainedModel
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
# Of decoders that multiply the embeddings they are given by `embedding_multiplier`, inside their `forward`.
SCALES_INSIDE = ("granite", "hyperclovax")
# Decoders that are more than layers, a norm and a linear head, and in what.
REFUSED = {
    "ctrl": "it prepares its attention mask in a way of its own",
    "inkling_text": "its head cuts and scales the logits in a way of its own",
    "inkling2_text": "its head cuts the logits in a way of its own",
    "minicpm3": "its head scales the hidden states in a way of its own",
    "minimax": "it takes no cache but its own, and those of prompts are ours",
    "modernbert-decoder": "its head has layers of its own",
    "falcon_h1": "it scales the embeddings only when it looks them up itself",
}


def check_text_config(config: PreTrainedConfig) -> None:
    """Raises ValueError, with the reason, for a decoder whose config says that FlashSloth cannot be built on it."""
    try:
        is_text = config.get_text_config() is config
    except ValueError:  # of MusicGen, which has two
        is_text = False
    if not is_text:
        raise ValueError(
            f"{config.model_type!r} is a model of several parts and no decoder: pass its text part alone, "
            "`config.get_text_config()`."
        )
    if getattr(config, "is_encoder_decoder", False):
        raise _refusal(config, "it is an encoder-decoder, whose encoder would have to read the images")
    if config.model_type in REFUSED:
        raise _refusal(config, REFUSED[config.model_type])
    if getattr(config, "hidden_size_per_layer_input", None):  # Gemma 3n and 4
        raise _refusal(config, "it looks tokens up again for every layer, and images have none")
    missing = [
        name
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings")
        if getattr(config, name, None) is None
    ]
    if missing:
        raise _refusal(config, f"its config does not say `{missing[0]}`")


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
    """
    Builds the decoder of a text config, with new weights.

    Raises:
        ValueError: with the reason, if FlashSloth cannot be built on it.
    """
    decoder = AutoModel.from_config(config)
    check_decoder(decoder)
    return decoder


def layers_of(decoder: PreTrainedModel) -> nn.ModuleList:
    """
    The layers of a decoder, in their order.

    Raises:
        ValueError: if it has none where decoders of transformers have them.
    """
    for name in LAYER_LISTS:
        *path, last = name.split(".")
        owner = getattr(decoder, path[0], None) if path else decoder
        layers = getattr(owner, last, None)
        if isinstance(layers, nn.ModuleList) and len(layers) == decoder.config.num_hidden_layers:
            return layers
    name, count = type(decoder).__name__, decoder.config.num_hidden_layers
    raise _refusal(decoder.config, f"{name} has no list of its {count} layers ({', '.join(LAYER_LISTS)})")


def embedding_name(decoder: PreTrainedModel) -> str:
    """Name of the input embeddings within a decoder, such as `embed_tokens`."""
    embeddings = decoder.get_input_embeddings()
    return next(name for name, module in decoder.named_modules() if module is embeddings)


@torch.no_grad()
def check_decoder(decoder: PreTrainedModel) -> None:
    """
    Sends one embedding as far as the first layer, to see what comes with it.

    Raises:
        ValueError: with the reason, if the decoder cannot run on embeddings or keeps the embedded query module from
            its layers.
    """
    layers, config = layers_of(decoder), decoder.config
    try:
        DynamicCache(config=config).get_seq_length()
    except ValueError:
        raise _refusal(config, "it has no attention layer, and its cache counts no positions") from None
    embeddings = decoder.get_input_embeddings()
    weight = embeddings.weight
    width = getattr(embeddings, "embedding_dim", weight.shape[-1])  # ZeRO-3 leaves the weight no shape
    if width != config.hidden_size:  # the smallest OPT
        raise _refusal(config, f"its embeddings are {width} wide, but its layers {config.hidden_size}")
    embedding = torch.zeros((1, 1, width), dtype=weight.dtype, device=weight.device)
    # A mask that is whole: making one can take more than what is tried here, with flexible attention a compilation.
    mask = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=weight.device)
    stop = layers[0].register_forward_pre_hook(_stop_at_first_layer, with_kwargs=True)
    try:
        decoder(inputs_embeds=embedding, attention_mask=mask, use_cache=False, embq=None)
    except _FirstLayerReached as reached:
        if not reached.takes_embq:
            raise _refusal(config, "it does not hand keyword arguments on to its layers") from None
        # Hyper-connections; the shape itself may differ, as OPT counts positions by the mask.
        if reached.shape.numel() != embedding.numel():
            raise _refusal(
                config,
                f"not one stream of hidden states enters its layers, of the shape {tuple(embedding.shape)} for one "
                f"position, but what has the shape {tuple(reached.shape)}",
            ) from None
    except Exception as error:
        if weight.is_meta:
            return  # some code cannot run without values; what is loaded was tried out when it was new
        raise _refusal(config, f"it does not run on embeddings alone: {error}") from error
    finally:
        stop.remove()


class _FirstLayerReached(Exception):
    def __init__(self, takes_embq: bool, shape: torch.Size):
        super().__init__()
        self.takes_embq, self.shape = takes_embq, shape


def _stop_at_first_layer(layer: nn.Module, args: tuple, kwargs: dict) -> None:
    raise _FirstLayerReached(bool(args) and "embq" in kwargs, args[0].shape if args else torch.Size())


def _refusal(config: PreTrainedConfig, reason: str) -> ValueError:
    return ValueError(f"FlashSloth cannot be built on a decoder of the type {config.model_type!r}: {reason}.")
