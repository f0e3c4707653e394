"""Parts of a FlashSloth taken away or set otherwise for a while: for training, ablations and lesions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from transformers_flashsloth import FlashSlothForConditionalGeneration

ImagesOf = Callable[[FlashSlothForConditionalGeneration, torch.Tensor], BaseModelOutputWithPooling]
"""What decoder and EmbQ see of patches (views, P, Dv)."""


def images_of(model: FlashSlothForConditionalGeneration, patches: torch.Tensor) -> BaseModelOutputWithPooling:
    """The decoder sees pooled tokens, EmbQ all patches: FlashSloth."""
    tokens = model.model.multi_modal_projector(patches)
    return BaseModelOutputWithPooling(last_hidden_state=patches, pooler_output=tokens)


def pooled_images_of(model: FlashSlothForConditionalGeneration, patches: torch.Tensor) -> BaseModelOutputWithPooling:
    """EmbQ, too, sees no more than pooling leaves, (views, T, Dv)."""
    projector = model.model.multi_modal_projector
    return BaseModelOutputWithPooling(last_hidden_state=projector.pooling(patches), pooler_output=projector(patches))


@contextmanager
def pooled_in_windows(model: FlashSlothForConditionalGeneration, window: int) -> Iterator[int]:
    """Pools in square windows of `window` patches; gives the number of tokens that a view becomes."""
    pooling = model.model.multi_modal_projector.pooling
    rows, columns = model.config.patch_grid
    kept, pooling.window = pooling.window, (window, window)
    try:
        yield (rows // window) * (columns // window)
    finally:
        pooling.window = kept


@contextmanager
def without_embq(model: FlashSlothForConditionalGeneration) -> Iterator[None]:
    """The queries stand in the rows, but nothing reads the patches for them."""
    embq, model.model.embq = model.model.embq, None
    try:
        yield
    finally:
        model.model.embq = embq
