"""`flashsloth eval`."""

import argparse
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

from ..checkpoints.opening import LOAD_IN, InputError, input_errors, local_directory, open_processor
from ..checkpoints.options import loading_options, positive
from ..publishing.figures import read_card
from .paper import PAPER, tasks_of
from .plugin import MODEL_ID, check_installed
from .report import markdown, rows_of, write_into_card
from .running import run_tasks


def evaluate(arguments: list[str], prog: str) -> int:
    """Evaluates a model on tasks of lmms-eval; returns 1 if one failed."""
    options = _parser(prog).parse_args(arguments)
    tasks = tasks_of(options.tasks)
    if not tasks:
        raise InputError("--tasks names no task")
    if options.include_path is not None and not Path(options.include_path).is_dir():
        raise InputError(f"there is no directory {options.include_path!r} with task files")
    if options.card is not None:
        _check_card(options)
    check_installed()
    directory = local_directory(options.model)
    high_definition = options.hd or bool(open_processor(directory).image_processor.image_hd)
    choices = {
        "pretrained": directory,
        "peft": options.adapter,
        "image_hd": options.hd,
        "dtype": options.dtype,
        "load_in": options.load_in,
    }
    given = {name: value for name, value in choices.items() if value is not None}

    is_first = int(os.environ.get("RANK", 0)) == 0
    settings = given | {"pretrained": options.model, "lmms_eval": version("lmms_eval")}
    outcomes = run_tasks(
        lambda: _open_model(given, options),
        tasks,
        settings,
        options.output,
        options.include_path,
        options.limit,
        _say if is_first else _quiet,
    )
    if not is_first:
        return 0
    rows = rows_of(outcomes, bool(high_definition))
    table = markdown(rows, f"{options.model}{', high definition' if high_definition else ''}", options.limit)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "results.md").write_text(table, encoding="utf-8")
    record = {"settings": settings | {"limit": options.limit}, "results": rows}
    (options.output / "results.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if options.card is not None:
        write_into_card(rows, options.card, options.model)
    sys.stdout.write(table)
    failed = list(dict.fromkeys(row["task"] for row in rows if row.get("problem")))
    if failed:
        reason = next(row["problem"] for row in rows if row.get("problem"))
        raise FailedTasks(f"{len(failed)} of {len(tasks)} tasks failed: {', '.join(failed)}; {failed[0]}: {reason}")
    return 0


def _check_card(options: argparse.Namespace) -> None:
    """Before an evaluation of hours, whose figures could not be written."""
    if options.limit is not None:
        raise InputError("--card takes figures of whole tasks: leave out --limit, or --card")
    with input_errors():
        read_card(options.card)


def _open_model(given: dict, options: argparse.Namespace):
    from lmms_eval.models import get_model

    return get_model(MODEL_ID)(**given, batch_size=options.batch_size, device=options.device)


class FailedTasks(RuntimeError):
    """Tasks that gave no figure."""


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        parents=[loading_options()],
        description="Evaluates a model on tasks of lmms-eval. A task that is finished is not run again by the same "
        "command. On several GPUs: accelerate launch -m transformers_flashsloth eval ...",
    )
    names = ", ".join(benchmark.task for benchmark in PAPER)
    parser.add_argument("model", metavar="MODEL", help="directory or Hub id of a checkpoint")
    parser.add_argument("--tasks", required=True, help=f"names with commas between; `paper` is {names}")
    parser.add_argument("--output", type=Path, default=Path("evaluation"), metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=1, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--adapter", metavar="PATH_OR_HUB_ID", help="PEFT adapter for the model")
    parser.add_argument("--load-in", choices=LOAD_IN, help="load the decoder's layers in so many bits")
    parser.add_argument("--limit", type=positive, metavar="N", help="most documents of a task, to try it out")
    parser.add_argument("--include-path", metavar="DIR", help="directory with task files of your own")
    parser.add_argument("--card", type=Path, metavar="README.md", help="model card that gets the figures")
    return parser


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _quiet(line: str) -> None:
    pass
