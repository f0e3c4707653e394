"""Weights from one directory to another, one tensor in memory at a time."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from tqdm import tqdm

from ..checkpoints.weights import DTYPES, CheckpointFiles, TensorInfo

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def copy_weights(
    source: CheckpointFiles,
    directory: Path,
    rename: Callable[[str], str],
    dtype: torch.dtype | None = None,
    max_shard_size: str = "5GB",
) -> dict[str, str]:
    """
    Writes the tensors of a checkpoint to `model.safetensors`, or to shards and their index.

    Args:
        source ([`CheckpointFiles`]): what is read.
        directory (`Path`): what is written to.
        rename (`Callable`): a tensor's name in the source to its name in the copy.
        dtype (`torch.dtype`, *optional*): number type of the copy; by default that of the source.
        max_shard_size (`str`, defaults to `"5GB"`): largest size of a file.

    Returns:
        `dict[str, str]`: a digest of each tensor as it was read and cast, by its name in the copy.
    """
    names = {rename(name): name for name in source.tensors}
    planned = {
        name: torch.empty(source.tensors[old].shape, dtype=dtype or source.tensors[old].dtype, device="meta")
        for name, old in names.items()
    }
    plan = split_torch_state_dict_into_shards(planned, max_shard_size=max_shard_size)
    digests = {}
    with _progress("Converting", planned) as progress:
        for file, shard in plan.filename_to_tensors.items():
            shard = sorted(shard, key=lambda name: -planned[name].itemsize)  # keeps every tensor aligned
            with open(directory / file, "wb") as stream:
                stream.write(_header({name: planned[name] for name in shard}))
                for name in shard:
                    tensor = source.read(names[name]).to(planned[name].dtype)
                    stream.write(_bytes(tensor))
                    digests[name] = _digest(tensor)
                    progress.update(tensor.nbytes)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": dict(sorted(plan.tensor_to_filename.items()))}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return digests


def verify_weights(copy: CheckpointFiles, digests: dict[str, str]) -> None:
    """Reads a copy back; raises ValueError unless it holds exactly the tensors of these digests."""
    if copy.tensors.keys() != digests.keys():
        raise ValueError(f"{copy.directory} holds other tensors than were written to it.")
    with _progress("Verifying", copy.tensors) as progress:
        for name in copy.tensors:
            tensor = copy.read(name)
            if _digest(tensor) != digests[name]:
                raise ValueError(f"{name} in {copy.directory} is not what was written: the disk may be faulty.")
            progress.update(tensor.nbytes)


def total_bytes(tensors: dict[str, TensorInfo | torch.Tensor], dtype: torch.dtype | None = None) -> int:
    """Size of all tensors together, as they are or cast to `dtype`."""
    return sum(torch.Size(tensor.shape).numel() * (dtype or tensor.dtype).itemsize for tensor in tensors.values())


def _header(tensors: dict[str, torch.Tensor]) -> bytes:
    """What stands before the contents in a safetensors file: its own length (8 bytes) and JSON, padded to 8 bytes."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    return struct.pack("<Q", len(content)) + content


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.blake2b(_bytes(tensor), digest_size=16).hexdigest()


def _progress(label: str, tensors: dict[str, TensorInfo | torch.Tensor]) -> tqdm:
    return tqdm(desc=label, total=total_bytes(tensors), unit="B", unit_scale=True, disable=None)
