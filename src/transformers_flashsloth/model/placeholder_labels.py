"""
Labels at image and query positions are ignored, whoever made them.

They are masked at three places, because a trainer may look at labels before, beside or inside of the model: when a
collator puts them into a batch of the processor (trainers count them there), when a model is called (TRL takes the
loss outside of the model's own `forward`), and in that `forward` itself.
"""

import torch
from torch import nn
from transformers.feature_extraction_utils import BatchFeature

IGNORED = -100


def ignore_placeholders(
    labels: torch.Tensor, input_ids: torch.Tensor, placeholder_ids: tuple[int, ...]
) -> torch.Tensor:
    """Labels `(B, L)` with -100 wherever `input_ids` `(B, L)` holds one of the placeholders."""
    for token_id in placeholder_ids:
        labels = labels.masked_fill(input_ids == token_id, IGNORED)
    return labels


class FlashSlothBatch(BatchFeature):
    """
    What a call of the processor returns. `labels` that are put into it are -100 at image and query positions, so that
    a trainer which divides the loss by the number of labels counts those that the model learns.

    Attributes:
        placeholder_ids (`tuple[int, ...]`): the ids of the placeholders.
    """

    placeholder_ids = ()

    def __setitem__(self, key: str, value):
        if key == "labels" and _are_alike(value, self.data.get("input_ids")):
            value = ignore_placeholders(value, self.data["input_ids"], self.placeholder_ids)
        super().__setitem__(key, value)


def ignore_placeholders_first(model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    """A forward pre-hook: whatever `forward` the model has been given, its labels are masked."""
    input_ids, labels = kwargs.get("input_ids", args[0] if args else None), kwargs.get("labels")
    if not _are_alike(labels, input_ids):
        return None
    return args, kwargs | {"labels": ignore_placeholders(labels, input_ids, model.config.placeholder_ids)}


def _are_alike(labels, input_ids) -> bool:
    tensors = isinstance(labels, torch.Tensor) and isinstance(input_ids, torch.Tensor)
    return tensors and labels.shape == input_ids.shape
