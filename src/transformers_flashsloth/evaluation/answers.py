"""
Answers to many conversations that equal those to each alone.

`answer_all` makes the batches, and encodes an image once, however many documents are about it. Questions with the same
options are answered together; sampled answers come one by one, each from a seed of its own, so that neither batch nor
order shows in them either.
"""

import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import logging

from ..answering.answers import DEFAULT_STORE_BYTES, answer_all
from ..answering.features import FeatureStore
from ..checkpoints.opening import InputError
from .options import AnswerOptions

logger = logging.get_logger(__name__)


@dataclass
class Question:
    """A conversation that ends with a user's turn, in messages as a chat template takes them."""

    messages: list[dict]
    options: AnswerOptions


class Answerer:
    """
    Answers conversations.

    Args:
        model ([`FlashSlothForConditionalGeneration`]): in evaluation mode; a PEFT model of one will do.
        processor ([`FlashSlothProcessor`]): its processor.
        batch_size (`int`): most conversations at once.
        processor_kwargs (`dict`, *optional*): such as `{"image_hd": True}`.
        seed (`int`): of sampled answers.

    Attributes:
        features ([`FeatureStore`]): of the images that were asked about, up to 1 GiB.
    """

    def __init__(self, model, processor, batch_size: int = 1, processor_kwargs: dict | None = None, seed: int = 0):
        self.model = model
        self.processor = processor
        self.batch_size = batch_size
        self.processor_kwargs = processor_kwargs or {}
        self.seed = seed
        self.features = FeatureStore(DEFAULT_STORE_BYTES)
        tokenizer = processor.tokenizer
        tokens = [processor.image_token, processor.video_token, processor.query_token, "</s>"]
        tokens += [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token]
        self.reserved = [token for token in dict.fromkeys(tokens) if token]

    def answer(
        self,
        questions: list[Question],
        after_each: Callable[[int], Any] = lambda count: None,
        asked: Counter | None = None,
    ) -> list[str]:
        """
        Answers questions.

        Args:
            questions (`list[Question]`): in any order.
            after_each (`Callable`): is told how many were answered, whenever some were.
            asked (`Counter`, *optional*): which texts were asked before, and how often, where these questions are a
                part of more; it counts on. Sampled answers to the same question differ.

        Returns:
            `list[str]`: an answer for each question, in their order, without blanks around it.

        Raises:
            InputError: if a conversation cannot be read, or leaves no room for an answer.
        """
        seeds = seeds_of(questions, self.seed, Counter() if asked is None else asked)
        groups: dict[AnswerOptions, list[int]] = {}
        for row, question in enumerate(questions):
            groups.setdefault(question.options, []).append(row)
        answers = [""] * len(questions)
        for options, rows in groups.items():
            for part in [[row] for row in rows] if options.temperature else [rows]:
                texts = self._answer_alike([questions[row] for row in part], options, seeds[part[0]], after_each)
                for row, text in zip(part, texts, strict=True):
                    answers[row] = text
        return answers

    def _answer_alike(self, questions: list[Question], options: AnswerOptions, seed: int, after_each) -> list[str]:
        """Answers questions with the same options, `seed` being for a sampled one."""
        conversations = [[self._readable(message) for message in question.messages] for question in questions]
        with torch.random.fork_rng(enabled=bool(options.temperature)):
            if options.temperature:
                torch.manual_seed(seed)
            try:
                return answer_all(
                    self.model,
                    self.processor,
                    conversations,
                    batch_size=self.batch_size,
                    features=self.features,
                    processor_kwargs=self.processor_kwargs,
                    until=options.stop,
                    progress=lambda index, answer: after_each(1),
                    max_new_tokens=options.max_new_tokens,
                    **options.for_generate(),
                )
            except ValueError as error:
                if error.__cause__ is None:
                    raise
                # Its number is one of this part of a task's documents, which says nothing to a reader.
                raise InputError(f"a document cannot be asked: {error.__cause__}") from error

    def _readable(self, message: dict) -> dict:
        """A message whose text names no special token, which only the chat template may write."""
        return {**message, "content": [self._readable_part(part) for part in as_parts(message["content"])]}

    def _readable_part(self, part: dict) -> dict:
        if part["type"] != "text":
            return part
        text = part["text"]
        for token in self.reserved:
            if token in text:
                logger.warning_once(f"A task's text has {token!r} in it, which is read as typed, with a blank inside.")
                text = text.replace(token, f"{token[:1]} {token[1:]}")
        return {**part, "text": text}


def _parts(question: Question) -> list[dict]:
    contents = [message["content"] for message in question.messages]
    return [part for content in contents for part in as_parts(content)]


def as_parts(content: str | list[dict]) -> list[dict]:
    """A message's content as a list of parts, where it may be a text alone."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _text(question: Question) -> str:
    return "\n".join(part["text"] if part["type"] == "text" else part["type"] for part in _parts(question))


def seeds_of(questions: list[Question], seed: int, asked: Counter) -> list[int]:
    """A seed for each question by what is asked and how many times it was asked before; no other question counts."""
    seeds = []
    for question in questions:
        text = _text(question)
        asked[text] += 1
        seeds.append(zlib.crc32(f"{seed} {asked[text]} {text}".encode()))
    return seeds
