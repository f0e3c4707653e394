"""What the ablation's runs say: a table with intervals paired by seed, and a plot."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from .held_out import FAMILIES, SEVEN
from .variants import Size

CLAIMS = (
    ("SAP over averages, EmbQ reading as well", "full", "average"),
    ("SAP over averages, tokens alone", "without-embq", "neither"),
    ("EmbQ over none, behind SAP", "full", "without-embq"),
    ("EmbQ over none, behind averages", "average", "neither"),
    ("the whole over no pooling", "full", "unpooled"),
)
"""What is compared at equal tokens, or, the last, at a ninth of them: the first variant's mean less the second's."""
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t that 95 % of differences stay within, for 1 to 9 degrees of freedom."""


class Run(NamedTuple):
    """One variant trained with one seed."""

    variant: str
    seed: int
    scores: dict[str, float]
    """Family -> mean score, 0-1."""
    visual_tokens: int
    operations: int
    """To the first token of an answer."""
    size: dict[str, int | None]
    """How much it trained and answered, the fields of its `Size`."""
    tower: str
    """Fingerprint of the vision tower that it stands behind."""
    stages: str
    """Fingerprint of what its stages train on, and how."""

    @property
    def mean(self) -> float:
        """Of the seven families of drawn pictures with answers of a word or two, 0-1."""
        return mean(self.scores[family] for family in SEVEN)


def interval(values: list[float]) -> tuple[float, float | None]:
    """Mean and half the width of its 95 % interval; one value has none."""
    if len(values) == 1:
        return values[0], None
    return mean(values), T_975[len(values) - 2] * stdev(values) / len(values) ** 0.5


def _said(values: list[float], sign: str = "-") -> str:
    """Mean of `values` with its interval, for a table; `sign` is "+" where a plus is written, too."""
    average, half = interval(values)
    return f"{average:{sign}.1f}" + ("" if half is None else f" ± {half:.1f}")


def table(runs: list[Run], titles: dict[str, str], size: Size) -> str:
    """Markdown: means over seeds and, paired by seed, what each variant's mean is more than the whole model's."""
    head = ["variant", "seeds", "visual tokens", "MFLOPs", "mean of seven", "against full, points", *FAMILIES]
    full = {run.seed: run for run in runs if run.variant == "full"}
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name, title in titles.items():
        own = [run for run in runs if run.variant == name]
        lines.append(
            [
                title,
                str(len(own)),
                str(own[0].visual_tokens),
                f"{own[0].operations / 1e6:,.0f}",
                _said([run.mean * 100 for run in own]),
                "" if name == "full" else _said([(run.mean - full[run.seed].mean) * 100 for run in own], "+"),
                *[f"{mean(run.scores[family] for run in own):.1%}" for family in FAMILIES],
            ]
        )
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        f"{rows}\n\n{size.alignment:,} batches of alignment, {size.looking:,} of looking, {size.instruction:,} of "
        f"instruction; {size.pictures:,} pictures; {size.questions:,} questions a family; "
        "± is half of a 95 % interval over seeds."
    )


def claims(runs: list[Run]) -> str:
    """Markdown: the paper's claims as differences of means, paired by seed; "" if no pair of runs is there."""
    means = {(run.variant, run.seed): run.mean * 100 for run in runs}
    lines = []
    for title, more, less in CLAIMS:
        seeds = sorted(seed for name, seed in means if name == more and (less, seed) in means)
        if seeds:
            differences = [means[more, seed] - means[less, seed] for seed in seeds]
            lines.append(f"| {title} | {len(seeds)} | {_said(differences, '+')} |")
    head = ["| the paper's claims | seeds | difference of means, points |", "| --- | ---: | ---: |"]
    return "\n".join(head + lines) if lines else ""


def plot(runs: list[Run], path: Path) -> bool:
    """Mean of the seven families against operations. Returns whether matplotlib is there to draw it."""
    try:
        from matplotlib import pyplot
    except ImportError:
        return False
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name in dict.fromkeys(run.variant for run in runs):
        own = [run for run in runs if run.variant == name]
        average, half = interval([run.mean * 100 for run in own])
        label = f"{name}, {own[0].visual_tokens} tokens"
        axes.errorbar(own[0].operations / 1e6, average, half, fmt="o", capsize=4, label=label)
    axes.set(xlabel="MFLOPs to the first token", ylabel="mean of seven families, % (95 % intervals)")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return True
