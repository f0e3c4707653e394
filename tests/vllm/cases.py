"""What is asked of both: the shipped examples, text alone, several images, several turns, high definition."""

import json
from importlib.resources import files
from pathlib import Path

EXAMPLES = Path(str(files("transformers_flashsloth") / "examples"))
QUESTIONS = json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))


def image(number: int) -> dict:
    return {"type": "image", "image": str(EXAMPLES / QUESTIONS[number]["image"])}


def user(*parts: dict | str) -> dict:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def turns(first: int, question: str) -> list[dict]:
    answer = {"role": "assistant", "content": [{"type": "text", "text": QUESTIONS[first]["answer"]}]}
    return [user(image(first), QUESTIONS[first]["question"]), answer, user(question)]


TEXT_ALONE = ("What is this?", "How many apples are there?", "Is there a dog?")
BASE = [
    *[{"messages": [user(image(number), example["question"])]} for number, example in enumerate(QUESTIONS)],
    *[{"messages": [user(question)]} for question in TEXT_ALONE],
    *[{"messages": [user(image(a), image(b), "What is this?")]} for a, b in ((0, 1), (2, 3), (4, 5))],
    *[{"messages": turns(first, "What is in the top left corner?")} for first in (0, 3, 6)],
]
COUNTED = {0: ("cats", "drums"), 2: ("drums",), 4: ("apples", "cows"), 6: ("stars", "bees"), 8: ("hearts",)}
"""What the shipped model counts otherwise without EmbQ, by picture."""
ASKED = [
    (n, wording.format(name))
    for wording in ("How many {} are there?", "how many {} can you see?")
    for n, names in COUNTED.items()
    for name in names
]
CASES = [
    *BASE,
    *[{"messages": [user(image(n), asked)]} for n, asked in ASKED if asked != QUESTIONS[n]["question"]],
    *[{"messages": [user(image(n), QUESTIONS[n]["question"])], "image_hd": True} for n in (0, 2, 5, 7)],
]
