"""The seam: how embedded query modules get inside a decoder that knows nothing of them."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

# transformers 5.19 checkpoints a layer together with its hooks, later versions its `forward` alone.
CHECKPOINTS_HOOKS = "__call__" in vars(GradientCheckpointingLayer)


def open_seam(layers: nn.ModuleList, indices: Iterable[int]) -> None:
    """
    Lets a call of the decoder that owns `layers` take `embq=`: for each layer of `indices` a function of the hidden
    states `(B, L, D)` that enter it; the layer then reads what the function returns. Decoders of transformers hand
    keyword arguments they do not know to each layer, and hooks take it from there: no decoder's loop is copied, and
    checkpoints keep their names.

    EmbQ runs outside of the layer's gradient checkpoint: a re-entrant one would pass the graph of the image features
    twice.

    Args:
        layers (`nn.ModuleList`): the layers of a text model of transformers.
        indices (`Iterable[int]`): the layers that an EmbQ runs before.
    """
    indices = set(indices)
    for index, layer in enumerate(layers):
        if index not in indices:
            layer.register_forward_pre_hook(_drop_embq, with_kwargs=True)
        elif CHECKPOINTS_HOOKS:
            layer.seam_index = index
            layer.__class__ = type(type(layer).__name__, (_RunsEmbQFirst, type(layer)), {})
        else:
            layer.register_forward_pre_hook(partial(_run_embq, index), with_kwargs=True)


class _RunsEmbQFirst:
    """Does for a layer what the hook does, before the layer's checkpoint begins."""

    def __call__(self, *args, **kwargs):
        args, kwargs = _run_embq(self.seam_index, self, args, kwargs) or (args, kwargs)
        return super().__call__(*args, **kwargs)


def _run_embq(index: int, layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    embq: dict[int, Callable[[torch.Tensor], torch.Tensor]] | None = kwargs.get("embq")
    if embq is None:
        return _drop_embq(layer, args, kwargs)
    hidden_states, *rest = args
    return _drop_embq(layer, (embq[index](hidden_states), *rest), kwargs)


def _drop_embq(layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    # Attention functions need not know the word.
    if "embq" not in kwargs:
        return None
    return args, {name: value for name, value in kwargs.items() if name != "embq"}
