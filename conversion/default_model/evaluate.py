"""Measure the default model on pictures it never saw, each family beside its blind baseline.

    python -m conversion.default_model.evaluate [--model DIR] [--markdown]

Pictures are drawn from random states that training does not use; easy-VQA is its whole official test split. Every
question is asked alone, through processor and `generate`, and an answer counts if it is the true one exactly. The blind
baseline never looks: it gives the answer that training has most often for the very same question.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

from .assets import TRAINED_STYLES, UNSEEN_STYLE, load_easy_vqa
from .canvas import IMAGE_SIZE
from .questions import Turn, questions_about
from .scenes import KINDS, scene_of
from .train import DEFAULT_CHECKPOINT

QUESTIONS_PER_FAMILY = 1000
BLIND_SCENES = 30_000
BATCH_SIZE = 64
FAMILIES = {
    "name": ("name of an emoji", ("single",)),
    "corner": ("what is in a corner", ("corners", "shape corners")),
    "where": ("which corner it is in", ("corners", "shape corners")),
    "count": ("how many", ("counting", "counting", "several")),
    "present": ("is there a ...", ("single", "several", "corners", "shapes")),
    "colour": ("colour of a shape", ("shapes",)),
    "shape": ("shape of a colour", ("shapes",)),
}
"""Family of questions -> its title and the scenes that it is asked about."""


@dataclass(frozen=True)
class Item:
    """One picture with one question."""

    image: np.ndarray
    turn: Turn


@dataclass(frozen=True)
class Result:
    """One row of the table; shares are 0-1."""

    title: str
    accuracy: float
    blind: float
    questions: int


class BlindBaseline:
    """The most common answer to a question in training, whatever its letter case and punctuation."""

    def __init__(self, turns: Iterable[Turn]):
        self.answers: dict[str, Counter[str]] = defaultdict(Counter)
        for turn in turns:
            self.answers[self._key(turn.question)][turn.answer] += 1
            self.answers[turn.family][turn.answer] += 1

    def answer(self, turn: Turn) -> str:
        """The guess for `turn`; for a question that training never asked, the most common answer of its family."""
        counts = self.answers.get(self._key(turn.question)) or self.answers[turn.family]
        return counts.most_common(1)[0][0]

    @staticmethod
    def _key(question: str) -> str:
        return question.lower().rstrip("?.")


def training_turns() -> Iterable[Turn]:
    """A large sample of the questions that training asks about drawn scenes."""
    random = Random("blind baseline")
    for _ in range(BLIND_SCENES):
        yield from questions_about(scene_of(random.choice(tuple(KINDS)), random), random)


def held_out(family: str, styles: tuple[str, ...], count: int) -> list[Item]:
    """`count` questions of a family, each about its own unseen picture."""
    random = Random(f"held out {family} {styles}")
    items = []
    while len(items) < count:
        scene = scene_of(random.choice(FAMILIES[family][1]), random, styles)
        asked = [turn for turn in questions_about(scene, random) if turn.family == family]
        items += [Item(scene.image, turn) for turn in asked[:1]]
    return items


def easy_vqa_turns(split: str) -> list[Item]:
    """Every official question of a split."""
    return [
        Item(image.pixels, Turn(question, answer, "easy-vqa"))
        for image in load_easy_vqa(split, IMAGE_SIZE)
        for question, answer in image.questions
    ]


class Answerer:
    """Asks a checkpoint questions through transformers' own interfaces."""

    def __init__(self, directory: Path, device: torch.device):
        self.processor = AutoProcessor.from_pretrained(directory)
        self.model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).to(device).eval()

    def __call__(self, items: list[Item]) -> list[str]:
        """Greedy answers, a batch of single-turn conversations at a time."""
        answers = []
        for start in tqdm(range(0, len(items), BATCH_SIZE), unit="batch", leave=False):
            batch = items[start : start + BATCH_SIZE]
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
                for item in batch
            ]
            inputs = self.processor.apply_chat_template(
                conversations,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True, "padding_side": "left"},
            ).to(self.model.device)
            generated = self.model.generate(**inputs, do_sample=False, max_new_tokens=6)
            new = generated[:, inputs["input_ids"].shape[1] :]
            answers += [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]
        return answers


def measure(title: str, items: list[Item], ask: Callable[[list[Item]], list[str]], blind: BlindBaseline) -> Result:
    """Accuracy of `ask` and of the blind baseline on `items`."""
    truth = [item.turn.answer for item in items]
    right = sum(answer == true for answer, true in zip(ask(items), truth, strict=True))
    guessed = sum(blind.answer(item.turn) == item.turn.answer for item in items)
    return Result(title, right / len(items), guessed / len(items), len(items))


def evaluate(directory: Path, device: torch.device, count: int = QUESTIONS_PER_FAMILY) -> list[Result]:
    """All rows of the table. The unseen style needs `resvg-py` and is left out without it."""
    ask, blind = Answerer(directory, device), BlindBaseline(training_turns())
    official = BlindBaseline(item.turn for item in easy_vqa_turns("train"))
    results = [measure("easy-VQA, official test", easy_vqa_turns("test"), ask, official)]
    for family, (title, _) in FAMILIES.items():
        results.append(measure(title, held_out(family, TRAINED_STYLES, count), ask, blind))
    if find_spec("resvg_py"):
        title = f"{FAMILIES['name'][0]}, unseen style ({UNSEEN_STYLE})"
        results.append(measure(title, held_out("name", (UNSEEN_STYLE,), count), ask, blind))
    return results


def table(results: list[Result], markdown: bool) -> str:
    """The results as a table for a terminal or for MODEL_CARD.md."""
    if markdown:
        rows = [f"| {row.title} | {row.accuracy:.1%} | {row.blind:.1%} | {row.questions:,} |" for row in results]
        return "\n".join(["| family | accuracy | blind | questions |", "| --- | ---: | ---: | ---: |", *rows])
    rows = [f"{row.title:<40}{row.accuracy:>10.1%}{row.blind:>10.1%}{row.questions:>11,}" for row in results]
    return "\n".join([f"{'family':<40}{'accuracy':>10}{'blind':>10}{'questions':>11}", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_CHECKPOINT, help="directory of a checkpoint")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--questions", type=int, default=QUESTIONS_PER_FAMILY, help="questions of each drawn family")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    print(table(evaluate(arguments.model, torch.device(arguments.device), arguments.questions), arguments.markdown))


if __name__ == "__main__":
    main()
