"""
Converts a checkpoint from the authors' format to this package's, or back. One tensor at a time is in memory, and no
accelerator is needed; the copy appears when it is whole and was read back.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import GenerationConfig

from ..checkpoints.weights import CheckpointFiles, check_shapes
from ..checkpoints.written_aside import written_aside
from ..model.configuration_flashsloth import FlashSlothConfig
from ..model.foreign_formats import foreign_format_at
from ..model.modeling_flashsloth import FlashSlothForConditionalGeneration
from ..model.processing_flashsloth import FlashSlothProcessor
from .format import config_to_authors, to_authors_name, to_our_name
from .loading import end_at_answers, model_shapes
from .processor import save_authors_tokenizer
from .weight_stream import copy_weights, total_bytes, verify_weights

SOURCE_FILES = ["*.json", "*.txt", "*.jinja", "*.safetensors"]
SMALL_FILES = 20_000_000  # bytes that configuration, code and tokenizer take at most


class Summary(NamedTuple):
    """What a conversion read and wrote."""

    source: str
    source_files: list[str]
    source_bytes: int
    destination: Path
    destination_files: list[str]
    destination_bytes: int
    num_tensors: int
    dtype: str
    verified: bool

    def __str__(self) -> str:
        return (
            f"Read {self.num_tensors} tensors, {self.source_bytes:,} bytes, from {self.source}: "
            f"{', '.join(self.source_files)}.\n"
            f"Wrote {self.num_tensors} tensors, {self.destination_bytes:,} bytes of {self.dtype}, to "
            f"{self.destination}: {', '.join(self.destination_files)}.\n"
            + ("Read them back: equal." if self.verified else "Not read back.")
        )


def convert(
    source: str,
    destination: Path,
    *,
    to_authors_format: bool = False,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    trust_pickles: bool = False,
    verify: bool = True,
) -> Summary:
    """
    Converts a checkpoint.

    Args:
        source (`str`): directory or Hub id.
        destination (`Path`): directory that does not exist yet.
        to_authors_format (`bool`, defaults to `False`): whether to go from this package's format to the authors'.
        dtype (`str`, *optional*): number type of the copy; by default that of the source.
        max_shard_size (`str`, defaults to `"5GB"`): largest file of weights.
        trust_pickles (`bool`, defaults to `False`): whether pickled weights are read, as weights only.
        verify (`bool`, defaults to `True`): whether the copy is read back and compared.

    Raises:
        OSError: if files are missing, `destination` exists or there is no space left.
        ValueError: if the source is damaged, in another format, or cannot be expressed in the format asked for.
    """
    directory = _local(source, trust_pickles)
    foreign, _ = foreign_format_at(directory)
    config = FlashSlothConfig.from_pretrained(directory)
    if to_authors_format and foreign is not None:
        raise ValueError(f"{source} is in the authors' format already.")
    if not to_authors_format and foreign is None:
        raise ValueError(f"{source} is in this package's format already; for the way back add --to-authors-format.")

    processor = FlashSlothProcessor.from_pretrained(directory)
    if to_authors_format:
        their_config = config_to_authors(config, processor.image_processor.image_hd)
    files = CheckpointFiles(directory, trust_pickles, remedy="add --trust-pickles")
    shapes = model_shapes(config)
    if foreign is not None:
        shapes = {to_authors_name(name): shape for name, shape in shapes.items()}
    check_shapes({name: tensor.shape for name, tensor in files.tensors.items()}, shapes, source)

    torch_dtype = getattr(torch, dtype) if dtype else None
    config.dtype = torch_dtype or next(iter(files.tensors.values())).dtype
    dtype = str(config.dtype).removeprefix("torch.")
    size = total_bytes(files.tensors, torch_dtype)
    with written_aside(destination, size + SMALL_FILES) as partial:
        if to_authors_format:
            _save_authors_parts(partial, their_config | {"torch_dtype": dtype}, processor)
        else:
            _save_our_parts(partial, config, processor, directory)
        rename = to_authors_name if to_authors_format else to_our_name
        digests = copy_weights(files, partial, rename, torch_dtype, max_shard_size)
        copy = CheckpointFiles(partial)
        if verify:
            verify_weights(copy, digests)
    return Summary(
        source,
        [file.name for file in files.files],
        total_bytes(files.tensors),
        destination,
        [file.name for file in copy.files],
        size,
        len(digests),
        dtype,
        verify,
    )


def _local(source: str, trust_pickles: bool) -> Path:
    if Path(source).is_dir():
        return Path(source)
    if Path(source).exists():
        raise NotADirectoryError(f"{source} is a file: name the checkpoint's directory.")
    try:
        return Path(snapshot_download(source, allow_patterns=SOURCE_FILES + (["*.bin"] if trust_pickles else [])))
    except HFValidationError as error:
        raise FileNotFoundError(f"{source} is neither a directory nor a Hub id.") from error


def _save_our_parts(directory: Path, config: FlashSlothConfig, processor: FlashSlothProcessor, source: Path) -> None:
    """Writes all but the weights: configuration, generation options, code and processor."""
    with torch.device("meta"):
        model = FlashSlothForConditionalGeneration(config).to(config.dtype)
    if (source / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(source)
    end_at_answers(model.generation_config, config)
    model.save_pretrained(directory, state_dict={})
    processor.save_pretrained(directory)


def _save_authors_parts(directory: Path, config: dict, processor: FlashSlothProcessor) -> None:
    tokenizer = processor.tokenizer
    generation = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_authors_tokenizer(processor.tokenizer, directory)
