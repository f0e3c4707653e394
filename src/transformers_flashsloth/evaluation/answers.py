"""
Answers to many conversations, in batches, that equal those to each alone.

A batch holds conversations with the same options and the same room for an answer: its rows are padded on the left,
which does not change what they answer. Sampled answers come one by one, each from a seed of its own, so that neither
batch nor order shows in them either.
"""

import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging

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
        processor ([`FlashSlothProcessor`]): its processor. Texts are padded on the left.
        batch_size (`int`): most conversations at once.
        processor_kwargs (`dict`, *optional*): such as `{"image_hd": True}`.
        seed (`int`): of sampled answers.
    """

    def __init__(self, model, processor, batch_size: int = 1, processor_kwargs: dict | None = None, seed: int = 0):
        self.model = model
        self.processor = processor
        self.batch_size = batch_size
        self.processor_kwargs = processor_kwargs or {}
        self.seed = seed
        self.context = model.config.text_config.max_position_embeddings
        tokenizer = processor.tokenizer
        tokens = [processor.image_token, processor.video_token, processor.query_token, "</s>"]
        tokens += [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token]
        self.reserved = [token for token in dict.fromkeys(tokens) if token]

    def answer(self, questions: list[Question], after_each: Callable[[int], Any] = lambda count: None) -> list[str]:
        """
        Answers questions.

        Args:
            questions (`list[Question]`): in any order.
            after_each (`Callable`): is told how many were answered, whenever some were.

        Returns:
            `list[str]`: an answer for each question, in their order, without blanks around it.

        Raises:
            InputError: if a conversation cannot be read, or leaves no room for an answer.
        """
        answers = [""] * len(questions)
        seeds = seeds_of(questions, self.seed)
        for rows in self._batches(questions):
            texts = self._answer_batch([questions[row] for row in rows], seeds[rows[0]])
            for row, text in zip(rows, texts, strict=True):
                answers[row] = text
            after_each(len(rows))
        return answers

    def _batches(self, questions: list[Question]) -> list[list[int]]:
        """Rows that go together: same options, and prompts of like length next to each other, the longest first."""
        groups: dict[AnswerOptions, list[int]] = {}
        for row, question in enumerate(questions):
            groups.setdefault(question.options, []).append(row)
        batches = []
        for options, rows in groups.items():
            size = 1 if options.temperature else self.batch_size
            rows.sort(key=lambda row: _length(questions[row]), reverse=True)
            batches += [rows[start : start + size] for start in range(0, len(rows), size)]
        return batches

    def _answer_batch(self, batch: list[Question], seed: int) -> list[str]:
        options = batch[0].options
        inputs = self._inputs(batch)
        lengths = inputs["attention_mask"].sum(1).tolist()
        if (longest := max(lengths)) >= self.context:
            raise InputError(
                f"a prompt takes {longest} tokens, but the model reads at most {self.context - 1}: fewer images or "
                "frames (num_frames=), or image_hd=False, take fewer"
            )
        # Near the end of the context each row's room is its own.
        if len(batch) > 1 and longest + options.max_new_tokens > self.context:
            return [text for question in batch for text in self._answer_batch([question], seed)]
        room = min(options.max_new_tokens, self.context - longest)
        return self._generate(inputs, replace(options, max_new_tokens=room), seed if options.temperature else None)

    def _inputs(self, batch: list[Question]):
        try:
            inputs = self.processor.apply_chat_template(
                [[self._readable(message) for message in question.messages] for question in batch],
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                add_generation_prompt=True,
                processor_kwargs={"padding": True, "padding_side": "left", **self.processor_kwargs},
            )
        except Exception as error:  # the template, the processors and the decoders of videos have their own kinds
            raise InputError(error) from error
        return inputs.to(self.model.device)

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

    def _generate(self, inputs, options: AnswerOptions, seed: int | None) -> list[str]:
        length = inputs["input_ids"].shape[1]
        tokenizer = self.processor.tokenizer
        criteria = StoppingCriteriaList([_Stop(tokenizer, options.stop, length)] if options.stop else [])
        with torch.random.fork_rng(enabled=seed is not None), torch.inference_mode():
            if seed is not None:
                torch.manual_seed(seed)
            output = self.model.generate(
                **inputs,
                **options.for_generate(),
                max_new_tokens=options.max_new_tokens,
                stopping_criteria=criteria,
            )
        texts = self.processor.batch_decode(output[:, length:], skip_special_tokens=True)
        return [_cut(text, options.stop).strip() for text in texts]


class _Stop(StoppingCriteria):
    """Ends a row whose answer has one of some strings in it. The prompt is not looked at."""

    def __init__(self, tokenizer, strings: tuple[str, ...], length: int):
        self.tokenizer = tokenizer
        self.strings = strings
        self.length = length
        # A token has at least a byte of text.
        self.tail = max(len(text.encode("utf-8")) for text in strings) + 1

    def __call__(self, input_ids: torch.LongTensor, scores, **kwargs) -> torch.BoolTensor:
        answers = input_ids[:, self.length :][:, -self.tail :]
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        done = [any(string in text for string in self.strings) for text in texts]
        return torch.tensor(done, device=input_ids.device)


def _cut(text: str, stop: tuple[str, ...]) -> str:
    ends = [position for string in stop if (position := text.find(string)) >= 0]
    return text[: min(ends)] if ends else text


def _parts(question: Question) -> list[dict]:
    contents = [message["content"] for message in question.messages]
    return [part for content in contents for part in as_parts(content)]


def as_parts(content: str | list[dict]) -> list[dict]:
    """A message's content as a list of parts, where it may be a text alone."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _text(question: Question) -> str:
    return "\n".join(part["text"] if part["type"] == "text" else part["type"] for part in _parts(question))


def _length(question: Question) -> tuple[int, int]:
    """By what prompts are sorted: an image takes more tokens than most texts."""
    return sum(part["type"] != "text" for part in _parts(question)), len(_text(question))


def seeds_of(questions: list[Question], seed: int) -> list[int]:
    """A seed for each question by what is asked and how many times it was asked before; no other question counts."""
    asked = Counter()
    seeds = []
    for question in questions:
        text = _text(question)
        asked[text] += 1
        seeds.append(zlib.crc32(f"{seed} {asked[text]} {text}".encode()))
    return seeds
