"""
All that needs a GPU, in one command and one report: `python -m benchmarks.gpu --output gpu.md`.

Each part is a process of its own with a time limit: what fails or hangs is said, and the rest goes on. A part whose
package is not installed is left out and named. The report is written anew behind each part, and the exit status is 0
only if nothing failed. Nothing is downloaded: the checks run on the model in the package, and costs on random weights.
"""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from .gpu_checks import CHECKS
from .gpu_checks import LEFT_OUT as STATUS_LEFT_OUT
from .report import markdown_table, put_between_marks

HEADER = ["part", "outcome", "s"]
PASSED, FAILED, LEFT_OUT = "passed", "failed", "left out"
KEPT_LINES = 60  # of a part that failed
SHOWN_LINES = 15  # of one that printed no table
# What a comparison prints of a model that failed, and goes on with the others.
DID_NOT_RUN = " did not run: "


class Part(NamedTuple):
    """
    Attributes:
        command: arguments of Python, with `{device}` and `{output}` to be filled in.
        limit: seconds after which the part is ended.
        needs: packages without which it is left out.
        tiny: what is added to it, in place of `true`, with `--tiny`.
    """

    command: list[str]
    limit: int
    needs: tuple[str, ...] = ()
    true: tuple[str, ...] = ()
    tiny: tuple[str, ...] = ()


COMPARED = ("ours", "ours-lfm2-350m", "lfm2.5-vl-450m-unsplit", "qwen3.5-0.8b")
QUICK = ("--tiny", "--dtype", "float32", "--new-tokens", "2")
PARTS = {
    **{
        name: Part(["-m", "benchmarks.gpu_checks", name, "--device", "{device}"], 75, check.needs)
        for name, check in CHECKS.items()
    },
    "tests that need a GPU": Part(["-m", "pytest", "-m", "gpu", "-q", "-rs", "tests/model"], 90, ("pytest",)),
    "LoRA step": Part(
        ["-m", "benchmarks.training_rivals", "--device", "{device}", "--output", "{output}/training"],
        75, ("peft",), ("--steps", "3"), ("--tiny", "--dtype", "float32", "--steps", "1"),
    ),
    "batches": Part(
        ["-m", "benchmarks.batches", "--device", "{device}", "--output", "{output}", "--repeats", "1"],
        60, (), ("--rows", "1", "8", "32"), (*QUICK, "--rows", "1", "2"),
    ),
    "comparison": Part(
        ["-m", "benchmarks.compare", "--device", "{device}", "--output", "{output}/compare"],
        150, (), ("--minutes", "1.5", "--models", *COMPARED),
        (*QUICK, "--repeats", "1", "--models", "ours", "ours-lfm2-350m", "lfm2.5-vl-450m-unsplit"),
    ),
    "comparison, compiled with CUDA graphs": Part(
        ["-m", "benchmarks.compare", "--device", "{device}", "--output", "{output}/compare-compiled", "--compile"],
        150, (), ("--minutes", "1", "--repeats", "2", "--models", "ours", "ours-lfm2-350m"),
        (*QUICK, "--repeats", "1", "--models", "ours"),
    ),
    "vLLM": Part(
        ["-m", "benchmarks.vllm", "--output", "{output}", "--at-once", "1", "8", "--repeats", "1"],
        120, ("vllm",), (), ("--tiny",),
    ),
}  # fmt: skip


class Outcome(NamedTuple):
    """How a part ended, after so many seconds, and what it printed or why it was left out."""

    state: str
    seconds: float
    text: str


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    device = options.device or ("cpu" if options.tiny else "cuda")
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("No CUDA device is here. `--tiny` goes through every part on the CPU and measures nothing.")
    work = options.output.with_suffix("")
    work.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * options.minutes
    outcomes = {}
    for name in options.parts or PARTS:
        print(f"{name} ... ", end="", flush=True)
        outcomes[name] = run(PARTS[name], device, options.tiny, work, deadline - time.monotonic())
        print(f"{outcomes[name].state} ({outcomes[name].seconds:.0f} s)", flush=True)
        write(options.output, device, options.tiny, outcomes)
    if options.readme:
        put_between_marks(options.readme, "gpu", text_of(device, options.tiny, outcomes))
    sys.exit(int(any(outcome.state == FAILED for outcome in outcomes.values())))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the report, Markdown; figures go beside it")
    parser.add_argument("--device", help="cuda by default, with --tiny cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny models: shows that the command runs")
    parser.add_argument("--minutes", type=float, default=8, help="for all parts together (default %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--readme", type=Path, help="document whose place marked `gpu` gets the report")
    return parser


def run(part: Part, device: str, tiny: bool, work: Path, left: float) -> Outcome:
    """Runs a part for `left` seconds at most."""
    missing = [name for name in part.needs if importlib.util.find_spec(name) is None]
    if missing:
        return Outcome(LEFT_OUT, 0, f"{missing[0]} is not installed.")
    if left < 1:
        return Outcome(FAILED, 0, "No time was left for it (`--minutes`).")
    command = [argument.format(device=device, output=work) for argument in part.command]
    command += part.tiny if tiny else part.true
    start, limit = time.monotonic(), min(part.limit if not tiny else 10 * part.limit, left)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=Path(__file__).parent.parent, env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        text, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
        text, _ = process.communicate()
        return Outcome(FAILED, limit, f"Ended after {limit:.0f} s.\n{text}")
    state = {0: PASSED, STATUS_LEFT_OUT: LEFT_OUT}.get(process.returncode, FAILED)
    if DID_NOT_RUN in text:
        state = FAILED
    if part.command[1] == "pytest" and process.returncode == 5:
        state, text = LEFT_OUT, "No test was collected: the tests are not here."
    return Outcome(state, time.monotonic() - start, text)


def write(path: Path, device: str, tiny: bool, outcomes: dict[str, Outcome]) -> None:
    """Writes the report aside and renames it."""
    aside = path.with_suffix(".part")
    aside.write_text(text_of(device, tiny, outcomes) + "\n", encoding="utf-8")
    os.replace(aside, path)


def text_of(device: str, tiny: bool, outcomes: dict[str, Outcome]) -> str:
    """The report: the machine, a table of outcomes, and what each part printed as tables or, failing, at its end."""
    from .machine import describe

    machine = describe(device, "bfloat16")
    versions = f"torch {machine['torch']}, transformers {machine['transformers']}"
    note = ", with tiny models: figures mean nothing." if tiny else "."
    lines = [f"{machine['gpu'] or machine['processor']}, {versions}{note}", ""]
    lines.append(markdown_table(HEADER, [[name, of.state, f"{of.seconds:.0f}"] for name, of in outcomes.items()]))
    for name, outcome in outcomes.items():
        if outcome.state == FAILED:
            end = outcome.text.rstrip().splitlines()[-KEPT_LINES:]
            lines += ["", f"**{name}**, failed:", "", "```text", *end, "```"]
        else:
            lines += ["", f"**{name}**", "", *_tables(outcome.text)]
    return "\n".join(lines)


def _tables(text: str) -> list[str]:
    """The tables of what a part printed, apart from one another, or its last lines."""
    printed, shown = text.splitlines(), []
    for before, line in pairwise(["", *printed]):
        if line.startswith("|"):
            shown += ["", line] if shown and not before.startswith("|") else [line]
    return shown or printed[-SHOWN_LINES:]


if __name__ == "__main__":
    main()
