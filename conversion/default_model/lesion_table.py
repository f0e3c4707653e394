"""Measure what each part of the default model does, by taking it away.

    python -m conversion.default_model.lesion_table [--model DIR] [--questions 1000] [--card MODEL_CARD.md]

The questions are those of `evaluate`. Beside them stands where the model looks: how far the maps of its nine queries
overlap, and how much of SAP's weight lies on covered patches of windows that things cover in part.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from .answering import Answerer
from .assets import TRAINED_STYLES
from .evaluate import QUESTIONS_PER_FAMILY
from .held_out import FAMILIES, SEVEN, BlindBaseline, held_out, mean_score, training_turns
from .lesions import LESIONS
from .looking import Looking, looking
from .marked import write_between_markers
from .train import DEFAULT_CHECKPOINT


@dataclass(frozen=True)
class Lesioned:
    """What was measured on one model."""

    questions: int
    """Of each family."""
    scores: dict[str, dict[str, float]]
    """What is taken away (and "blind", the baseline that never looks) -> family -> mean score, 0-1."""
    looking: dict[str, Looking]
    """Of the whole model, by family."""


def measure_lesions(ask: Answerer, questions: int) -> Lesioned:
    """Ask every family's questions with each part taken away."""
    items = {family: held_out(family, TRAINED_STYLES, questions) for family in FAMILIES}
    scores = {}
    for name, lesion in LESIONS.items():
        with lesion(ask.model):
            scores[name] = {family: mean_score(ask(asked), asked) for family, asked in items.items()}
    blind = BlindBaseline(training_turns())
    scores["blind"] = {
        family: mean_score([blind.answer(item.turn) for item in asked], asked) for family, asked in items.items()
    }
    return Lesioned(questions, scores, {family: looking(ask, asked) for family, asked in items.items()})


def mean_of_seven(scores: dict[str, float]) -> float:
    """Mean of the drawn families that have answers of a word or two, 0-1."""
    return sum(scores[family] for family in SEVEN) / len(SEVEN)


def markdown(measured: Lesioned) -> str:
    """Both tables, in percent, and the number of questions."""
    head = [*FAMILIES, "mean of the first seven"]
    rows = [
        [name, *[f"{scores[family]:.1%}" for family in FAMILIES], f"{mean_of_seven(scores):.1%}"]
        for name, scores in measured.scores.items()
    ]
    looked = list(measured.looking.values())
    means = Looking(*[sum(values) / len(values) for values in zip(*looked, strict=True)])
    where = [
        [title, *[f"{value:.2f}" for value in (*(look[index] for look in looked), means[index])]]
        for index, title in enumerate(
            (
                "mean pairwise overlap of the queries' maps",
                "SAP's weight on covered patches of mixed windows",
                "the same for plain averages",
            )
        )
    ]
    return "\n\n".join(
        (
            _table(["taken away", *head], rows),
            _table(["where it looks", *FAMILIES, "mean"], where),
            f"{measured.questions:,} questions a family.",
        )
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_CHECKPOINT, help="directory of a checkpoint")
    parser.add_argument("--card", type=Path, help="also write the tables between the markers of this file")
    parser.add_argument("--questions", type=int, default=QUESTIONS_PER_FAMILY, help="questions of each family")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    ask = Answerer.of(arguments.model, torch.device(arguments.device))
    tables = markdown(measure_lesions(ask, arguments.questions))
    print(tables)
    if arguments.card:
        write_between_markers(arguments.card, "lesions", tables)


if __name__ == "__main__":
    main()
