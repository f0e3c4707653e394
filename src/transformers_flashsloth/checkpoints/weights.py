"""The weight files of a checkpoint directory: which tensors they hold, and their contents one tensor at a time."""

import json
import math
import os
import struct
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from ..model.pretrained_flashsloth import PICKLES_REFUSED, TRUST_PICKLES

# Number types of weights, as the safetensors format writes them.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class TensorInfo(NamedTuple):
    """
    Where a tensor is and what it looks like.

    Attributes:
        file (`Path`): that holds it.
        shape (`tuple[int, ...]`): as in PyTorch.
        dtype (`torch.dtype`): number type, or its name in the file where it is none of plain weights.
        start (`int`, *optional*): first byte in a safetensors file; `None` in a pickle.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype | str
    start: int | None


class CheckpointFiles:
    """
    Opens the weights of a directory: `model.safetensors` or the shards of `model.safetensors.index.json`. Contents
    stay on disk.

    Args:
        directory (`str` or `os.PathLike`): of the checkpoint.
        trust_pickles (`bool`, defaults to `False`): whether `pytorch_model*.bin` are read where there are no
            safetensors, with `weights_only=True`.
        remedy (`str`): how a caller's user says that pickles are trusted, for the message.

    Attributes:
        tensors (`dict[str, TensorInfo]`): by name, in the order of the files.

    Raises:
        FileNotFoundError: if there are no weights, or a shard is missing.
        ValueError: if a file is damaged, files and index contradict each other, or the weights are pickles.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        trust_pickles: bool = False,
        remedy: str = TRUST_PICKLES,
    ):
        self.directory = Path(directory)
        self._unpickled: tuple[Path | None, dict[str, torch.Tensor]] = (None, {})
        self.files, weight_map = self._find_files(trust_pickles, remedy)
        self.tensors: dict[str, TensorInfo] = {}
        for file in self.files:
            for name, tensor in self._list(file).items():
                if name in self.tensors:
                    raise ValueError(f"{name} is in two files: {self.tensors[name].file.name} and {file.name}.")
                if tensor.dtype not in DTYPES.values():
                    raise ValueError(f"{name} in {file} holds {tensor.dtype}: no number type of plain weights.")
                self.tensors[name] = tensor
        if weight_map is not None:
            self._check_index(weight_map)

    def read(self, name: str) -> torch.Tensor:
        """Reads one tensor; cheapest in the order of `tensors`. No more than this tensor stays in memory."""
        tensor = self.tensors[name]
        if tensor.start is None:
            return self._unpickle(tensor.file)[name]
        # Not through a memory map, as its pages would count as memory until the whole file is closed.
        content = bytearray(math.prod(tensor.shape) * tensor.dtype.itemsize)
        with open(tensor.file, "rb") as stream:
            stream.seek(tensor.start)
            stream.readinto(content)
        return torch.frombuffer(content, dtype=tensor.dtype).view(tensor.shape)

    def _find_files(self, trust_pickles: bool, remedy: str) -> tuple[list[Path], dict[str, str] | None]:
        for name, is_pickle in (("model.safetensors", False), ("pytorch_model.bin", True)):
            file, index = self.directory / name, self.directory / f"{name}.index.json"
            if not file.is_file() and not index.is_file():
                continue
            if is_pickle and not trust_pickles:
                raise ValueError(PICKLES_REFUSED.format(directory=self.directory, name=name, remedy=remedy))
            if file.is_file():
                return [file], None
            weight_map = _read_weight_map(index)
            files = [self.directory / shard for shard in sorted(set(weight_map.values()))]
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise FileNotFoundError(f"{index} names {', '.join(missing)}, which {_is(missing)} not there.")
            return files, weight_map
        raise FileNotFoundError(f"There are no weights in {self.directory}: no model.safetensors, no index of shards.")

    def _check_index(self, weight_map: dict[str, str]) -> None:
        absent = [name for name, file in weight_map.items() if self._file_of(name) != file]
        if absent:
            raise ValueError(f"The index of {self.directory} names {_some(absent)}, not to be found where it says.")
        unnamed = [name for name in self.tensors if name not in weight_map]
        if unnamed:
            raise ValueError(f"The shards of {self.directory} hold {_some(unnamed)}, unknown to their index.")

    def _file_of(self, name: str) -> str | None:
        return self.tensors[name].file.name if name in self.tensors else None

    def _list(self, file: Path) -> dict[str, TensorInfo]:
        return _read_header(file) if file.suffix == ".safetensors" else _describe(file, self._unpickle(file))

    def _unpickle(self, file: Path) -> dict[str, torch.Tensor]:
        if self._unpickled[0] != file:
            self._unpickled = (None, {})  # one file at a time
            self._unpickled = (file, _unpickle(file))
        return self._unpickled[1]


def _read_header(file: Path) -> dict[str, TensorInfo]:
    try:
        safe_open(file, framework="pt")  # checks the whole layout
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or cut short ({error}): get it again.") from error
    with open(file, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    tensors = {
        name: TensorInfo(
            file,
            tuple(entry["shape"]),
            DTYPES.get(entry["dtype"], entry["dtype"]),
            8 + length + entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }
    return dict(sorted(tensors.items(), key=lambda item: item[1].start))


def _unpickle(file: Path) -> dict[str, torch.Tensor]:
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # unpicklers raise whatever they like
        raise ValueError(f"{file} cannot be read as weights only: {error}") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{file} holds other things than tensors: it is no file of weights.")
    return tensors


def _describe(file: Path, tensors: dict[str, torch.Tensor]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(file, tuple(tensor.shape), tensor.dtype, None) for name, tensor in tensors.items()}


def check_shapes(
    found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], path: str | os.PathLike
) -> None:
    """Raises ValueError unless a checkpoint holds exactly the expected tensors in the expected shapes."""
    faults = []
    missing = [name for name in expected if name not in found]
    if missing:
        faults.append(f"{_some(missing)} {_is(missing)} missing")
    unexpected = [name for name in found if name not in expected]
    if unexpected:
        faults.append(f"{_some(unexpected)} {_is(unexpected)} not part of the model")
    wrong = [
        f"{name} has shape {list(found[name])} where config.json asks for {list(shape)}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    if wrong:
        faults.append(_some(wrong))
    if faults:
        raise ValueError(f"The weights of {path} do not fit its config.json: {'; '.join(faults)}.")


def _read_weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: Path(file).name for name, file in weight_map.items()}  # a name only: no way out of the directory
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of shards: it needs a `weight_map` from tensors to files.") from error


def _some(names: list[str], limit: int = 3) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
