"""Tasks run one after another, each kept on disk once it is finished."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .paper import BY_TASK, UNTIL_THE_END, why_not
from .plugin import MODEL_ID

TASKS = Path(__file__).with_name("tasks")  # of this package


@dataclass
class Outcome:
    """
    What became of a task: its metrics by name (`stderr` left out), or why there are none; and where its documents are
    from: `dataset`, `config` and `split`, those that lmms-eval knows.
    """

    task: str
    metrics: dict[str, float]
    problem: str | None = None
    was_kept: bool = False
    data: dict[str, str] = field(default_factory=dict)


def run_tasks(
    open_model: Callable[[], Any],
    tasks: list[str],
    settings: dict[str, Any],
    directory: Path,
    include_path: str | None = None,
    limit: int | None = None,
    say: Callable[[str], Any] = lambda line: None,
) -> list[Outcome]:
    """
    Evaluates tasks. Those that `directory` has with the same settings are not run again.

    Args:
        open_model (`Callable`): makes lmms-eval's model, once the first task needs it.
        tasks (`list[str]`): names.
        settings (`dict`): all that figures depend on.
        directory (`Path`): for `TASK.json` files.
        include_path (`str`, *optional*): directory with more task files.
        limit (`int`, *optional*): most documents of a task.
        say (`Callable`): is told of each task.
    """
    settings = json.loads(json.dumps(settings | {"limit": limit}))
    kept = {task: _kept(directory, task, settings) for task in tasks}
    outcomes, model = [], None
    for number, task in enumerate(tasks, start=1):
        if kept[task] is not None:
            outcome = Outcome(task, kept[task]["metrics"], was_kept=True, data=kept[task].get("data", {}))
        elif (problem := why_not(task)) is not None:
            outcome = Outcome(task, {}, problem)
        else:
            say(f"[{number}/{len(tasks)}] {task} ...")
            if model is None:
                model = open_model()
                model.options_of_task = {name: known.generation | UNTIL_THE_END for name, known in BY_TASK.items()}
            outcome = _run(model, task, include_path, limit)
            if outcome.problem is None and model.rank == 0:
                _keep(directory, outcome, settings)
        outcomes.append(outcome)
        how = "finished before" if outcome.was_kept else outcome.problem or "finished"
        say(f"[{number}/{len(tasks)}] {task}: {how}")
    return outcomes


def _run(model, task: str, include_path: str | None, limit: int | None) -> Outcome:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    try:
        paths = [str(TASKS), *([] if include_path is None else [include_path])]
        manager = TaskManager("ERROR", include_path=paths, model_name=MODEL_ID)
        if task not in manager.all_tasks:
            return Outcome(task, {}, "lmms-eval has no task of this name")
        results = simple_evaluate(
            model=model,
            tasks=[task],
            limit=limit,
            batch_size=model.batch_size,
            task_manager=manager,
            log_samples=False,
            bootstrap_iters=0,
            verbosity="ERROR",
        )
    except (Exception, SystemExit) as error:  # data that cannot be had, a task that is broken, a judge that is away
        return Outcome(task, {}, f"{type(error).__name__}: {error}")
    if model.rank != 0:
        return Outcome(task, {})
    found = {part: (results or {}).get(part, {}).get(task, {}) for part in ("results", "configs")}
    metrics = _figures(found["results"])
    return Outcome(task, metrics, None if metrics else "it gave no figure", data=_data(found["configs"]))


def _data(config: dict[str, Any]) -> dict[str, str]:
    names = {"dataset": "dataset_path", "config": "dataset_name", "split": "test_split"}
    return {ours: config[theirs] for ours, theirs in names.items() if isinstance(config.get(theirs), str)}


def _figures(found: dict[str, Any]) -> dict[str, float]:
    figures = {}
    for name, value in found.items():
        metric = name.split(",")[0]
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if is_number and "stderr" not in metric:
            figures.setdefault(metric, float(value))
    return figures


def _kept(directory: Path, task: str, settings: dict) -> dict | None:
    try:
        found = json.loads((directory / f"{task}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if found.get("settings") == settings else None


def _keep(directory: Path, outcome: Outcome, settings: dict) -> None:
    """Whole or not at all, as an evaluation may end at any moment."""
    directory.mkdir(parents=True, exist_ok=True)
    aside = directory / f".{outcome.task}.json"
    record = {"task": outcome.task, "data": outcome.data, "settings": settings, "metrics": outcome.metrics}
    text = json.dumps(record, indent=2)
    aside.write_text(text + "\n", encoding="utf-8")
    os.replace(aside, directory / f"{outcome.task}.json")
