"""Held-out rows as questions: the last answer of a row is asked for, behind the true turns before it."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from datasets import Dataset, IterableDataset
from trl import prepare_multimodal_messages

from ..checkpoints.opening import InputError

# Columns of TRL's formats that a question is made of; the rest of a row is left on disk.
TEXTS, IMAGES = ("messages", "prompt", "completion"), ("images", "image")
# A prompt that is a text already, with its placeholders, is asked as it is.
BARE_TEMPLATE = "{{- messages[0]['content'][-1]['text'] -}}"


class Question(NamedTuple):
    """
    Attributes:
        conversation (`list[dict]`): messages up to a user's, images in their parts.
        expected (`str`): the answer that the row has.
        is_bare (`bool`): whether the row's prompt is a text and no conversation.
    """

    conversation: list[dict]
    expected: str
    is_bare: bool = False


class HeldOut:
    """
    Rows of a data set that are asked, the same ones every time.

    Args:
        rows (`Dataset` or `IterableDataset`): in one of TRL's formats.
        number (`int`, *optional*): most rows, spread evenly over the data set; the first ones of a stream. By default
            all.
    """

    def __init__(self, rows: Dataset | IterableDataset, number: int | None = None):
        if isinstance(rows, IterableDataset):
            self.rows = list(islice(rows, number))
        else:
            count = min(number or len(rows), len(rows))
            picked = [index * len(rows) // count for index in range(count)]
            self.rows = rows.select(picked).select_columns(_held_by(rows, (*TEXTS, *IMAGES)))
        if not len(self.rows):
            raise InputError("--eval_answers has no rows to ask: those kept for evaluation are none")
        self.expected()  # what has no answer is refused before the first step

    def __len__(self) -> int:
        return len(self.rows)

    def expected(self) -> list[str]:
        """The expected answers of all rows; no image is decoded."""
        rows = self.rows
        return [
            _split(row)[1] for row in (rows if isinstance(rows, list) else rows.select_columns(_held_by(rows, TEXTS)))
        ]

    def questions(self, indices: list[int]) -> Iterator[Question]:
        """The questions of some rows."""
        for index in indices:
            row = self.rows[index]
            before, expected = _split(row)
            images = row.get("images") or ([row["image"]] if row.get("image") is not None else [])
            if isinstance(before, str):
                parts = [{"type": "image", "image": image} for image in images]
                bare = {"role": "user", "content": [*parts, {"type": "text", "text": before}]}
                yield Question([bare], expected, is_bare=True)
                continue
            whole = prepare_multimodal_messages(_messages(row), images=images)
            yield Question(whole[: len(before)], expected)


def _held_by(rows: Dataset, columns: tuple[str, ...]) -> list[str]:
    return [name for name in columns if name in rows.column_names]


def text_of(message: dict) -> str:
    """The text of a message, whose content is one, or a list of parts."""
    content = message["content"]
    return content if isinstance(content, str) else " ".join(part.get("text") or "" for part in content).strip()


def _split(row: dict) -> tuple[list[dict] | str, str]:
    """What comes before the last answer of a row, and that answer."""
    if isinstance(row.get("prompt"), str):
        return row["prompt"], row["completion"].strip()
    messages = _messages(row)
    said = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not said:
        asked = text_of(messages[-1]) if messages else ""
        raise InputError(f"--eval_answers asks for answers, and a row kept for evaluation has none: {asked!r}")
    return messages[: said[-1]], text_of(messages[said[-1]]).strip()


def _messages(row: dict) -> list[dict]:
    return row["messages"] if row.get("messages") else [*row["prompt"], *row["completion"]]
