"""What the ablation compares: FlashSloth with one of its parts left out or replaced, each trained on as much."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MethodType

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from transformers_flashsloth import FlashSlothForConditionalGeneration
from transformers_flashsloth.model.modeling_flashsloth import FlashSlothModel

from .parts import ImagesOf, Window, images_of, pooled_images_of
from .stages import ALIGNMENT, LOOKING, Stage


@dataclass(frozen=True)
class Variant:
    """How a variant differs from the whole model."""

    title: str
    choices: dict[str, object] = field(default_factory=dict)
    """Fields of its config."""
    images_of: ImagesOf = images_of
    """What decoder and EmbQ see of a picture's patches."""
    left_out: tuple[str, ...] = ()
    """Stages that it does not go through; instruction gets their rows."""
    without_losses: tuple[str, ...] = ()
    """Losses that it does not learn from."""


VARIANTS = {
    "full": Variant("SAP and EmbQ (FlashSloth)"),
    "average": Variant("average pooling and EmbQ", {"pooling": "average"}),
    "unpooled": Variant("no pooling, EmbQ", {"pooling": "none", "pooling_windows": None}),
    "without-embq": Variant("SAP, no EmbQ", {"num_query_tokens": 0}, left_out=(LOOKING.name,)),
    "neither": Variant(
        "average pooling, no EmbQ", {"pooling": "average", "num_query_tokens": 0}, left_out=(LOOKING.name,)
    ),
    "one-query": Variant("SAP and EmbQ of one query", {"num_query_tokens": 1}),
    "pooled-embq": Variant("SAP, and EmbQ that reads pooled tokens only", images_of=pooled_images_of),
    "unaligned": Variant("SAP and EmbQ, without alignment", left_out=(ALIGNMENT.name,)),
    "ungrounded": Variant(
        "SAP and EmbQ that no loss tells where to look", left_out=(LOOKING.name,), without_losses=("grounding",)
    ),
}


@dataclass(frozen=True)
class Size:
    """How much each run trains and answers."""

    pictures: int = 30_000
    alignment: int = 400
    looking: int = 100
    instruction: int = 600
    """Batches of each stage."""
    questions: int = 200
    """Of each family."""
    rows: int | None = None
    """Rows a batch, where not each stage's own."""

    def batches(self, stage: Stage) -> int:
        """Of a stage that nothing was left out of."""
        return getattr(self, stage.name)

    def stage(self, stage: Stage, variant: Variant) -> Stage:
        """`stage` with batches of this size, a variant's own losses, and no windows where it does not pool."""
        windows = {1: 1.0} if variant.choices.get("pooling") == "none" else stage.windows
        losses = {name: weight for name, weight in stage.losses.items() if name not in variant.without_losses}
        return replace(stage, rows=self.rows or stage.rows, windows=windows, losses=losses)


TINY = Size(pictures=32, alignment=2, looking=1, instruction=2, questions=2, rows=4)


def see_as(model: FlashSlothForConditionalGeneration, variant: Variant) -> None:
    """Let the model itself, and so `generate`, see pictures as `variant` does; it was trained on ready patches."""
    if variant.images_of is images_of:
        return

    def get_image_features(
        self: FlashSlothModel, pixel_values: torch.Tensor, pooling_window: Window | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        patches = type(self).get_image_features(self, pixel_values, **kwargs).last_hidden_state
        return variant.images_of(model, patches, pooling_window)

    model.model.get_image_features = MethodType(get_image_features, model.model)
