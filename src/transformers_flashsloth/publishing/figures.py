"""Figures of an evaluation in a model card's `model-index`."""

import json
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

HARNESS, HARNESS_URL = "lmms-eval", "https://github.com/EvolvingLMMs-Lab/lmms-eval"
EMPTY_CARD = "---\nlicense: apache-2.0\n---\n"


def read_figures(file: Path) -> list[dict]:
    """
    The rows of a `results.json` that `flashsloth eval` wrote.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is another kind of file, has no figure, or has those of the first documents of tasks only.
    """
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
        limit, rows = found["settings"]["limit"], [row for row in found["results"] if not row.get("problem")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no results.json of `flashsloth eval`.") from error
    if limit is not None:
        raise ValueError(f"{file} has the first {limit} documents of each task only: evaluate without --limit.")
    if not rows:
        raise ValueError(f"{file} has no figure, as every task failed.")
    return rows


def read_card(file: Path) -> ModelCard:
    """
    A model card, or an empty one where there is no such file.

    Raises:
        ValueError: if its metadata cannot be read, or its directory is missing.
    """
    if not file.parent.is_dir():
        raise ValueError(f"There is no directory {str(file.parent)!r} for the model card.")
    try:
        return ModelCard(file.read_text(encoding="utf-8") if file.is_file() else EMPTY_CARD)
    except Exception as error:  # of the YAML parser, or of a `model-index` of another shape
        raise ValueError(f"The metadata of {file} cannot be read: {error}") from error


def with_figures(card: ModelCard, rows: list[dict], name: str) -> ModelCard:
    """
    A model card with figures in its `model-index`, in the place of older ones of the same tasks.

    Args:
        card ([`~huggingface_hub.ModelCard`]): what others measured stays in it.
        rows (`list[dict]`): as `rows_of` of the evaluation makes them: `task`, `name`, `metric` and `value`, and where
            it is known `dataset`, `config` and `split`. Rows with a `problem` are left out.
        name (`str`): of the model, if the card has none.
    """
    measured = [_result(row) for row in rows if not row.get("problem")]
    new = {_key(result) for result in measured}
    earlier = [result for result in card.data.eval_results or [] if _key(result) not in new]
    metadata = card.data.to_dict()
    metadata.pop("model-index", None)
    metadata["model_name"] = card.data.get("model_name") or metadata.get("model_name") or name
    data = ModelCardData(**metadata, eval_results=[*earlier, *measured])
    return ModelCard(f"---\n{data}\n---\n{card.text}")


def _key(result: EvalResult) -> tuple:
    return result.source_name, result.dataset_name, result.metric_type


def _result(row: dict) -> EvalResult:
    return EvalResult(
        task_type="image-text-to-text",
        dataset_type=row.get("dataset") or row["task"],
        dataset_name=row["name"],
        # Results of one dataset, config and split share a source in a card: without a config ours were the authors'.
        dataset_config=row.get("config") or row["task"],
        dataset_split=row.get("split"),
        metric_type=row["metric"],
        metric_value=row["value"],
        source_name=HARNESS,
        source_url=HARNESS_URL,
    )
