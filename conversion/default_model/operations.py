"""Operations that a model needs for a question about a picture."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from .answering import Answerer
from .held_out import Item


@torch.no_grad()
def operations(ask: Answerer, item: Item) -> int:
    """Floating-point operations of matrix products from pixels to the first token of the answer to `item`."""
    chosen = {name: part._attn_implementation for name, part in _configs(ask).items()}
    ask.model.set_attn_implementation("eager")  # the counter does not know every fused kernel
    try:
        with FlopCounterMode(display=False) as counter:
            ask.model(**ask.inputs([item]), logits_to_keep=1)
    finally:
        ask.model.set_attn_implementation(chosen)
    return counter.get_total_flops()


def _configs(ask: Answerer) -> dict[str, object]:
    config = ask.model.config
    return {"": config, "text_config": config.text_config, "vision_config": config.vision_config}
