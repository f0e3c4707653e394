"""Which decoders FlashSloth can be built on: refused by name, by what a config says, or by trying."""

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from ..model.decoders import layers_of, refusal

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
        raise refusal(config, "it is an encoder-decoder, whose encoder would have to read the images")
    if config.model_type in REFUSED:
        raise refusal(config, REFUSED[config.model_type])
    if getattr(config, "hidden_size_per_layer_input", None):  # Gemma 3n and 4
        raise refusal(config, "it looks tokens up again for every layer, and images have none")
    missing = [
        name
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings")
        if getattr(config, name, None) is None
    ]
    if missing:
        raise refusal(config, f"its config does not say `{missing[0]}`")


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
        raise refusal(config, "it has no attention layer, and its cache counts no positions") from None
    embeddings = decoder.get_input_embeddings()
    weight = embeddings.weight
    width = getattr(embeddings, "embedding_dim", weight.shape[-1])  # ZeRO-3 leaves the weight no shape
    if width != config.hidden_size:  # the smallest OPT
        raise refusal(config, f"its embeddings are {width} wide, but its layers {config.hidden_size}")
    embedding = torch.zeros((1, 1, width), dtype=weight.dtype, device=weight.device)
    # A mask that is whole: making one can take more than what is tried here, with flexible attention a compilation.
    mask = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=weight.device)
    stop = layers[0].register_forward_pre_hook(_stop_at_first_layer, with_kwargs=True)
    try:
        decoder(inputs_embeds=embedding, attention_mask=mask, use_cache=False, embq=None)
    except _FirstLayerReached as reached:
        if not reached.takes_embq:
            raise refusal(config, "it does not hand keyword arguments on to its layers") from None
        # Hyper-connections; the shape itself may differ, as OPT counts positions by the mask.
        if reached.shape.numel() != embedding.numel():
            raise refusal(
                config,
                f"not one stream of hidden states enters its layers, of the shape {tuple(embedding.shape)} for one "
                f"position, but what has the shape {tuple(reached.shape)}",
            ) from None
    except Exception as error:
        if weight.is_meta:
            return  # some code cannot run without values; what is loaded was tried out when it was new
        raise refusal(config, f"it does not run on embeddings alone: {error}") from error
    finally:
        stop.remove()


class _FirstLayerReached(Exception):
    def __init__(self, takes_embq: bool, shape: torch.Size):
        super().__init__()
        self.takes_embq, self.shape = takes_embq, shape


def _stop_at_first_layer(layer: nn.Module, args: tuple, kwargs: dict) -> None:
    raise _FirstLayerReached(bool(args) and "embq" in kwargs, args[0].shape if args else torch.Size())
