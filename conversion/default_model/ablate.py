"""Ablations: FlashSloth and variants of it, each trained on the same data with the same seeds, and compared.

    python -m conversion.default_model.ablate --output DIR [--processes 2] [--seeds 3] [--variants full average]
                                              [--page ABLATIONS.md]

Every run draws the same pictures in the same order for the same number of batches, whatever the machine; all stand
behind the vision tower that ships, which stays frozen. Run the same command again after an interruption and it goes on;
what finished runs measured is kept in DIR, or where `--results` says. `--tiny` runs everything with a few rows, as a
test of the command; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from functools import partial
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from transformers_flashsloth import FlashSlothForConditionalGeneration

from .ablation_report import Run, claims, plot, table
from .answering import Answerer
from .assets import TRAINED_STYLES
from .features import FeatureBank, fingerprint
from .held_out import FAMILIES, Item, held_out, mean_score
from .marked import write_between_markers
from .operations import operations
from .optimisation import Budget
from .pictures import Pictures
from .stages import ALIGNMENT, INSTRUCTION, LOOKING, MATRIX_LR, OTHER_LR, TURNS, Stage, chosen, run_stage
from .tokenizer import train_tokenizer
from .train import DEFAULT_CHECKPOINT, build_model, load_tokenizer, processor, tower_of
from .variants import TINY, VARIANTS, Size, Variant, see_as

MAX_SEEDS = 10
COUNTS = ("pictures", "alignment", "looking", "instruction", "questions")
"""Fields of a size that an option may set."""
STAGES = (ALIGNMENT, LOOKING, INSTRUCTION)
"""Those of the paper, and looking; what the default model learns after them is left to the default model."""
STAGES_NOW = sha256(repr(([chosen(stage) for stage in STAGES], TURNS, MATRIX_LR, OTHER_LR)).encode()).hexdigest()[:12]
"""Tells what the stages train on, and how, from what they did in another commit."""


class Ablation:
    """What all runs share: the tower, the tokenizer, the pictures and the questions."""

    def __init__(
        self,
        output: Path,
        size: Size,
        device: torch.device,
        tower: Path = DEFAULT_CHECKPOINT,
        results: Path | None = None,
    ):
        self.output, self.size, self.device = output, size, device
        self.results = results or output / "results"
        self.tower = tower_of(tower)
        self.behind = fingerprint(self.tower)
        if not (output / "tokenizer").exists():
            train_tokenizer().save_pretrained(output / "tokenizer")
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(output / "tokenizer")
        self.questions: dict[str, list[Item]] = {
            family: held_out(family, TRAINED_STYLES, size.questions) for family in FAMILIES
        }

    def kept(self, name: str, seed: int) -> Run | None:
        """What a run measured before; None if it has not finished yet."""
        result = self._result(name, seed)
        if not result.exists():
            return None
        run = Run(**json.loads(result.read_text()))
        if run.size != asdict(self.size):
            raise ValueError(
                f"{result} was measured on {_said(run.size)}, and this is {_said(asdict(self.size))}; "
                "runs of different sizes cannot be compared: choose other --results, or the same size."
            )
        for what, was, now in (("vision tower", run.tower, self.behind), ("stages", run.stages, STAGES_NOW)):
            if was != now:
                raise ValueError(
                    f"{result} was measured with another {what} ({was}) than there is now ({now}), and the two cannot "
                    "be compared: choose other --results to run all anew, or go on in a checkout of its own commit."
                )
        return run

    def run(self, name: str, seed: int) -> Run:
        """Train and measure one variant with one seed, or read what was measured before."""
        if run := self.kept(name, seed):
            return run
        kept = self.output / f"{name}-{seed}"
        variant = VARIANTS[name]
        torch.manual_seed(seed)
        model = build_model(self.tokenizer, self.device, self.tower, **variant.choices)
        bank = self._bank(seed, model)
        for stage, steps in self._stages(variant):
            budget = Budget(steps=steps)
            path = kept / f"{stage.name}.pt"
            run_stage(stage, model, bank, self.tokenizer, path, budget, seed, variant.images_of)
        see_as(model, variant)
        ask = Answerer(model, processor(model.config, self.tokenizer))
        scores = {family: mean_score(ask(items), items) for family, items in self.questions.items()}
        cost = operations(ask, self.questions["name"][0])
        run = Run(name, seed, scores, model.config.tokens_per_view, cost, asdict(self.size), self.behind, STAGES_NOW)
        result = self._result(name, seed)
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(json.dumps(run._asdict(), indent=2) + "\n")
        shutil.rmtree(kept)
        return run

    def prepare(self, seed: int) -> None:
        """Compute the features that all runs with a seed share, before several begin at once."""
        self._bank(seed, build_model(self.tokenizer, self.device, self.tower))

    def _result(self, name: str, seed: int) -> Path:
        return self.results / f"{name}-{seed}.json"

    def _bank(self, seed: int, model: FlashSlothForConditionalGeneration) -> FeatureBank:
        bank = FeatureBank(self.output / "features", Pictures(seed), self.size.pictures, model.model.vision_tower)
        bank.fill()
        return bank

    def _stages(self, variant: Variant) -> list[tuple[Stage, int]]:
        """Stages and their batches; instruction gets the rows of those that a variant leaves out."""
        planned = [(self.size.stage(stage, variant), self.size.batches(stage)) for stage in STAGES]
        left_out = sum(stage.rows * steps for stage, steps in planned if stage.name in variant.left_out)
        more = {INSTRUCTION.name: left_out // planned[-1][0].rows}
        return [
            (stage, steps + more.get(stage.name, 0)) for stage, steps in planned if stage.name not in variant.left_out
        ]


def run_all(make: Callable[[], Ablation], plan: list[tuple[str, int]], processes: int = 1) -> list[Run]:
    """The runs of `plan`, variants and seeds, in its order; in so many processes, which share the threads."""
    ablation = make()
    missing = [(name, seed) for name, seed in plan if ablation.kept(name, seed) is None]
    bar = partial(tqdm, desc="ablation", unit="run", total=len(missing))
    if processes == 1:
        for name, seed in bar(missing):
            ablation.run(name, seed)
        return kept(ablation, plan)
    for seed in dict.fromkeys(seed for _, seed in missing):
        ablation.prepare(seed)
    threads = max(1, torch.get_num_threads() // processes)
    with ProcessPoolExecutor(processes, get_context("spawn"), _begin, (make, threads)) as pool:
        waiting = [pool.submit(_run, name, seed) for name, seed in missing]
        try:
            for done in bar(as_completed(waiting)):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return kept(ablation, plan)


def kept(ablation: Ablation, plan: list[tuple[str, int]]) -> list[Run]:
    """Those runs of `plan` that have finished."""
    runs = (ablation.kept(name, seed) for name, seed in plan)
    return [run for run in runs if run is not None]


_OF_THIS_PROCESS: list[Ablation] = []


def _begin(make: Callable[[], Ablation], threads: int) -> None:
    torch.set_num_threads(threads)
    _OF_THIS_PROCESS.append(make())


def _run(name: str, seed: int) -> None:
    _OF_THIS_PROCESS[0].run(name, seed)


def _said(size: dict[str, int | None]) -> str:
    return ", ".join(f"{value:,} {name}" for name, value in size.items() if value is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="directory of checkpoints and results")
    parser.add_argument("--results", type=Path, help="directory of what finished runs measured, not one in --output")
    parser.add_argument("--seeds", type=int, default=3, help=f"runs of each variant, 2 to {MAX_SEEDS}")
    parser.add_argument("--processes", type=int, default=1, help="runs at once, each with its share of the threads")
    parser.add_argument("--kept", action="store_true", help="run nothing: table and plot of what has finished so far")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--page", type=Path, help="also write table and plot into this page, between its markers")
    parser.add_argument("--tower", type=Path, default=DEFAULT_CHECKPOINT, help="checkpoint of another vision tower")
    parser.add_argument("--tiny", action="store_true", help="a test of the command, not of the model")
    for name in COUNTS:
        parser.add_argument(f"--{name}", type=int, help=f"instead of {getattr(Size(), name):,}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if not 2 <= arguments.seeds <= MAX_SEEDS:
        parser.error(f"--seeds must be from 2 to {MAX_SEEDS}: one run has no interval")
    if arguments.processes < 1:
        parser.error("--processes must be 1 or more")
    if arguments.tiny and arguments.page:
        parser.error("--tiny gives no figures for a --page: leave one of them out")
    chosen = {name: getattr(arguments, name) for name in COUNTS}
    size = replace(TINY if arguments.tiny else Size(), **{name: value for name, value in chosen.items() if value})

    device = torch.device(arguments.device)
    make = partial(Ablation, arguments.output, size, device, arguments.tower, arguments.results)
    names = dict.fromkeys(["full", *arguments.variants])  # the others are compared with it
    # Seed by seed, so that an interrupted ablation has whole pairs.
    plan = [(name, seed) for seed in range(arguments.seeds) for name in names]
    runs = kept(make(), plan) if arguments.kept else run_all(make, plan, arguments.processes)
    finished = Counter(run.variant for run in runs)
    names = [name for name in names if finished[name]]
    if "full" not in names:
        parser.error("a run of the whole model is needed, which the others are compared with: leave --kept out")
    paired = {run.seed for run in runs if run.variant == "full"}
    runs = [run for run in runs if run.variant in names and run.seed in paired]
    text = f"{table(runs, {name: VARIANTS[name].title for name in names}, size)}\n\n{claims(runs)}".strip()
    (arguments.output / "table.md").write_text(text + "\n")
    print(text)
    drawing = (arguments.page or arguments.output / "table.md").with_suffix(".png")
    drawn = plot(runs, drawing)
    if arguments.page:
        picture = f"\n\n![Accuracy against operations]({drawing.name})" if drawn else ""
        write_between_markers(arguments.page, "ablations", text + picture)


if __name__ == "__main__":
    main()
