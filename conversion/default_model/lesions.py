"""Lesions: one part of a trained model taken away or set to an average, everything else left as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from transformers_flashsloth import FlashSlothForConditionalGeneration

from .parts import Window, without_embq

Lesion = Callable[[FlashSlothForConditionalGeneration], AbstractContextManager]


@contextmanager
def _visual_tokens(
    model: FlashSlothForConditionalGeneration, change: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """The projector's tokens (views, T, D) changed."""
    hook = model.model.multi_modal_projector.register_forward_hook(lambda module, args, tokens: change(tokens))
    try:
        yield
    finally:
        hook.remove()


def mean_tokens(model: FlashSlothForConditionalGeneration) -> AbstractContextManager:
    """Every visual token replaced by the mean of its picture's."""
    return _visual_tokens(model, lambda tokens: tokens.mean(1, keepdim=True).expand_as(tokens))


def zero_tokens(model: FlashSlothForConditionalGeneration) -> AbstractContextManager:
    """Every visual token zero."""
    return _visual_tokens(model, torch.zeros_like)


@contextmanager
def average_pooling(model: FlashSlothForConditionalGeneration) -> Iterator[None]:
    """SAP's learned weights replaced by equal ones."""
    pooling = model.model.multi_modal_projector.pooling
    learned = pooling.weights

    def equal(patches: torch.Tensor, window: Window | None = None) -> torch.Tensor:
        weights = learned(patches, window)  # (views, rows, window height, columns, window width)
        return torch.full_like(weights, 1 / (weights.shape[2] * weights.shape[4]))

    pooling.weights = equal
    try:
        yield
    finally:
        del pooling.weights


@contextmanager
def equal_queries(model: FlashSlothForConditionalGeneration) -> Iterator[None]:
    """Every query's embedding replaced by the mean of them all."""
    weight = model.model.query_tokens.weight
    learned = weight.detach().clone()
    with torch.no_grad():
        weight.copy_(learned.mean(0, keepdim=True).expand_as(learned))
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(learned)


LESIONS: dict[str, Lesion] = {
    "nothing": lambda model: nullcontext(),
    "every visual token replaced by its picture's mean": mean_tokens,
    "SAP's learned weights replaced by averages": average_pooling,
    "the nine queries made equal": equal_queries,
    "visual tokens zero": zero_tokens,
    "EmbQ": without_embq,
}
"""What is taken away -> a context in which it is."""
