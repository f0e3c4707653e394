"""
FlashSloth beside its floor and its rivals: `python -m benchmarks.compare`.

Each set of weights has a process of its own. One process holds FlashSloth and its floor throughout, and a second one
rival at a time, so that memory holds two models at most. They take turns: the floor, the rival, the floor, the rival,
the floor. A rival's ratio is to the two samples of the floor next to it, so that a machine that slows down slows both.
Each finished row is kept as a JSON file, and a run that was stopped goes on behind it. `--count` measures nothing and
counts what needs no clock, in minutes and with little memory.
"""

import argparse
import time
from dataclasses import asdict
from pathlib import Path

from .compare_report import write_report
from .compare_rows import GROUPS
from .options import common_parser, settings_of
from .report import read_json, write_json
from .worker import FLASHSLOTH_NAMES, FLOOR, FLOOR_HD, OURS, OURS_HD, Settings, Worker

MIN_ROUNDS = 2


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    settings = settings_of(options)
    if options.count:
        from .counting import count

        count(options.output, options.models, settings)
        print(write_report(options.output, _rows(options), options.readme, options.short_readmes))
        return
    deadline = time.monotonic() + 60 * options.minutes
    left = [name for name in options.models if not _is_done(options, name, settings)]
    if left:
        flashsloth = Worker(list(FLASHSLOTH_NAMES), settings)
        try:
            for index, name in enumerate(left):
                seconds = (deadline - time.monotonic()) / (len(left) - index)
                _measure_group(flashsloth, name, settings, options, seconds)
        finally:
            flashsloth.close()
    print(write_report(options.output, _rows(options), options.readme, options.short_readmes))


def _rows(options: argparse.Namespace) -> list[str]:
    return [row for name in options.models for row in GROUPS[name]]


def parser() -> argparse.ArgumentParser:
    parser = common_parser(__doc__, "benchmarks/results/compare")
    parser.add_argument("--models", nargs="+", choices=list(GROUPS), default=list(GROUPS), metavar="MODEL",
                        help=f"of {', '.join(GROUPS)}; all by default")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=5, help="samples of a row at most (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=60, help="time that repeats are cut for (default %(default)s)")
    parser.add_argument("--compile", action="store_true", help="compile the parts of each and use a static cache")
    parser.add_argument("--short-readmes", type=Path, nargs="+", default=[], metavar="FILE",
                        help="documents whose marked places get the short table, or how presets stand")  # fmt: skip
    parser.add_argument("--count", action="store_true", help="only count tokens, operations and bytes, without a clock")
    parser.add_argument("--fresh", action="store_true", help="measure also what --output holds already")
    return parser


def _is_done(options: argparse.Namespace, name: str, settings: Settings) -> bool:
    rows = [read_json(options.output / f"{row}.json") for row in (*GROUPS[name], FLOOR)]
    return not options.fresh and all(row is not None and row["settings"] == asdict(settings) for row in rows)


def _measure_group(flashsloth: Worker, name: str, settings: Settings, options: argparse.Namespace, seconds: float):
    """Samples the rows of a group in rounds and writes their files; a model that fails leaves its error there."""
    end = time.monotonic() + seconds
    rows = GROUPS[name]
    worker = flashsloth if name in FLASHSLOTH_NAMES else Worker(rows, settings)
    common = {"settings": asdict(settings), "machine": flashsloth.ask("machine")}
    print(f"{name} ...", flush=True)
    try:
        facts = {row: worker.ask("facts", row) for row in rows}
        floor_facts = flashsloth.ask("facts", FLOOR)
        ceilings, floors, samples = [flashsloth.ask("ceilings")], [flashsloth.ask("sample", FLOOR)], []
        while len(samples) < options.repeats:
            begin = time.monotonic()
            samples.append({row: worker.ask("sample", row) for row in rows})
            floors.append(flashsloth.ask("sample", FLOOR))
            took = time.monotonic() - begin
            if len(samples) >= MIN_ROUNDS and time.monotonic() + took > end:
                break
        common["ceilings"] = [*ceilings, flashsloth.ask("ceilings")]
    except (RuntimeError, EOFError) as error:
        if worker is flashsloth:
            raise
        reason = str(error) or "The process ended; most likely the machine is out of memory."
        for row in rows:
            write_json(options.output / f"{row}.json", common | {"name": row, "error": reason})
        return
    finally:
        if worker is not flashsloth:
            worker.close()

    for row in rows:
        content = common | {"name": row, "facts": facts[row], "samples": [s[row] for s in samples], "floors": floors}
        if row == OURS_HD:
            content["own_floors"] = [sample[FLOOR_HD] for sample in samples]
        write_json(options.output / f"{row}.json", content)
    kept = read_json(options.output / f"{FLOOR}.json")
    # Seconds in the floor's row and in FlashSloth's are of the same minutes.
    if name == OURS or kept is None or kept["settings"] != common["settings"]:
        content = common | {"name": FLOOR, "facts": floor_facts, "samples": floors, "floors": floors}
        write_json(options.output / f"{FLOOR}.json", content)


if __name__ == "__main__":
    main()
