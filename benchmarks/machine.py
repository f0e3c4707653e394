"""The machine that figures come from: its name, and how fast it multiplies and reads at best."""

import platform
from pathlib import Path

import torch
import transformers

from .measure import Clock

# (m, k, n): a square product, a layer of a SigLIP so400m on one view, and a layer of phi-2 on a prompt of 152.
MATMULS = ((2048, 4096, 4096), (729, 1152, 4304), (152, 2560, 10240))
TINY_MATMULS = ((64, 64, 64),)


def describe(device: str, dtype: str) -> dict:
    """Names and versions: `{"processor", "gpu", "threads", "dtype", "torch", "transformers", ...}`."""
    on_cuda = torch.device(device).type == "cuda"
    return {
        "processor": _processor(),
        "gpu": torch.cuda.get_device_name() if on_cuda else None,
        "cuda": torch.version.cuda if on_cuda else None,
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.machine()


@torch.inference_mode()
def ceilings(device: str, dtype: str, tiny: bool = False, repeats: int = 5) -> dict[str, float]:
    """
    The best that matrix products and reads reach here now: `{"flops": operations/s, "bytes": bytes/s}`. A read is a
    product of one row with a matrix far larger than the caches, as in decoding, or a copy, which reads and writes.
    """
    clock, kind = Clock(device), getattr(torch, dtype)

    def best(call) -> float:
        call()
        return min(clock.time(call)["wall"] for _ in range(repeats))

    flops = []
    for m, k, n in TINY_MATMULS if tiny else MATMULS:
        a, b = torch.ones(m, k, device=device, dtype=kind), torch.ones(n, k, device=device, dtype=kind)
        flops.append(2 * m * k * n / best(lambda a=a, b=b: a @ b.T))

    matrix = torch.ones(256 if tiny else 51200, 2560, device=device, dtype=kind)
    row, copy = torch.ones(1, 2560, device=device, dtype=kind), torch.empty_like(matrix)
    size = matrix.numel() * matrix.element_size()
    reads = (size / best(lambda: row @ matrix.T), 2 * size / best(lambda: copy.copy_(matrix)))
    return {"flops": max(flops), "bytes": max(reads)}
