"""
What a training step of FlashSloth costs beside that of a model fed every patch: `python -m benchmarks.training_cost`.

The other model is what LLaVA makes of the same parts: the same vision tower, each of its patches through an MLP
into the same decoder, no pooling and no queries. Both see the same images and the same text, share the weights that
they have in common, and take turns in one process. A step is forward and backward; the tower is frozen, as in the
release, and the optimiser, which costs both the same, is left out. Weights are random: they do not change the work.
"""

import argparse
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from transformers_flashsloth import FlashSlothForConditionalGeneration

from .building import build
from .machine import describe
from .measure import Clock, PeakMemory, count_flops, release_memory, summary
from .ours import TOKENS_BEFORE_IMAGE
from .presets import flashsloth_config
from .report import markdown_table, with_spread, write_json

OURS, ALL_PATCHES = "FlashSloth", "all patches"
ADAPTER = {"r": 16, "target_modules": r".*language_model\..*\.(q_proj|k_proj|v_proj|dense|fc1|fc2)"}
TEXT_ID = 11


class AllPatches(nn.Module):
    """The vision tower, an MLP on every patch, and the decoder of `model`, sharing its weights."""

    def __init__(self, model: FlashSlothForConditionalGeneration):
        super().__init__()
        self.flashsloth = [model]  # in a list, so that its parameters are not this module's twice
        core = model.model
        self.vision_tower, self.language_model, self.lm_head = core.vision_tower, core.language_model, model.lm_head
        widths = model.config.vision_config.hidden_size, model.config.text_config.hidden_size
        self.projector = nn.Sequential(nn.Linear(*widths), nn.GELU(), nn.Linear(widths[1], widths[1]))
        self.projector.to(model.device, model.dtype)

    def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Ids and labels `(B, L)`, images `(B, 1, 3, H, W)`: the loss."""
        (model,) = self.flashsloth
        patches = self.vision_tower(pixel_values.flatten(0, 1).to(model.dtype)).last_hidden_state  # (B, P, Dv)
        embeds = self.language_model.embed_tokens(input_ids)
        is_image = (input_ids == model.config.image_token_id)[..., None]
        embeds = embeds.masked_scatter(is_image, self.projector(patches).to(embeds.dtype))
        logits = self.lm_head(self.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state)
        return model.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])


def batch_of(model: FlashSlothForConditionalGeneration, name: str, rows: int, text_tokens: int) -> dict:
    """`rows` prompts with one image and `text_tokens` tokens of text, a half of them the answer that is learned."""
    config = model.config
    answer = text_tokens // 2
    question = text_tokens - answer - TOKENS_BEFORE_IMAGE
    if question < 1:
        raise ValueError(f"`--text-tokens` must be more than {2 * TOKENS_BEFORE_IMAGE}, got {text_tokens}.")
    image, queries = config.tokens_per_view, config.num_query_tokens
    if name == ALL_PATCHES:
        image, queries = prod(config.patch_grid), 0
    ids = [TEXT_ID] * TOKENS_BEFORE_IMAGE + [config.image_token_id] * image + [TEXT_ID] * question
    ids = torch.tensor([ids + [config.query_token_id] * queries + [TEXT_ID] * answer] * rows, device=model.device)
    labels = ids.clone()
    labels[:, :-answer] = -100
    pixels = torch.rand(rows, 1, 3, *config.view_size, device=model.device) * 2 - 1
    return {"input_ids": ids, "labels": labels, "pixel_values": pixels}


def choose_trained(models: dict[str, nn.Module], variant: str) -> None:
    """Full: all but the tower. LoRA: adapters on the decoder's linears, and whatever is neither decoder nor tower."""
    if variant == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        inject_adapter_in_model(LoraConfig(**ADAPTER), models[OURS])
    for model in models.values():
        for name, parameter in model.named_parameters():
            in_decoder = "language_model" in name or "lm_head" in name
            parameter.requires_grad_("vision_tower" not in name and (variant == "full" or not in_decoder))
            if "lora_" in name:
                parameter.requires_grad_(True)


def peak_of(call: Callable[[], Any], device: str) -> int:
    """The most bytes that `call` holds beyond those held before it. No memory is left to use again, so time another."""
    release_memory()
    memory = PeakMemory(device)
    memory.reset()
    before = memory.read()  # a peak that has just been reset is what is held
    call()
    return memory.read() - before


def kept_for_backward(call: Callable[[], Any]) -> int:
    """Bytes that autograd keeps during `call`, each storage counted once and no parameter's."""
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # the very tensor would hold the graph that holds it, weights and all, for good

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(storages.values())


class Steps:
    """The training step of each model, on a batch of its own."""

    def __init__(self, options: argparse.Namespace):
        self.device = options.device
        config = flashsloth_config("ours", options.tiny)
        config.text_config.num_hidden_layers = min(options.layers, config.text_config.num_hidden_layers)
        dtype = getattr(torch, options.dtype)
        model = build(lambda: AutoModelForImageTextToText.from_config(config, dtype=dtype), self.device)
        if options.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.models = {OURS: model, ALL_PATCHES: AllPatches(model)}
        self.batches = {name: batch_of(model, name, options.rows, options.text_tokens) for name in self.models}

    def choose(self, variant: str) -> None:
        """Makes what `variant` trains trainable, with its gradients in place: they are no activations."""
        choose_trained(self.models, variant)
        for model in self.models.values():
            model.train()
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None

    def forward(self, name: str) -> torch.Tensor:
        """The loss of a model on its batch."""
        outputs = self.models[name](**self.batches[name])
        return outputs if name == ALL_PATCHES else outputs.loss

    def step(self, name: str) -> None:
        """Forward and backward; gradients add up, which costs as much as setting them."""
        self.forward(name).backward()

    def facts(self, name: str) -> dict[str, int]:
        """What does not vary, from two passes that also warm up."""
        return {
            "positions": self.batches[name]["input_ids"].shape[1],
            "flops": count_flops(lambda: self.step(name)),
            "kept_bytes": kept_for_backward(lambda: self.forward(name)),
        }

    def sample(self, name: str) -> tuple[float, int]:
        """Seconds of a step, and the most bytes that one held beyond what was there before it."""
        peak = peak_of(lambda: self.step(name), self.device)
        return Clock(self.device).time(lambda: self.step(name))["wall"], peak


def measure(options: argparse.Namespace) -> dict:
    """`{"machine", "options", "variants": {variant: {model: facts, seconds and peak_bytes}}}`."""
    steps, variants = Steps(options), {}
    for variant in sorted(options.variants):  # adapters, once in, stay: "full" comes before "lora"
        steps.choose(variant)
        facts = {name: steps.facts(name) for name in steps.models}
        samples = {name: [] for name in steps.models}
        for _ in range(options.steps):
            for name, taken in samples.items():
                taken.append(steps.sample(name))
        variants[variant] = {
            name: facts[name] | dict(zip(("seconds", "peak_bytes"), map(list, zip(*taken, strict=True)), strict=True))
            for name, taken in samples.items()
        }
    kept = {name: value for name, value in vars(options).items() if name != "output"}
    return {"machine": describe(options.device, options.dtype), "options": kept, "variants": variants}


def table(results: dict) -> str:
    """The results in markdown; below the two models, FlashSloth's share of the other's cost."""
    header = ["trained", "model", "positions", "TFLOP a step", "s a step", "kept for backward, GiB", "peak, GiB"]
    rows = []
    for variant, models in results["variants"].items():
        for name, row in models.items():
            cells = [str(row["positions"]), f"{row['flops'] / 1e12:.3g}", with_spread(summary(row["seconds"]))]
            cells += [f"{row['kept_bytes'] / 2**30:.2f}", with_spread(summary(row["peak_bytes"]), 2**-30)]
            rows.append([variant, name, *cells])
        shares = share_of(models)
        cells = [f"{shares[name]:.2f}" for name in ("positions", "flops", "seconds", "kept_bytes", "peak_bytes")]
        rows.append([variant, "**share**", *cells])
    return markdown_table(header, rows)


def share_of(models: dict[str, dict]) -> dict[str, float]:
    """FlashSloth's share of what the other model takes, of medians where there are several values."""

    def value(name: str, key: str) -> float:
        found = models[name][key]
        return summary(found)["median"] if isinstance(found, list) else found

    return {key: value(OURS, key) / (value(ALL_PATCHES, key) or float("nan")) for key in models[OURS]}


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    results = measure(options)
    if options.output:
        write_json(options.output, results)
    print(table(results))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=["full", "lora"], default=["lora"], help="what is trained")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each model (default %(default)s)")
    parser.add_argument("--rows", type=int, default=1, help="rows of a batch, one image each (default %(default)s)")
    parser.add_argument("--text-tokens", type=int, default=128, help="of a row, a half is answer (default %(default)s)")
    parser.add_argument("--layers", type=int, default=32, help="of the decoder, to make it fit (default %(default)s)")
    parser.add_argument("--checkpointing", action="store_true", help="checkpoint activations (non-re-entrant)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--threads", type=int, help="of torch; its own choice by default")
    parser.add_argument("--tiny", action="store_true", help="small widths, to try it out")
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    return parser


if __name__ == "__main__":
    main()
