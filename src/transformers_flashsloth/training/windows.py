"""A pooling window drawn for each batch, so that a model learns to answer with more and with fewer visual tokens."""

import copy
import json
from collections.abc import Callable
from random import Random

from transformers import Trainer

from ..checkpoints.opening import InputError
from ..model.processing_flashsloth import FlashSlothProcessor


def windows_of(sides: list[int], processor: FlashSlothProcessor) -> list[tuple[int, int]]:
    """The windows of these sides. Raises InputError for one that does not tile a view."""
    known = {side: (side, side) for side, width in processor.windows.values() if side == width}
    if unknown := [side for side in sides if side not in known]:
        raise InputError(
            f"--pooling_windows: windows of {unknown[0]} x {unknown[0]} patches do not tile a view; choose among "
            f"{', '.join(map(str, sorted(known)))}"
        )
    return [known[side] for side in sides]


def for_longest_prompts(processor: FlashSlothProcessor, windows: list[tuple[int, int]]) -> FlashSlothProcessor:
    """A processor that makes the longest prompts of all windows, to measure rows with."""
    longest = copy.deepcopy(processor)
    longest.pooling_window = list(min(windows, key=lambda window: window[0] * window[1]))
    return longest


class DrawsWindow:
    """
    A collator that makes each batch with a window of its own. It is drawn by what the batch says, so that a run that is
    resumed, and every evaluation, draws the same.

    Args:
        collate (`Callable`): makes the batch, with `processor`.
        processor ([`FlashSlothProcessor`]): of the model.
        windows (`list[tuple[int, int]]`): each as likely as any other; one that is listed twice, twice.
        seed (`int`): of the draw.
    """

    def __init__(self, collate: Callable, processor: FlashSlothProcessor, windows: list[tuple[int, int]], seed: int):
        self.collate, self.processor, self.windows, self.seed = collate, processor, windows, seed

    def window_of(self, examples: list[dict]) -> tuple[int, int]:
        """The window of a batch."""
        said = [[example.get(name) for name in ("messages", "prompt", "completion")] for example in examples]
        return Random(f"{self.seed} {json.dumps(said, default=lambda part: '')}").choice(self.windows)

    def __call__(self, examples: list[dict]) -> dict:
        own = self.processor.pooling_window
        self.processor.pooling_window = list(self.window_of(examples))
        try:
            return self.collate(examples)
        finally:
            self.processor.pooling_window = own


def draw_windows(trainer: Trainer, sides: list[int]) -> None:
    """Has a trainer draw one of the windows of these sides for each batch, and the model's config list them."""
    windows = windows_of(sides, trainer.processing_class)
    config = trainer.accelerator.unwrap_model(trainer.model).config
    config.pooling_windows = [list(window) for window in dict.fromkeys(windows)]
    trainer.data_collator = DrawsWindow(trainer.data_collator, trainer.processing_class, windows, trainer.args.seed)
