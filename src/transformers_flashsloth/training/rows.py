"""
One row of training data to a conversation: what it must look like, and what is wrong with it if it does not.

    LLaVA  {"id", "image"?: "a.jpg" | ["a.jpg", ...], "conversations": [{"from": "human" | "gpt", "value"}, ...]}
    table  image, question, answer (column names can be chosen)
      -> messages [{"role", "content": [{"type": "image"} ..., {"type": "text", "text"}]}, ...] and image files

An `<image>` that a LLaVA question holds stands for one of the row's images and moves to the front of its turn; without
any, the images open the conversation. Everywhere else the text of a special token is a fault: the chat template would
refuse it. Role headers (`USER:`) are text, which the template defuses; only if most rows have one is something wrong.
"""

import math
import os
from dataclasses import dataclass
from typing import NamedTuple

from .row_files import BadRow

IMAGE = "<image>"
RESERVED = (IMAGE, "<learnable>", "</s>", "<|endoftext|>")
ROLE_HEADERS = ("USER:", "ASSISTANT:")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
# The columns of a table that may name the image, if none is chosen.
IMAGE_COLUMNS = ("image", "file_name")

# What to look at if most rows are broken in one way.
HINTS = {
    "fields": "Check the names of the columns.",
    "image": "Check the image folder.",
    "placeholder": "Check that the rows' images and placeholders belong together.",
    "headers": "Give bare questions and answers: the chat template writes the headers.",
    "length": "Raise `max_length` if the decoder's context allows it, or shorten the rows.",
}


class RowError(Exception):
    """Why a row cannot be used; `kind` is the same for faults of one cause."""

    def __init__(self, kind: str, problem: str):
        super().__init__(problem)
        self.kind = kind


class Fault(NamedTuple):
    """A broken row. Rows are counted from 0, those of a CSV file from the line below the column names."""

    file: str
    row: int
    id: str | None
    kind: str
    problem: str

    def __str__(self) -> str:
        name = f" (id {self.id!r})" if self.id else ""
        return f"{self.file}, row {self.row}{name}: {self.problem}."


class Row(NamedTuple):
    """A row that could be read, or the fault in its place."""

    number: int
    id: str | None
    messages: list[dict]
    images: list[str]
    fault: Fault | None


@dataclass(frozen=True)
class Source:
    """Where rows come from and how they are read: with `columns` as a table, without as LLaVA's JSON."""

    path: str
    image_folder: str
    columns: tuple[str, str, str] | None = None

    def row(self, number: int, item: dict | BadRow) -> Row:
        """Reads a row; every fault that the row alone can show is found, that of a missing file is not."""
        name = None
        if isinstance(item, dict) and item.get("id") not in (None, ""):
            name = str(item["id"]).encode(errors="replace").decode()
        try:
            if isinstance(item, BadRow):
                raise RowError("format", item.problem)
            if not isinstance(item, dict):
                raise RowError("format", f"it is no object with fields but a {type(item).__name__}")
            messages, images = _from_llava(item) if self.columns is None else _from_table(item, *self.columns)
            paths = [os.path.join(self.image_folder, image) for image in images]
        except RowError as error:
            return Row(number, name, [], [], Fault(self.path, number, name, error.kind, str(error)))
        return Row(number, name, messages, paths, None)


def has_role_header(messages: list[dict]) -> bool:
    """Whether a text of the conversation holds what only the chat template should write."""
    texts = [part["text"] for message in messages for part in message["content"] if part["text"]]
    return any(header in text for text in texts for header in ROLE_HEADERS)


def _from_llava(item: dict) -> tuple[list[dict], list[str]]:
    turns = item.get("conversations")
    if "conversations" not in item:
        raise RowError("fields", f"it has no list `conversations`, only {_names(item)}")
    if not isinstance(turns, list):
        raise RowError("fields", f"its `conversations` is no list but a {type(turns).__name__}")
    if not turns:
        raise RowError("empty", "its conversation is empty")
    images = _image_names(item.get("image"))
    roles, values = [], []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str) or "from" not in turn:
            raise RowError("fields", f"turn {number} is not of the form {{'from': ..., 'value': text}}")
        if not isinstance(turn["from"], str) or turn["from"] not in ROLES:
            raise RowError("fields", f"turn {number} is from {turn['from']!r}, neither 'human' nor 'gpt'")
        roles.append(ROLES[turn["from"]])
        values.append(turn["value"])
    _check_order(roles)

    placeholders = [value.count(IMAGE) if role == "user" else 0 for role, value in zip(roles, values, strict=True)]
    if images and not any(placeholders):
        placeholders[roles.index("user")] = len(images)
    if sum(placeholders) != len(images):
        raise RowError("placeholder", f"it has {len(images)} images but {sum(placeholders)} {IMAGE} in its questions")
    messages = []
    for number, (role, value, count) in enumerate(zip(roles, values, placeholders, strict=True), start=1):
        text = value.replace(IMAGE, "") if role == "user" else value
        messages.append(_message(role, text, count, f"turn {number}"))
    return messages, images


def _from_table(item: dict, image: str, question: str, answer: str) -> tuple[list[dict], list[str]]:
    missing = [column for column in (question, answer) if column not in item]
    if missing:
        raise RowError("fields", f"it has no {' and no '.join(map(repr, missing))}, only {_names(item)}")
    images = _image_names(item.get(image))
    if not images:
        raise RowError("image", f"its {image!r} names no image")
    for column in (question, answer):
        value = item[column]
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
        if not isinstance(value, str) and not is_number:
            raise RowError("format", f"its {column!r} is no text but {value!r}")
    user = _message("user", str(item[question]), len(images), f"its {question!r}")
    return [user, _message("assistant", str(item[answer]), 0, f"its {answer!r}")], images


def _message(role: str, text: str, num_images: int, place: str) -> dict:
    text = text.strip()
    if not _is_unicode(text):
        raise RowError("format", f"{place} holds half a character (a surrogate without its pair): {text[:40]!r}")
    if not text and role == "assistant":
        raise RowError("empty", f"{place}, the answer, is empty")
    if not text and role == "user" and not num_images:
        raise RowError("empty", f"{place}, the question, is empty")
    for token in RESERVED:
        if token in text:
            raise RowError("placeholder", f"{place} contains the text of the special token {token}")
    # All parts have the same fields, as a column of `datasets` must.
    content = [{"type": "image", "text": None}] * num_images + [{"type": "text", "text": text}]
    return {"role": role, "content": content}


def _check_order(roles: list[str]) -> None:
    begin = 1 if roles[0] == "system" else 0
    for number, role in enumerate(roles[begin:]):
        expected = "assistant" if number % 2 else "user"
        if role != expected:
            raise RowError("turns", f"turn {begin + number + 1} is the {role}'s where the {expected}'s must stand")
    if roles[-1] != "assistant":
        raise RowError("turns", "it does not end with an answer")


def _image_names(value: object) -> list[str]:
    names = value if isinstance(value, list) else [] if value in (None, "") else [value]
    for name in names:
        if not isinstance(name, str) or not name or not _is_unicode(name):
            raise RowError("image", f"an image is named by a text, not by {name!r}")
    return names


def _is_unicode(text: str) -> bool:
    """Whether a text can be written: JSON may escape one half of a pair of surrogates, as cutting a text leaves it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _names(item: dict) -> str:
    return ", ".join(map(repr, item)) or "nothing"
