"""
What one LoRA step costs beside rivals, at true size: `python -m benchmarks.training_rivals`.

Each model is asked the same question about the same image, through its own preprocessing, and learns an answer of 64
tokens with adapters on all linears of its decoder; everything else is frozen, as users fine-tune. A step is forward
and backward of one row. Models are built one after another, as memory holds no two of them for certain; each is kept
when it is done, and a run that was stopped goes on behind it. `--count` leaves clock and weights out. Operations are
torch's count, which leaves attention's backward on CPUs out.
"""

import argparse
import contextlib

import torch
from torch import nn

from .building import without_values
from .compare_rows import shown
from .counting import NoProducts
from .machine import describe
from .measure import Clock, count_flops, release_memory, summary
from .options import common_parser
from .ours import ask_flashsloth, build_flashsloth
from .presets import PRESETS
from .report import markdown_table, put_between_marks, read_json, with_spread, write_json
from .rival_sizes import RIVALS
from .rivals import build_rival
from .subjects import Subject, photo, text_ids
from .training_cost import kept_for_backward, peak_of

MODELS = ["ours", "ours-lfm2-1.2b", "qwen3-vl-2b", "qwen3.5-2b"]
RANK, ANSWER = 16, 64
HEADER = ["model", "positions", "TFLOP a step", "s a step", "kept for backward, GiB", "peak, GiB", "adapters, M"]


def main(arguments: list[str] | None = None) -> None:
    parser = common_parser(__doc__, "benchmarks/results/training")
    parser.add_argument("--models", nargs="+", choices=[*PRESETS, *RIVALS], default=MODELS, metavar="MODEL",
                        help=f"default {' '.join(MODELS)}")  # fmt: skip
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each model (default %(default)s)")
    parser.add_argument("--checkpointing", action="store_true", help="checkpoint activations (non-re-entrant)")
    parser.add_argument("--count", action="store_true", help="operations and kept bytes only, without a clock")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    found = {name: kept_or_measured(name, options) for name in options.models}
    text = table(found)
    print(text)
    if options.readme:
        put_between_marks(options.readme, "training-rivals", text)


def kept_or_measured(name: str, options: argparse.Namespace) -> dict:
    """The row of a model, from its file if that was made with the same options."""
    names = ("device", "dtype", "threads", "tiny", "steps", "checkpointing", "count")
    asked, path = {key: getattr(options, key) for key in names}, options.output / f"{name}.json"
    kept = read_json(path)
    if kept is None or kept["options"] != asked:
        print(f"{name} ...", flush=True)
        values, products = (without_values(), NoProducts()) if options.count else (contextlib.nullcontext(),) * 2
        with values, products:
            row = measure(name, options)
        release_memory()
        kept = {"options": asked, "machine": describe(options.device, options.dtype), "row": row}
        write_json(path, kept)
    return kept["row"]


def measure(name: str, options: argparse.Namespace) -> dict:
    """Positions, operations and bytes of a model's step, and with a clock `seconds` of each step and `peak_bytes`."""
    subject = build(name, options)
    batch = batch_of(subject)
    model = subject.model

    def step() -> None:
        model(**batch).loss.backward()

    row = {
        "positions": batch["input_ids"].shape[1],
        "adapters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "flops": count_flops(step),
        "kept_bytes": kept_for_backward(lambda: model(**batch)),
    }
    if not options.count:
        clock, peak = Clock(options.device), peak_of(step, options.device)
        row |= {"peak_bytes": peak, "seconds": [clock.time(step)["wall"] for _ in range(options.steps)]}
    return row


def build(name: str, options: argparse.Namespace) -> Subject:
    """A subject in training mode, with adapters on its decoder's linears, whose gradients are in place."""
    from peft import LoraConfig, inject_adapter_in_model

    device, dtype = options.device, getattr(torch, options.dtype)
    if name in PRESETS:
        subject = ask_flashsloth(build_flashsloth(name, device, dtype, options.tiny), device, dtype, hd=False)
    else:
        subject = build_rival(name, device, dtype, options.tiny)
    subject.stages.remove()
    model = subject.model.requires_grad_(False)
    if options.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    inside = {id(module) for module in subject.modules["decoder"][0].modules() if isinstance(module, nn.Linear)}
    linears = [path for path, module in model.named_modules() if id(module) in inside]
    inject_adapter_in_model(LoraConfig(r=RANK, target_modules=linears), model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    model.train()
    return subject


def batch_of(subject: Subject) -> dict[str, torch.Tensor]:
    """The benchmark's image and question, and behind them an answer of `ANSWER` tokens that is learned."""
    inputs = subject.inputs(photo())
    answer = torch.tensor([text_ids(ANSWER)], device=subject.device)
    ids = torch.cat([inputs["input_ids"], answer], dim=1)
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(answer)], dim=1)
    labels = torch.full_like(ids, -100)
    labels[:, -ANSWER:] = answer
    return inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def table(found: dict[str, dict]) -> str:
    """The rows in markdown; empty cells where no clock ran."""
    rows = []
    for name, row in found.items():
        seconds = summary(row["seconds"]) if "seconds" in row else None
        peak = f"{row['peak_bytes'] / 2**30:.2f}" if "peak_bytes" in row else ""
        rows.append([
            shown(name), str(row["positions"]), f"{row['flops'] / 1e12:.3g}", with_spread(seconds),
            f"{row['kept_bytes'] / 2**30:.2f}", peak, f"{row['adapters'] / 1e6:.1f}",
        ])  # fmt: skip
    return markdown_table(HEADER, rows)


if __name__ == "__main__":
    main()
