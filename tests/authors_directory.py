"""Checkpoints in the authors' format, written from seeds."""

import functools
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.goldens import seeded
from tests.phi_tokenizer import _vocabulary

GOLDENS = Path(__file__).parent / "goldens"
CONFIG = json.loads((GOLDENS / "tiny_config.json").read_text())
SHAPES = {name: tuple(shape) for name, shape in json.loads((GOLDENS / "tiny_checkpoint_keys.json").read_text()).items()}


@functools.cache
def authors_weights(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The seeded tensors of the tiny model under the authors' names."""
    return {name: torch.from_numpy(seeded.weight(name, shape)).to(dtype) for name, shape in SHAPES.items()}


def write_authors_checkpoint(
    directory: Path, weights: dict[str, torch.Tensor] | None = None, shards: int = 2, **config_changes
) -> Path:
    """Writes a checkpoint as the authors' repositories hold it; `shards=1` makes a single file without an index."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = authors_weights() if weights is None else weights
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    write_json(directory / "config.json", CONFIG | {"torch_dtype": dtype} | config_changes)
    write_json(
        directory / "generation_config.json",
        {"_from_model_config": True, "bos_token_id": 50256, "eos_token_id": 50256, "transformers_version": "4.38.0"},
    )
    write_shards(directory, weights, shards)
    write_tokenizer(directory)
    return directory


def write_shards(directory: Path, weights: dict[str, torch.Tensor], shards: int) -> None:
    if shards == 1:
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(weights)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        save_file({name: weights[name] for name in part}, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(directory / "model.safetensors.index.json", index)


def write_tokenizer(directory: Path) -> None:
    """vocab.json, merges.txt, added_tokens.json and the two small files, as a slow tokenizer saves them."""
    vocab, merges = _vocabulary()
    write_json(directory / "vocab.json", vocab, indent=None)
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    runs = {" " * n: 50257 + 31 - n for n in range(31, 1, -1)} | {"\t" * n: 50287 + 9 - n for n in range(9, 1, -1)}
    write_json(directory / "added_tokens.json", dict(sorted((runs | {"<learnable>": 50295, "</s>": 50296}).items())))
    text = "<|endoftext|>"
    special = {"bos_token": text, "eos_token": "</s>", "pad_token": text, "unk_token": text}
    write_json(directory / "special_tokens_map.json", special)
    write_json(
        directory / "tokenizer_config.json",
        special | {"model_max_length": 3072, "padding_side": "right", "tokenizer_class": "CodeGenTokenizer"},
    )


def write_json(file: Path, content: dict, indent: int | None = 2) -> None:
    file.write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
