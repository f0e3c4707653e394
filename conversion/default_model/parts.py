"""What decoder and EmbQ see of a picture, and EmbQ taken away: for training, ablations and lesions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from transformers_flashsloth import FlashSlothForConditionalGeneration

Window = tuple[int, int]
"""Height and width of a pooling window, in patches."""
ImagesOf = Callable[[FlashSlothForConditionalGeneration, torch.Tensor, Window | None], BaseModelOutputWithPooling]
"""What decoder and EmbQ see of patches (views, P, Dv), pooled in windows of a size."""


def images_of(
    model: FlashSlothForConditionalGeneration, patches: torch.Tensor, window: Window | None = None
) -> BaseModelOutputWithPooling:
    """The decoder sees pooled tokens, EmbQ all patches: FlashSloth."""
    tokens = model.model.multi_modal_projector(patches, window)
    return BaseModelOutputWithPooling(last_hidden_state=patches, pooler_output=tokens)


def pooled_images_of(
    model: FlashSlothForConditionalGeneration, patches: torch.Tensor, window: Window | None = None
) -> BaseModelOutputWithPooling:
    """EmbQ, too, sees no more than pooling leaves, (views, T, Dv)."""
    projector = model.model.multi_modal_projector
    pooled, tokens = projector.pooling(patches, window), projector(patches, window)
    return BaseModelOutputWithPooling(last_hidden_state=pooled, pooler_output=tokens)


@contextmanager
def without_embq(model: FlashSlothForConditionalGeneration) -> Iterator[None]:
    """The queries stand in the rows, but nothing reads the patches for them."""
    embq, model.model.embq = model.model.embq, None
    try:
        yield
    finally:
        model.model.embq = embq
