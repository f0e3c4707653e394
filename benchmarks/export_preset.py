"""
Exports of a preset beside PyTorch, for `python -m benchmarks.export --preset NAME`: weights are random.

Graphs are traced once, in float32. One export at a time is in memory beside the model in float32 and bfloat16. Rounds
go through all three, and each ratio is to float32 in the same round, so that drift cancels.
"""

import argparse
import gc
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory

import onnxruntime
import torch
from transformers import AutoModelForImageTextToText

from transformers_flashsloth import FlashSlothConfig, FlashSlothForConditionalGeneration
from transformers_flashsloth.checkpoints.written_aside import written_aside
from transformers_flashsloth.export.writing import convert_graphs, write_graphs
from transformers_flashsloth.exported.onnx_flashsloth import OnnxFlashSloth

from .building import build, num_bytes
from .machine import describe
from .measure import Clock, PeakMemory, summary
from .ours import ask_flashsloth
from .presets import flashsloth_config
from .report import markdown_table, with_spread
from .sampling import TokenClock, generate
from .subjects import Subject, photo
from .worker import last_line

HEADER = ["", "GB", "of fp32", "memory, GB", "logits off", "equal tokens", "TTFT, s", "its CPU time over fp32",
          "tokens/s", "CPU time a token over fp32"]  # fmt: skip
FP32, BF16 = "PyTorch, fp32", "PyTorch, bf16"
TIMES = ("first", "step")


def measure(options: argparse.Namespace) -> dict:
    """
    `{"machine", "found": {name: {"bytes", "memory", "off", "equal"} and "first", "step" and both "over" float32}}`,
    and in `"errors"` why a precision is not among them.
    """
    config = flashsloth_config(options.preset, options.tiny)
    cut(config, options.layers)
    found, errors, samples = {}, {}, {}
    subjects = {}
    for name, dtype in ((FP32, torch.float32), (BF16, torch.bfloat16)):
        memory = Memory()
        model = build_like(config, dtype, subjects.get(FP32))
        subjects[name] = ask_flashsloth(model, "cpu", dtype, hd=False)
        found[name] = {"bytes": num_bytes([model])} | compare(subjects[FP32], subjects[name], options.new_tokens)
        found[name]["memory"] = memory.taken()
    with TemporaryDirectory() as directory:
        whole = Path(directory, "fp32")
        for precision in options.precisions:
            name = f"ONNX, {precision}"
            try:
                size = export(subjects[FP32].model, whole, precision)
                memory = Memory()
                exported = open_export(subjects[FP32], whole.with_name(precision), options.threads)
                found[name] = {"bytes": size} | compare(subjects[FP32], exported, options.new_tokens)
                found[name]["memory"] = memory.taken()
            except Exception as error:  # exporters and runtimes raise what they like
                errors[name] = last_line(error)
                continue
            take_rounds(subjects | {name: exported}, samples, options)
            del exported
    for name, rounds in samples.items():
        found[name] |= summarised(rounds)
    machine = describe("cpu", "float32") | {"threads": options.threads, "onnxruntime": onnxruntime.__version__}
    return {
        "machine": machine,
        "preset": f"tiny {options.preset}" if options.tiny else options.preset,
        "layers": options.layers,
        "new_tokens": options.new_tokens,
        "found": found,
        "errors": errors,
    }


def cut(config: FlashSlothConfig, layers: int | None) -> None:
    """Leaves so many of the decoder's layers."""
    text = config.text_config
    if layers:
        text.num_hidden_layers = layers
        if kinds := getattr(text, "layer_types", None):
            text.layer_types = kinds[:layers]


def build_like(
    config: FlashSlothConfig, dtype: torch.dtype, other: Subject | None
) -> FlashSlothForConditionalGeneration:
    """A model with random weights, or with those of `other`, rounded."""
    model = build(lambda: AutoModelForImageTextToText.from_config(config, dtype=dtype), "cpu")
    if other is not None:
        model.load_state_dict(other.model.state_dict())
    return model


def export(model: FlashSlothForConditionalGeneration, whole: Path, precision: str) -> int:
    """
    Writes an export beside that in float32, `whole`, which is traced when it is first needed, and of which it is made;
    returns the bytes of its graphs.
    """
    directory, windows = whole.with_name(precision), {model.config.tokens_per_view: model.config.window}
    if not whole.exists():
        with written_aside(whole, 0) as aside:
            write_graphs(model, windows, aside)
    if precision != "fp32":
        copytree(whole, directory)
    manifest = convert_graphs(directory, windows, precision)
    return sum((directory / file).stat().st_size for file in manifest["files"])


def open_export(like: Subject, directory: Path, threads: int) -> Subject:
    """An export, asked as PyTorch's model is; what runs in it has no modules."""
    model = OnnxFlashSloth.from_pretrained(directory, threads=threads)
    return Subject(model, like.read_image, like.prompt, like.image_token_id, {}, like.embeddings, "cpu", torch.float32)


class Memory:
    """Peak memory of this process beyond what it held at the beginning."""

    def __init__(self):
        gc.collect()
        self.gauge = PeakMemory("cpu")
        self.gauge.reset()
        self.before = self.gauge.read()

    def taken(self) -> int:
        return self.gauge.read() - self.before


@torch.no_grad()
def compare(whole: Subject, other: Subject, new_tokens: int) -> dict:
    """
    `{"off", "equal"}`: the largest difference between logits of the first token, over the standard deviation of
    float32's, and how many greedy tokens are the same until the first that is not.
    """
    expected, logits = answer(whole, new_tokens)
    tokens, own = (expected, logits) if other is whole else answer(other, new_tokens)
    known = logits.isfinite() & own.isfinite()  # an export gives placeholders minus infinity
    different = (tokens != expected).nonzero()
    return {
        "off": ((own - logits)[known].abs().max() / logits[known].std()).item(),
        "equal": int(different[0]) if len(different) else len(expected),
    }


def answer(subject: Subject, new_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """So many greedy tokens, `(new_tokens,)`, and the first one's logits, `(vocabulary,)`, float32."""
    inputs = subject.inputs(photo())
    output = subject.model.generate(
        **inputs, max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    return output.sequences[0, inputs["input_ids"].shape[1] :], output.logits[0][0].float()


def take_rounds(subjects: dict[str, Subject], samples: dict[str, list], options: argparse.Namespace) -> None:
    """Adds to each subject's samples; all have answered before. Each is put beside float32's of its round."""
    clock, image = Clock("cpu"), photo()
    for _ in range(options.repeats):
        taken = {name: sample(subject, clock, image, options.new_tokens) for name, subject in subjects.items()}
        for name, own in taken.items():
            samples.setdefault(name, []).append(own | {"fp32": taken[FP32]})


@torch.no_grad()
def sample(subject: Subject, clock: Clock, image, new_tokens: int) -> dict[str, dict[str, float]]:
    """Seconds, wall and CPU, to the first token, preprocessing included, and of a decoding step."""
    tokens = TokenClock(clock, subject.stages)
    begin = clock.mark()
    generate(subject, subject.inputs(image), 1 + new_tokens, tokens)
    return {"first": clock.between(begin, tokens.marks[0]), "step": tokens.step()}


def summarised(rounds: list[dict]) -> dict:
    """Of each time `{"wall", "cpu", "over"}`; the last is CPU time over float32's; and `"rate"`, tokens a second."""
    times = {
        name: {kind: summary([one[name][kind] for one in rounds]) for kind in ("wall", "cpu")}
        | {"over": summary([one[name]["cpu"] / one["fp32"][name]["cpu"] for one in rounds])}
        for name in TIMES
    }
    return times | {"rate": summary([1 / one["step"]["wall"] for one in rounds])}


def table(result: dict) -> str:
    machine, found, whole = result["machine"], result["found"], result["found"][FP32]["bytes"]
    rows = []
    for name, one in found.items():
        row = [name, f"{one['bytes'] / 1e9:.2f}", f"{one['bytes'] / whole:.2f}", f"{one['memory'] / 1e9:.2f}",
               f"{one['off']:.2g}", f"{one['equal']} of {result['new_tokens']}"]  # fmt: skip
        if "first" in one:
            row += [with_spread(one["first"]["wall"]), with_spread(one["first"]["over"])]
            row += [with_spread(one["rate"], digits=1), with_spread(one["step"]["over"])]
        rows.append(row + [""] * (len(HEADER) - len(row)))
    layers = f" with {result['layers']} layers in the decoder" if result["layers"] else ""
    said = (
        f"{result['preset']}{layers}, random weights; {machine['threads']} threads of {machine['processor']}, "
        f"torch {machine['torch']}, transformers {machine['transformers']}, ONNX Runtime {machine['onnxruntime']}."
    )
    refused = "".join(f"\n\n{name}: {error}" for name, error in result["errors"].items())
    return f"{said}\n\n{markdown_table(HEADER, rows)}{refused}"
