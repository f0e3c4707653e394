"""Training rows: one picture and several question turns, as token ids with labels on the answers.

A row's text is what the chat template writes (Q queries a run, T image tokens):

    SYSTEM USER: <image>*T \\n QUESTION <learnable>*Q  ASSISTANT: ANSWER</s>USER: QUESTION <learnable>*Q  ASSISTANT: ...

Ids are put together from cached pieces, which special tokens part: the same as tokenizing the whole.
"""

from __future__ import annotations

from functools import lru_cache
from random import Random
from typing import NamedTuple

import torch
from torch.utils._pytree import tree_map
from transformers import PreTrainedTokenizerBase

from .dense import dense_labels, pixel_values
from .grounding import Grounding, grounding_of
from .questions import Turn, questions_about
from .scenes import PatchLabels, Scene
from .tokenizer import END, IMAGE, QUERY, SYSTEM_PROMPT

IGNORED = -100


class Batch(NamedTuple):
    """Inputs of the model, and the patch labels of the dense loss."""

    input_ids: torch.Tensor
    """(B, L), padded on the right."""
    attention_mask: torch.Tensor
    labels: torch.Tensor
    """(B, L), -100 everywhere but on answers and their end tokens."""
    pixel_values: torch.Tensor
    """(B, 1, 3, 96, 96)."""
    patches: PatchLabels
    """Tensors of (B, 144)."""
    grounding: Grounding

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return tree_map(lambda tensor: tensor.to(device), self)


class RowEncoder:
    """Turns scenes and question turns into ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens_per_image: int, num_query_tokens: int):
        image, query, self.end = tokenizer.convert_tokens_to_ids([IMAGE, QUERY, END])
        self.pad = tokenizer.pad_token_id
        self.pieces = lru_cache(1 << 18)(lambda text: tuple(tokenizer.encode(text, add_special_tokens=False)))
        self.prefix = [*self.pieces(f"{SYSTEM_PROMPT} USER: "), *[image] * tokens_per_image]
        self.queries = [query] * num_query_tokens

    def row(self, turns: list[Turn]) -> tuple[list[int], list[int]]:
        """Ids and labels of one conversation about one picture."""
        ids, labels = list(self.prefix), [IGNORED] * len(self.prefix)
        for number, turn in enumerate(turns):
            header = "USER: " if number else "\n"
            prompt = [*self.pieces(header + turn.question), *self.queries, *self.pieces(" ASSISTANT:")]
            answer = [*self.pieces(f" {turn.answer}"), self.end]
            ids += prompt + answer
            labels += [IGNORED] * len(prompt) + answer
        return ids, labels

    def batch(self, scenes: list[Scene], num_turns: int, random: Random) -> Batch:
        """A batch of one row a scene, with up to `num_turns` questions each."""
        turns = [questions_about(scene, random)[:num_turns] for scene in scenes]
        rows = [self.row(row_turns) for row_turns in turns]
        length = max(len(ids) for ids, _ in rows)
        input_ids = torch.tensor([ids + [self.pad] * (length - len(ids)) for ids, _ in rows])
        labels = torch.tensor([labels + [IGNORED] * (length - len(labels)) for _, labels in rows])
        lengths = torch.tensor([len(ids) for ids, _ in rows])
        attention_mask = (torch.arange(length) < lengths[:, None]).long()
        return Batch(
            input_ids,
            attention_mask,
            labels,
            pixel_values(scenes),
            dense_labels(scenes),
            grounding_of(scenes, turns),
        )
