"""Figures as a table, as JSON and in a model card."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .paper import BY_TASK
from .running import Outcome

HARNESS_URL = "https://github.com/EvolvingLMMs-Lab/lmms-eval"


def rows_of(outcomes: list[Outcome], high_definition: bool) -> list[dict]:
    """
    A row for each figure: `task`, `name`, `metric`, `value`, and for the paper's benchmarks `published` and
    `difference`; for a task that failed `problem`.
    """
    rows = []
    for outcome in outcomes:
        benchmark = BY_TASK.get(outcome.task)
        name = benchmark.name if benchmark else outcome.task
        row = {"task": outcome.task, "name": name, "metric": None, "value": None, "published": None, "difference": None}
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
    text = (
        ModelCard(card.read_text(encoding="utf-8")) if card.is_file() else ModelCard("---\nlicense: apache-2.0\n---\n")
    )
    measured = [_result(row) for row in rows if not row.get("problem")]
    new = {(result.dataset_type, result.metric_type) for result in measured}
    earlier = [old for old in text.data.eval_results or [] if (old.dataset_type, old.metric_type) not in new]
    metadata = text.data.to_dict()
    metadata.pop("model-index", None)
    metadata["model_name"] = text.data.to_dict().get("model_name") or Path(model).name
    data = ModelCardData(**metadata, eval_results=[*earlier, *measured])
    card.write_text(f"---\n{data}\n---\n{text.text}", encoding="utf-8")


def _result(row: dict) -> EvalResult:
    return EvalResult(
        task_type="image-text-to-text",
        dataset_type=row["task"],
        dataset_name=row["name"],
        metric_type=row["metric"],
        metric_value=row["value"],
        source_name="lmms-eval",
        source_url=HARNESS_URL,
    )


def _in_a_cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:200]
