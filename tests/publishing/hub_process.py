"""
What test_hub.py runs in a process of its own, as `HF_ENDPOINT` is read once: `python hub_process.py CHECKPOINT`.

Prints a report in JSON: for each step what it found, or its error in one line.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from transformers_flashsloth import FlashSlothForConditionalGeneration, FlashSlothProcessor
from transformers_flashsloth.authors.convert import convert
from transformers_flashsloth.building.checkpoint import build_checkpoint
from transformers_flashsloth.publishing.push import push_to_hub


def outcome(step: Callable, *arguments, **options):
    try:
        return step(*arguments, **options)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def load_whole(name: str, weights: dict[str, torch.Tensor]) -> bool:
    """Whether model and processor load, with these weights."""
    model, report = FlashSlothForConditionalGeneration.from_pretrained(name, output_loading_info=True)
    state = model.state_dict()
    FlashSlothProcessor.from_pretrained(name)
    return not any(report.values()) and all(torch.equal(state[key], tensor) for key, tensor in weights.items())


def push_from_model(checkpoint: Path) -> str:
    """Uploads with the methods of transformers alone."""
    FlashSlothForConditionalGeneration.from_pretrained(checkpoint).push_to_hub("me/direct")
    return str(FlashSlothProcessor.from_pretrained(checkpoint).push_to_hub("me/direct"))


def convert_from_hub(name: str, destination: Path, weights: dict[str, torch.Tensor]) -> bool:
    """Whether a conversion makes these weights."""
    convert(name, destination)
    converted = load_file(destination / "model.safetensors")
    return converted.keys() == weights.keys() and all(torch.equal(converted[key], weights[key]) for key in weights)


def build_from_hub(text: str, vision: str, destination: Path) -> int:
    """Builds a model of two repositories; the weights of its decoder."""
    model = build_checkpoint(destination, text, vision)
    FlashSlothProcessor.from_pretrained(destination)
    return model.model.language_model.num_parameters()


def main(checkpoint: Path) -> None:
    weights = {name: tensor for file in checkpoint.glob("*.safetensors") for name, tensor in load_file(file).items()}
    load_model, load_processor = FlashSlothForConditionalGeneration.from_pretrained, FlashSlothProcessor.from_pretrained
    report = {
        "push": outcome(push_to_hub, checkpoint, "me/sloth", scores="base"),
        "load": outcome(load_whole, "me/sloth", weights),
        "push from model": outcome(push_from_model, checkpoint),
        "load what the model pushed": outcome(load_whole, "me/direct", weights),
        "load the authors' format": outcome(load_whole, "them/authors", weights),
        "convert from the Hub": outcome(convert_from_hub, "them/authors", checkpoint.with_name("from hub"), weights),
        "build": outcome(build_from_hub, "them/text", "them/vision", checkpoint.with_name("built")),
    }
    bad = {
        "missing": ("me/nothing", {}),
        "gated": ("them/gated", {"token": False}),
        "revision": ("me/sloth", {"revision": "v9"}),
    }
    for step, (name, options) in bad.items():
        report[f"{step}, model"] = outcome(load_model, name, **options)
        report[f"{step}, processor"] = outcome(load_processor, name, **options)
    report["shard missing"] = outcome(load_model, "them/incomplete")
    del os.environ["HF_TOKEN"]
    report["push without a token"] = outcome(push_to_hub, checkpoint, "me/other")
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
