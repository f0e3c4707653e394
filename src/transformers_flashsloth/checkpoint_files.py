"""The weight files of a checkpoint directory: which tensors they hold, and their contents one tensor at a time."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

PICKLES_REFUSED = (
    "The weights in {directory} are pickles ({name}), which can run any code when they are read. Get the checkpoint "
    "as safetensors. If you trust its source, {remedy}; then they are read with `weights_only=True`."
)
# Number types of weights, as the safetensors format writes them.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class TensorInfo(NamedTuple):
    """Where a tensor is and what it looks like."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


class CheckpointFiles:
    """
    Opens the weights of a directory: `model.safetensors` or the shards of `model.safetensors.index.json`. Contents
    stay on disk; one file is open at a time.

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
        remedy: str = "pass `use_safetensors=False`",
    ):
        self.directory = Path(directory)
        self._opened: tuple[Path, object] | None = None
        self.files, weight_map = self._find_files(trust_pickles, remedy)
        self.tensors: dict[str, TensorInfo] = {}
        for file in self.files:
            for name, tensor in self._list(file):
                if name in self.tensors:
                    raise ValueError(f"{name} is in two files: {self.tensors[name].file.name} and {file.name}.")
                if tensor.dtype not in DTYPES.values():
                    raise ValueError(f"{name} in {file} holds {tensor.dtype}, which is no number type of plain weights.")
                self.tensors[name] = tensor
        if weight_map is not None:
            self._check_index(weight_map)

    def read(self, name: str) -> torch.Tensor:
        """Reads one tensor; cheapest in the order of `tensors`."""
        file = self.tensors[name].file
        contents = self._open(file)
        return contents[name] if isinstance(contents, dict) else contents.get_tensor(name)

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

    def _list(self, file: Path) -> Iterator[tuple[str, TensorInfo]]:
        contents = self._open(file)
        if isinstance(contents, dict):
            for name, tensor in contents.items():
                yield name, TensorInfo(file, tuple(tensor.shape), tensor.dtype)
        else:
            for name in contents.offset_keys():
                tensor = contents.get_slice(name)
                dtype = tensor.get_dtype()
                yield name, TensorInfo(file, tuple(tensor.get_shape()), DTYPES.get(dtype, dtype))

    def _open(self, file: Path):
        if self._opened is None or self._opened[0] != file:
            self._opened = None  # closes the one before
            try:
                if file.suffix == ".bin":
                    contents = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
                else:
                    contents = safe_open(file, framework="pt")
            except SafetensorError as error:
                raise ValueError(f"{file} is damaged or cut short ({error}): get it again.") from error
            except Exception as error:  # unpicklers raise whatever they like
                raise ValueError(f"{file} cannot be read as weights only: {error}") from error
            if isinstance(contents, dict) and not all(isinstance(value, torch.Tensor) for value in contents.values()):
                raise ValueError(f"{file} holds more than tensors: it is no file of weights.")
            self._opened = file, contents
        return self._opened[1]


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
