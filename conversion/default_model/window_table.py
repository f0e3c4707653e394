"""Measure what fewer visual tokens cost, with EmbQ and without it.

    python -m conversion.default_model.window_table [--model DIR] [--questions 1000] [--card MODEL_CARD.md]

The questions are those of `evaluate`. Tokens are pooled in windows of another size, chosen in the call; EmbQ reads all
patches whatever is pooled away. Beside the table a plot is drawn, where matplotlib is there.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch

from .answering import Answerer
from .architecture import WINDOWS
from .assets import TRAINED_STYLES
from .evaluate import QUESTIONS_PER_FAMILY
from .held_out import FAMILIES, SEVEN, held_out, mean_score
from .marked import write_between_markers
from .parts import without_embq
from .train import DEFAULT_CHECKPOINT


class Row(NamedTuple):
    """What was measured with one number of visual tokens."""

    tokens: int
    embq: bool
    trained: bool
    """Whether the config lists this window among those that the model was trained with."""
    scores: dict[str, float]
    """Family -> mean score, 0-1."""

    @property
    def mean(self) -> float:
        """Of the seven families of drawn pictures with answers of a word or two, 0-1."""
        return mean(self.scores[family] for family in SEVEN)


def measure_windows(ask: Answerer, questions: int) -> list[Row]:
    """Ask every family's questions with each window, EmbQ on and off."""
    items = {family: held_out(family, TRAINED_STYLES, questions) for family in FAMILIES}
    config = ask.model.config
    side = config.patch_grid[0]
    rows = []
    for embq in (True, False):
        for window in WINDOWS:
            trained = window in (config.pooling_windows or [config.pooling_window])
            with ask.pooled_in(window), nullcontext() if embq else without_embq(ask.model):
                scores = {family: mean_score(ask(asked), asked) for family, asked in items.items()}
            rows.append(Row((side // window) ** 2, embq, trained, scores))
    return rows


def markdown(rows: list[Row], questions: int) -> str:
    """The table, in percent, and the number of questions."""
    head = ["visual tokens", "EmbQ", *FAMILIES, "mean of the first seven"]
    lines = [head, ["---:", "---", *["---:"] * (len(head) - 2)]]
    for row in rows:
        figures = [*[row.scores[family] for family in FAMILIES], row.mean]
        tokens = f"{row.tokens}{'' if row.trained else ' (untrained)'}"
        lines.append([tokens, "on" if row.embq else "off", *[f"{figure:.1%}" for figure in figures]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{questions:,} questions a family."


def plot(rows: list[Row], path: Path) -> bool:
    """Mean of the seven families against visual tokens. Returns whether matplotlib is there to draw it."""
    try:
        from matplotlib import pyplot
    except ImportError:
        return False
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for embq, label in ((True, "with EmbQ"), (False, "without EmbQ")):
        own = [row for row in rows if row.embq is embq]
        axes.plot([row.tokens for row in own], [row.mean * 100 for row in own], "o-", label=label)
    tokens = sorted({row.tokens for row in rows})
    axes.set(xscale="log", xlabel="visual tokens", ylabel="mean of seven families, %", ylim=(0, 100))
    axes.set_xticks(tokens, [str(count) for count in tokens], minor=False)
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_CHECKPOINT, help="directory of a checkpoint")
    parser.add_argument("--card", type=Path, help="also write the table between the markers of this file")
    parser.add_argument("--plot", type=Path, default=Path("windows.png"), help="where the plot goes")
    parser.add_argument("--questions", type=int, default=QUESTIONS_PER_FAMILY, help="questions of each family")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    ask = Answerer.of(arguments.model, torch.device(arguments.device))
    rows = measure_windows(ask, arguments.questions)
    table = markdown(rows, arguments.questions)
    print(table)
    plot(rows, arguments.plot)
    if arguments.card:
        write_between_markers(arguments.card, "windows", table)


if __name__ == "__main__":
    main()
