"""
What needs no clock, at the true size of every model, in seconds and little memory: tokens, operations and bytes.

Models are built without values, so that the system gives their weights no memory, and no product is computed: each
gives zeros of its shape, and is counted. All else runs as it does, the models' own choices of shapes with it.
"""

import gc
from dataclasses import asdict
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from .building import without_values
from .compare_rows import GROUPS
from .report import read_json, write_json
from .worker import FLASHSLOTH_NAMES, Settings, last_line

ATEN = torch.ops.aten
PRODUCTS = {
    ATEN.mm.default, ATEN.addmm.default, ATEN.bmm.default, ATEN.baddbmm.default, ATEN.convolution.default,
    ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    ATEN.convolution_backward.default, ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default,
}  # fmt: skip


class NoProducts(TorchDispatchMode):
    """Matrix products, convolutions and attention take no time: their results are zeros."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function not in PRODUCTS:
            return function(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs or {}))
        shapes = function(*args, **kwargs)
        return tree_map_only(torch.Tensor, lambda of: torch.zeros_like(of, device="cpu"), shapes)


def count(directory: Path, names: list[str], settings: Settings) -> dict[str, dict]:
    """
    `{row: {"facts"} or {"error"}}` of these groups' rows, see `Sampler.facts`; kept in `counts.json` of the directory,
    where each group is done once.
    """
    path = directory / "counts.json"
    kept = read_json(path)
    if kept is None or kept["settings"] != asdict(settings):
        kept = {"settings": asdict(settings), "rows": {}}
    for name in names:
        if not all("facts" in kept["rows"].get(row, {}) for row in GROUPS[name]):
            print(f"{name} ...", flush=True)
            kept["rows"] |= count_group(GROUPS[name], settings)
            write_json(path, kept)
    return kept["rows"]


def count_group(rows: list[str], settings: Settings) -> dict[str, dict]:
    """The facts of rows that share their weights, or the error of each."""
    from .sampling import Sampler

    built = list(FLASHSLOTH_NAMES) if set(rows) <= set(FLASHSLOTH_NAMES) else rows
    try:
        with without_values():
            sampler = Sampler(built, settings)
            with NoProducts():
                return {row: {"facts": sampler.facts(row)} for row in rows}
    except Exception as error:  # such as a library that is missing
        return {row: {"error": last_line(error)} for row in rows}
    finally:
        sampler = None
        gc.collect()
