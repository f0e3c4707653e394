"""Measure the default model on pictures it never saw, each family beside its blind baseline.

    python -m conversion.default_model.evaluate [--model DIR] [--markdown] [--card MODEL_CARD.md]

Pictures are drawn from random states that training does not use; easy-VQA is its whole official test split. Every
question is asked alone, through processor and `generate`, and an answer counts if it is the true one exactly; of a
description, F1 of the (thing, place) pairs counts. The blind baseline never looks: it gives the answer that training
has most often for the very same question. What each part of the model does for this is measured by `lesion_table`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from .answering import Answerer
from .assets import TRAINED_STYLES, UNSEEN_STYLE
from .held_out import FAMILIES, BlindBaseline, Item, easy_vqa_turns, held_out, mean_score, training_turns
from .marked import write_between_markers
from .train import DEFAULT_CHECKPOINT

QUESTIONS_PER_FAMILY = 1000


@dataclass(frozen=True)
class Result:
    """One row of the table; shares are 0-1."""

    title: str
    accuracy: float
    blind: float
    questions: int


def measure(title: str, items: list[Item], ask: Callable[[list[Item]], list[str]], blind: BlindBaseline) -> Result:
    """Mean score of `ask` and of the blind baseline on `items`."""
    guesses = [blind.answer(item.turn) for item in items]
    return Result(title, mean_score(ask(items), items), mean_score(guesses, items), len(items))


def evaluate(directory: Path, device: torch.device, count: int = QUESTIONS_PER_FAMILY) -> list[Result]:
    """All rows of the table. The unseen style needs `resvg-py` and is left out without it."""
    ask, blind = Answerer.of(directory, device), BlindBaseline(training_turns())
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
    rows = [f"{row.title:<52}{row.accuracy:>10.1%}{row.blind:>10.1%}{row.questions:>11,}" for row in results]
    return "\n".join([f"{'family':<52}{'accuracy':>10}{'blind':>10}{'questions':>11}", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_CHECKPOINT, help="directory of a checkpoint")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--card", type=Path, help="also write the table between the markers of this file")
    parser.add_argument("--questions", type=int, default=QUESTIONS_PER_FAMILY, help="questions of each drawn family")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    results = evaluate(arguments.model, torch.device(arguments.device), arguments.questions)
    print(table(results, arguments.markdown))
    if arguments.card:
        write_between_markers(arguments.card, "figures", table(results, markdown=True))


if __name__ == "__main__":
    main()
