"""
An export in each precision beside PyTorch: bytes, accuracy and CPU time: `python -m benchmarks.export`.

The small trained model answers each question alone; rounds go through all precisions, so that drift cancels. With
`--preset NAME` a model of that size with random weights takes its place (`export_preset.py`).
"""

import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from conversion.default_model.answering import Answerer
from conversion.default_model.assets import TRAINED_STYLES
from conversion.default_model.held_out import FAMILIES, Item, held_out, mean_score
from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT, InputError, open_model, open_processor
from transformers_flashsloth.export.precisions import PRECISIONS
from transformers_flashsloth.export.writing import export_checkpoint
from transformers_flashsloth.exported.onnx_flashsloth import OnnxFlashSloth

from . import export_preset
from .machine import describe
from .measure import summary
from .options import common_parser
from .presets import PRESETS
from .report import markdown_table, publish, with_spread

HEADER = ["", "MB", "of fp32", "accuracy", "CPU time over PyTorch, fp32", "first token over PyTorch, fp32"]
PYTORCH = ("PyTorch, fp32", "PyTorch, bf16")


def main(arguments: list[str] | None = None) -> None:
    parser = common_parser(__doc__, "benchmarks/results/export")
    parser.add_argument("--questions", type=int, default=100, help="of each family (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of timing (default %(default)s)")
    parser.add_argument("--precisions", nargs="+", default=[*PRECISIONS], choices=[*PRECISIONS])
    parser.add_argument("--preset", choices=[*PRESETS], help="sizes of a model with random weights")
    parser.add_argument("--layers", type=int, help="of the preset's decoder, where memory does not hold all")
    options = parser.parse_args(arguments)
    options.threads = options.threads or 1
    torch.set_num_threads(options.threads)
    if options.preset:
        result = export_preset.measure(options)
        publish(options, "export-preset", result, export_preset.table(result))
        return
    with TemporaryDirectory() as directory:
        result = measure(options, Path(directory))
    publish(options, "export", result, table(result))


def measure(options, directory: Path) -> dict:
    """`{"machine", "found": {name: {"bytes", "accuracy", "time", "first"}}}`, times over PyTorch's in float32."""
    processor = open_processor(DEFAULT_CHECKPOINT)
    models, sizes, errors = {}, {}, {}
    for name, dtype in zip(PYTORCH, ("float32", "bfloat16"), strict=True):
        models[name] = open_model(DEFAULT_CHECKPOINT, dtype=dtype)
        sizes[name] = sum(value.nbytes for value in models[name].state_dict().values())
    for precision in options.precisions:
        output = directory / precision
        try:
            manifest = export_checkpoint(DEFAULT_CHECKPOINT, output, precision=precision)
        except InputError as error:
            errors[f"ONNX, {precision}"] = str(error)
            continue
        name = f"ONNX, {precision}"
        models[name] = OnnxFlashSloth.from_pretrained(output, threads=options.threads)
        sizes[name] = sum((output / file).stat().st_size for file in manifest["files"])
    items = {family: held_out(family, TRAINED_STYLES, options.questions) for family in FAMILIES}
    timed = [item for of in items.values() for item in of[:2]]
    seconds = {name: {"time": [], "first": []} for name in models}
    for _ in range(1 + options.repeats):  # the first warms up
        for name, model in models.items():
            seconds[name]["time"].append(cpu_seconds(model, processor, timed, 8))
            seconds[name]["first"].append(cpu_seconds(model, processor, timed, 1))
    found = {}
    for name, model in models.items():
        ask = Answerer(model, processor)
        scores = [mean_score(ask(of), of) for of in items.values()]
        ratios = {
            kind: summary([own / base for own, base in zip(of[1:], seconds[PYTORCH[0]][kind][1:], strict=True)])
            for kind, of in seconds[name].items()
        }
        found[name] = {"bytes": sizes[name], "accuracy": statistics.mean(scores)} | ratios
    machine = describe("cpu", "float32") | {"threads": options.threads}
    return {"machine": machine, "questions": options.questions, "found": found, "errors": errors}


@torch.no_grad()
def cpu_seconds(model, processor, items: list[Item], new_tokens: int) -> float:
    """Of all threads of this process, for the questions one by one, without their preprocessing."""
    ask, total = Answerer(model, processor), 0.0
    for item in items:
        inputs = ask.inputs([item])
        start = time.process_time()
        model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens)
        total += time.process_time() - start
    return total


def table(result: dict) -> str:
    machine, found = result["machine"], result["found"]
    whole = found[PYTORCH[0]]["bytes"]
    rows = [
        [name, f"{one['bytes'] / 1e6:.1f}", f"{one['bytes'] / whole:.2f}", f"{one['accuracy']:.1%}",
         with_spread(one["time"]), with_spread(one["first"])]
        for name, one in found.items()
    ]  # fmt: skip
    said = (
        f"{result['questions']} questions of each of {len(FAMILIES)} families; {machine['threads']} threads of "
        f"{machine['processor']}, torch {machine['torch']}, transformers {machine['transformers']}."
    )
    refused = "".join(f"\n\n{name}: {error}." for name, error in result["errors"].items())
    return f"{said}\n\n{markdown_table(HEADER, rows)}{refused}"


if __name__ == "__main__":
    main()
