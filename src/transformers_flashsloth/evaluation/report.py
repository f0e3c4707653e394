"""Figures as a table, as JSON and in a model card."""

from pathlib import Path

from ..publishing.figures import read_card, with_figures
from .paper import BY_TASK
from .running import Outcome


def rows_of(outcomes: list[Outcome], high_definition: bool) -> list[dict]:
    """
    A row for each figure: `task`, `name`, `metric`, `value`, what is known of its data (`dataset`, `config`, `split`),
    and for the paper's benchmarks `published` and `difference`; for a task that failed `problem`.
    """
    rows = []
    for outcome in outcomes:
        benchmark = BY_TASK.get(outcome.task)
        name = benchmark.name if benchmark else outcome.task
        row = {"task": outcome.task, "name": name, "metric": None, "value": None, "published": None, "difference": None}
        row |= outcome.data
        if benchmark:
            row |= {"published": benchmark.published[high_definition], "note": benchmark.note}
        problem = outcome.problem
        if problem is None and benchmark and (lacking := set(benchmark.metrics) - outcome.metrics.keys()):
            problem = f"it gave no {', '.join(sorted(lacking))}"
        if problem is not None:
            rows.append(row | {"problem": problem})
        elif benchmark:
            value = round(sum(outcome.metrics[metric] for metric in benchmark.metrics) * benchmark.scale, 2)
            found = {"metric": " + ".join(benchmark.metrics), "value": value}
            rows.append(row | found | {"difference": round(value - row["published"], 2)})
        else:
            rows += [row | {"metric": metric, "value": round(value, 4)} for metric, value in outcome.metrics.items()]
    return rows


def markdown(rows: list[dict], title: str, limit: int | None) -> str:
    """The rows as a table of Markdown."""
    lines = [f"# {title}", ""]
    if limit is not None:
        lines += [f"The first {limit} documents of each task only: to try it out, not to compare.", ""]
    lines += ["| task | metric | ours | published | difference |", "| --- | --- | ---: | ---: | ---: |"]
    for row in rows:
        if row.get("problem"):
            published = "" if row["published"] is None else f"{row['published']:g}"
            lines.append(f"| {row['name']} | failed: {_in_a_cell(row['problem'])} | | {published} | |")
            continue
        known = row["published"] is not None
        tail = f"{row['published']:g} | {row['difference']:+g}" if known else " | "
        lines.append(f"| {row['name']} | {row['metric']} | {row['value']:g} | {tail} |")
    notes = [f"- {row['name']}: {row['note']}." for row in rows if row.get("note")]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def write_into_card(rows: list[dict], card: Path, model: str) -> None:
    """Puts the figures into a model card's `model-index`, in the place of older ones of the same tasks."""
    with_figures(read_card(card), rows, Path(model).name).save(card)


def _in_a_cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:200]
