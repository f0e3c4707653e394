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
        layer.__class__ = _with_seam(type(layer))


class TakesEmbQ:
    """What a layer's class gets: `embq`, of which the layer itself never hears, as attention functions need not."""

    def __call__(self, *args, embq: dict[int, Callable[[torch.Tensor], torch.Tensor]] | None = None, **kwargs):
        if embq is not None and self.seam_index in embq:
            hidden_states, *rest = args
            args = (embq[self.seam_index](hidden_states), *rest)
        return super().__call__(*args, **kwargs)

    def __reduce__(self):
        return _restore, (type(self).layer_class,), self.__dict__


@cache
def _with_seam(layer_class: type[nn.Module]) -> type[nn.Module]:
    # Upstream tells layers apart by the name of their class.
    seam_class = type(layer_class.__name__, (TakesEmbQ, layer_class), {"layer_class": layer_class})
    if "forward" in vars(seam_class):
        del seam_class.forward  # upstream wraps what a subclass inherits once more, for checkpoints; once is enough
    return seam_class


def _restore(layer_class: type[nn.Module]) -> nn.Module:
    """An empty layer for pickle and copies, which look classes up by name and would not find one with a seam."""
    seam_class = _with_seam(layer_class)
    return seam_class.__new__(seam_class)
