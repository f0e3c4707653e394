"""Parts of a FlashSloth taken away or set otherwise for a while: for training, ablations and lesions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers_flashsloth import FlashSlothForConditionalGeneration


@contextmanager
def pooled_in_windows(model: FlashSlothForConditionalGeneration, window: int) -> Iterator[int]:
    """Pools in square windows of `window` patches; gives the number of tokens that a view becomes."""
    pooling = model.model.multi_modal_projector.pooling
    rows, columns = model.config.patch_grid
    kept = pooling.height, pooling.width, pooling.rows, pooling.columns
    pooling.height = pooling.width = window
    pooling.rows, pooling.columns = rows // window, columns // window
    try:
        yield pooling.rows * pooling.columns
    finally:
        pooling.height, pooling.width, pooling.rows, pooling.columns = kept


@contextmanager
def without_embq(model: FlashSlothForConditionalGeneration) -> Iterator[None]:
    """The queries stand in the rows, but nothing reads the patches for them."""
    embq, model.model.embq = model.model.embq, None
    try:
        yield
    finally:
        model.model.embq = embq
