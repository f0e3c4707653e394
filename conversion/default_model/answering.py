"""How the evaluation asks: every question alone, through processor and `generate`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature, PreTrainedModel, ProcessorMixin

from .held_out import Item

BATCH_SIZE = 64
LONGEST_ANSWER = 6
LONGEST_DESCRIPTION = 80
"""Tokens."""


class Answerer:
    """Asks a model its questions, some tens at a time."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        self.model, self.processor = model.eval(), processor
        self.options = {"padding": True, "padding_side": "left"}

    @classmethod
    def of(cls, directory: Path, device: torch.device) -> Answerer:
        """Of a saved checkpoint."""
        model = AutoModelForImageTextToText.from_pretrained(directory).to(device)
        return cls(model, AutoProcessor.from_pretrained(directory))

    @torch.no_grad()
    def __call__(self, items: list[Item]) -> list[str]:
        """The answers, as many tokens long as the longest of a question's kind needs."""
        answers = []
        for batch in tqdm(batches(items), unit="batch", leave=False):
            longest = LONGEST_DESCRIPTION if any(item.turn.family == "describe" for item in batch) else LONGEST_ANSWER
            inputs = self.inputs(batch)
            generated = self.model.generate(**inputs, do_sample=False, max_new_tokens=longest)
            new = generated[:, inputs["input_ids"].shape[1] :]
            answers += [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]
        return answers

    @contextmanager
    def pooled_in(self, window: int) -> Iterator[None]:
        """Inside of the `with` block, pictures are pooled in windows of so many patches along."""
        before, self.options = self.options, self.options | {"pooling_window": window}
        try:
            yield
        finally:
            self.options = before

    def inputs(self, items: list[Item]) -> BatchFeature:
        """Prompts of questions, padded on the left to one length."""
        conversations = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": Image.fromarray(item.image)},
                        {"type": "text", "text": item.turn.question},
                    ],
                }
            ]
            for item in items
        ]
        return self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=self.options,
        ).to(self.model.device)


def batches(items: list[Item]) -> list[list[Item]]:
    """`items` in parts that are asked together."""
    return [items[start : start + BATCH_SIZE] for start in range(0, len(items), BATCH_SIZE)]
