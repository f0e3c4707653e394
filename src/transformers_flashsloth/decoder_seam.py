"""The seam: how the embedded query module gets inside a decoder that knows nothing of it."""

from collections.abc import Callable

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

# transformers 5.19 checkpoints a layer together with its hooks, later versions its `forward` alone.
CHECKPOINTS_HOOKS = "__call__" in vars(GradientCheckpointingLayer)


def open_seam(decoder: nn.Module, layer_index: int) -> None:
    """
    Lets a call of `decoder` take `embq=`, a function of the hidden states `(B, L, D)` that enter the layer of this
    index; the layer then reads what the function returns. Decoders of transformers hand keyword arguments they do not
    know to each layer, and hooks take it from there: no decoder's loop is copied, and checkpoints keep their names.

    EmbQ runs outside of the layer's gradient checkpoint: a re-entrant one would pass the graph of the image features
    twice.

    Args:
        decoder (`nn.Module`): a text model of transformers with its layers in `layers`.
        layer_index (`int`): the layer that EmbQ runs before.
    """
    for index, layer in enumerate(decoder.layers):
        if index != layer_index:
            layer.register_forward_pre_hook(_drop_embq, with_kwargs=True)
        elif CHECKPOINTS_HOOKS:
            layer.__class__ = type(type(layer).__name__, (_RunsEmbQFirst, type(layer)), {})
        else:
            layer.register_forward_pre_hook(_run_embq, with_kwargs=True)


class _RunsEmbQFirst:
    """Does for a layer what the hook does, before the layer's checkpoint begins."""

    def __call__(self, *args, **kwargs):
        args, kwargs = _run_embq(self, args, kwargs) or (args, kwargs)
        return super().__call__(*args, **kwargs)


def _run_embq(layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    embq: Callable[[torch.Tensor], torch.Tensor] | None = kwargs.get("embq")
    if embq is None:
        return None
    hidden_states, *rest = args
    return _drop_embq(layer, (embq(hidden_states), *rest), kwargs)


def _drop_embq(layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    # Attention functions need not know the word.
    if "embq" not in kwargs:
        return None
    return args, {name: value for name, value in kwargs.items() if name != "embq"}
