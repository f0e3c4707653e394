"""Training rows as token ids with labels: conversations about a picture, and captions of one.

A conversation's text is what the chat template writes (Q queries a run, T image tokens):

    SYSTEM USER: <image>*T \\n QUESTION <learnable>*Q  ASSISTANT: ANSWER</s>USER: QUESTION <learnable>*Q  ASSISTANT: ...

A caption's is that of the paper's alignment. Its queries stand behind it, so that visual tokens are all that tells it:

    <image>*T CAPTION <learnable>*Q \\n

Ids are put together from cached pieces, which special tokens part: the same as tokenizing the whole.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from random import Random
from typing import NamedTuple

import torch
from torch.utils._pytree import tree_map
from transformers import PreTrainedTokenizerBase

from .captions import caption
from .grounding import Grounding, grounding_of
from .questions import Turn, questions_about
from .scene import Scene
from .tokenizer import END, IMAGE, QUERY, SYSTEM_PROMPT

IGNORED = -100


class Batch(NamedTuple):
    """Inputs of the model behind its vision tower."""

    input_ids: torch.Tensor
    """(B, L), padded on the right."""
    attention_mask: torch.Tensor
    labels: torch.Tensor
    """(B, L), -100 everywhere but on answers and their end tokens."""
    weights: torch.Tensor
    """(B, L) float32: what each label counts. Every token of a long answer counts less, 1 / sqrt(tokens)."""
    patches: torch.Tensor
    """(B, 144, Dv) bfloat16."""
    grounding: Grounding | None
    """None for captions."""

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return tree_map(lambda part: part if part is None else part.to(device), self)


class RowEncoder:
    """Turns scenes with questions or captions into ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, num_query_tokens: int):
        image, query, self.end = tokenizer.convert_tokens_to_ids([IMAGE, QUERY, END])
        self.pad = tokenizer.pad_token_id
        self.pieces = lru_cache(1 << 18)(lambda text: tuple(tokenizer.encode(text, add_special_tokens=False)))
        self.image, self.queries = [image], [query] * num_query_tokens

    def conversation(self, turns: list[Turn], tokens: int) -> tuple[list[int], list[int]]:
        """Ids and labels of one conversation about one picture of so many `tokens`."""
        ids = [*self.pieces(f"{SYSTEM_PROMPT} USER: "), *self.image * tokens]
        labels = [IGNORED] * len(ids)
        for number, turn in enumerate(turns):
            header = "USER: " if number else "\n"
            prompt = [*self.pieces(header + turn.question), *self.queries, *self.pieces(" ASSISTANT:")]
            answer = [*self.pieces(f" {turn.answer}"), self.end]
            ids += prompt + answer
            labels += [IGNORED] * len(prompt) + answer
        return ids, labels

    def caption(self, text: str, tokens: int) -> tuple[list[int], list[int]]:
        """Ids and labels of a caption; the newline behind the queries is learnt as in the paper."""
        said, newline = list(self.pieces(text)), list(self.pieces("\n"))
        ids = self.image * tokens + said + self.queries + newline
        return ids, [IGNORED] * tokens + said + [IGNORED] * len(self.queries) + newline

    def questions(
        self,
        scenes: list[Scene],
        patches: torch.Tensor,
        num_turns: int,
        tokens: int,
        random: Random,
        left_out: tuple[str, ...] = (),
        worth: dict[str, float] | None = None,
        counts_first: float = 0.0,
        capitals: float = 0.0,
    ) -> Batch:
        """A batch of one conversation a scene, with up to `num_turns` questions each, none of the families `left_out`.

        A scene that nothing else can be asked about is in the batch, but nothing is learnt from it. `worth` says what
        an answer of a family counts, where not 1. `counts_first` is the share of conversations in which a number is
        asked for, if one can be; `capitals` that of questions all in capitals, beside those that are so anyway.
        """
        turns = [self.turns(scene, num_turns, random, left_out, counts_first, capitals) for scene in scenes]
        rows = [self.conversation(row_turns, tokens) for row_turns in turns]
        worths = [[(worth or {}).get(turn.family, 1.0) for turn in row_turns] for row_turns in turns]
        return self._batch(rows, patches, grounding_of(scenes, turns, len(self.queries)), worths)

    def captions(self, scenes: list[Scene], patches: torch.Tensor, tokens: int, random: Random) -> Batch:
        """A batch of one caption a scene; a scene of which nobody knows what it shows is left out."""
        known = [index for index, scene in enumerate(scenes) if scene.owner is not None]
        rows = [self.caption(caption(scenes[index], random), tokens) for index in known]
        return self._batch(rows, patches[known], None)

    @staticmethod
    def turns(
        scene: Scene,
        num_turns: int,
        random: Random,
        left_out: tuple[str, ...] = (),
        counts_first: float = 0.0,
        capitals: float = 0.0,
    ) -> list[Turn]:
        """Up to `num_turns` questions; a description comes last, as it tells what others ask."""
        asked = [turn for turn in questions_about(scene, random) if turn.family not in left_out]
        if counts_first and random.random() < counts_first:
            asked.sort(key=lambda turn: turn.family != "count")
        asked = asked[:num_turns]
        if counts_first:  # or numbers would only ever be asked for first
            random.shuffle(asked)
        if capitals:
            asked = [
                replace(turn, question=turn.question.upper()) if random.random() < capitals else turn for turn in asked
            ]
        return sorted(asked, key=lambda turn: turn.family == "describe")

    def _batch(
        self, rows: list, patches: torch.Tensor, grounding: Grounding | None, worths: list[list[float]] | None = None
    ) -> Batch:
        length = max(len(ids) for ids, _ in rows)
        input_ids = torch.tensor([ids + [self.pad] * (length - len(ids)) for ids, _ in rows])
        labels = torch.tensor([labels + [IGNORED] * (length - len(labels)) for _, labels in rows])
        lengths = torch.tensor([len(ids) for ids, _ in rows])
        attention_mask = (torch.arange(length) < lengths[:, None]).long()
        return Batch(input_ids, attention_mask, labels, _answer_weights(labels, worths), patches, grounding)


def _answer_weights(labels: torch.Tensor, worths: list[list[float]] | None = None) -> torch.Tensor:
    """Worth / sqrt(n) for each of the n labels of an answer, for `labels` (B, L); 0 elsewhere.

    `worths` are those of the answers of each row, in their order; all 1 if not given.
    """
    answered = labels != IGNORED
    begins = answered & ~torch.nn.functional.pad(answered, (1, 0))[:, :-1]
    number = begins.cumsum(1) * answered  # (B, L): 0 outside of answers
    sizes = torch.zeros(labels.shape[0], int(number.max()) + 1).scatter_add(1, number, answered.float())
    weights = sizes.clamp(min=1).rsqrt()
    for row, worth in enumerate(worths or ()):
        weights[row, 1 : len(worth) + 1] *= torch.tensor(worth)
    return weights.gather(1, number) * answered
