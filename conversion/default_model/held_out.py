"""Questions about pictures that training never draws, how an answer is judged, and the baseline that never looks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

import numpy as np

from .assets import load_easy_vqa
from .canvas import IMAGE_SIZE
from .captions import f1
from .questions import Turn, questions_about
from .scenes import KINDS, scene_of

BLIND_SCENES = 30_000
CLUTTER = ("clutter", "touching")
FAMILIES = {
    "name": ("name of an emoji", ("single",)),
    "corner": ("what is in a corner", ("corners", "shape corners")),
    "where": ("which corner it is in", ("corners", "shape corners")),
    "count": ("how many", ("counting", "counting", "several")),
    "present": ("is there a ...", ("single", "several", "corners", "shapes")),
    "colour": ("colour of a shape", ("shapes",)),
    "shape": ("shape of a colour", ("shapes",)),
    "clutter": ("small and touching things in clutter, any question", CLUTTER),
    "describe": ("describe the picture (F1 of thing and place)", ("single", "several", "corners", "shapes", *CLUTTER)),
}
"""Family of questions -> its title and the scenes that it is asked about."""
SEVEN = tuple(FAMILIES)[:7]
"""The families of drawn pictures with answers of a word or two on plain grounds."""


@dataclass(frozen=True)
class Item:
    """One picture with one question."""

    image: np.ndarray
    turn: Turn
    covered: np.ndarray | None = None
    """Share of each patch that things cover, (144,); None where nobody knows."""


def held_out(family: str, styles: tuple[str, ...], count: int) -> list[Item]:
    """`count` questions of a family, each about its own unseen picture."""
    random = Random(f"held out {family} {styles}")
    items = []
    while len(items) < count:
        scene = scene_of(random.choice(FAMILIES[family][1]), random, styles)
        asked = [turn for turn in questions_about(scene, random) if _belongs(turn, family)]
        items += [Item(scene.image, turn, scene.covered().sum(-1)) for turn in asked[:1]]
    return items


def _belongs(turn: Turn, family: str) -> bool:
    return turn.family != "describe" if family == "clutter" else turn.family == family


def easy_vqa_turns(split: str) -> list[Item]:
    """Every official question of a split."""
    return [
        Item(image.pixels, Turn(question, answer, "easy-vqa"))
        for image in load_easy_vqa(split, IMAGE_SIZE)
        for question, answer in image.questions
    ]


def score(answer: str, turn: Turn) -> float:
    """How right an answer is, 0-1: F1 of its things and places for a description, else whether it is the true one."""
    return f1(answer, turn.answer) if turn.family == "describe" else float(answer == turn.answer)


def mean_score(answers: list[str], items: list[Item]) -> float:
    """Mean of `score` over questions."""
    return sum(score(answer, item.turn) for answer, item in zip(answers, items, strict=True)) / len(items)


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
