"""The seam: how embedded query modules get inside a decoder that knows nothing of them."""

from collections.abc import Callable
from functools import cache

import torch
from torch import nn


def open_seam(layers: nn.ModuleList) -> None:
    """
    Lets a call of the decoder that owns `layers` take `embq=`: a function of the hidden states `(B, L, D)` for each
    layer, by its number, that is to read what the function returns instead of them. Decoders of transformers hand
    keyword arguments they do not know to each layer, whose class gets a subclass that takes this one: no decoder's loop
    is copied, and checkpoints keep their names. Hooks on every layer would do as well, at twice the cost.

    EmbQ runs outside of the layer's gradient checkpoint: a re-entrant one would pass the graph of the image features
    twice.

    Args:
        layers (`nn.ModuleList`): the layers of a text model of transformers.
    """
    for index, layer in enumerate(layers):
        layer.seam_index = index
        layer.__class__ = grafted(TakesEmbQ, type(layer))


class TakesEmbQ:
    """What a layer's class gets: `embq`, of which the layer itself never hears, as attention functions need not."""

    def __call__(self, *args, embq: dict[int, Callable[[torch.Tensor], torch.Tensor]] | None = None, **kwargs):
        if embq is not None and self.seam_index in embq:
            hidden_states, *rest = args
            args = (embq[self.seam_index](hidden_states), *rest)
        return super().__call__(*args, **kwargs)


@cache
def grafted(scion: type, stock: type) -> type:
    """The class `stock` with the methods of `scion` before its own, for objects that are there already."""
    # Upstream tells classes apart by their name. Pickle and copies look classes up by it, and would not find this one.
    methods = {"__reduce__": lambda self: (_restore, (scion, stock), self.__dict__)}
    result = type(stock.__name__, (scion, stock), methods)
    if "forward" in vars(result):
        del result.forward  # upstream wraps what a subclass inherits once more, for checkpoints; once is enough
    return result


def _restore(scion: type, stock: type) -> object:
    return (result := grafted(scion, stock)).__new__(result)
