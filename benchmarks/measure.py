"""What every benchmark measures with: a clock, a memory gauge, a counter of operations, medians with their spread."""

import contextlib
import ctypes
import gc
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

# Linux resets a process's peak memory when this is written to its `clear_refs`.
RESET_PEAK = "5"


class Mark(NamedTuple):
    """A moment: wall time and this process's CPU time in seconds, and on CUDA its event in the stream."""

    wall: float
    cpu: float
    event: torch.cuda.Event | None


class Clock:
    """
    Marks moments. On CUDA a mark is an event in the stream, so that marking does not wait for the GPU.

    Args:
        device (`str`): "cpu" or "cuda".
    """

    def __init__(self, device: str):
        self.on_cuda = torch.device(device).type == "cuda"

    def mark(self) -> Mark:
        event = None
        if self.on_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        return Mark(time.perf_counter(), time.process_time(), event)

    def wait(self) -> None:
        """Returns when all work is done; before a measurement begins, and before its marks are compared."""
        if self.on_cuda:
            torch.cuda.synchronize()

    def between(self, start: Mark, end: Mark) -> dict[str, float]:
        """Seconds from one mark to another: `{"wall", "cpu"}`, wall by the GPU's own clock where there is one."""
        wall = end.wall - start.wall
        if start.event is not None:
            wall = start.event.elapsed_time(end.event) / 1000
        return {"wall": wall, "cpu": end.cpu - start.cpu}

    def time(self, call: Callable[[], Any]) -> dict[str, float]:
        """Seconds that `call` takes: `{"wall", "cpu"}`."""
        self.wait()
        start = self.mark()
        call()
        end = self.mark()
        self.wait()
        return self.between(start, end)


def summary(values: list[float]) -> dict[str, float | int]:
    """`{"median", "low", "high", "n"}`; low and high are the quartiles, or the extremes of fewer than four values."""
    low, high = min(values), max(values)
    if len(values) >= 4:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": statistics.median(values), "low": low, "high": high, "n": len(values)}


def slope(x: list[float], y: list[float]) -> dict[str, float]:
    """
    Two least-squares fits of y against x: `{"per_unit", "intercept"}` of a line, and the `exponent` k of y - y[0] ~
    (x - x[0])^k, which is 1 where y grows with x and 2 where it grows with its square.
    """
    per_unit, intercept = statistics.linear_regression(x, y)
    grown = [(a - x[0], b - y[0]) for a, b in zip(x, y, strict=True) if a > x[0] and b > y[0]]
    exponent = float("nan")
    if len(grown) > 1:
        logs = torch.tensor(grown, dtype=torch.float64).log().T
        exponent = statistics.linear_regression(logs[0].tolist(), logs[1].tolist()).slope
    return {"per_unit": per_unit, "intercept": intercept, "exponent": exponent}


def release_memory() -> None:
    """Gives back what nothing holds: glibc keeps freed blocks of a few megabytes, which add up to whole models."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # where there is no glibc
        ctypes.CDLL(None).malloc_trim(0)


class PeakMemory:
    """
    The most memory, in bytes, that was held since `reset`: on CUDA what torch allocated there, else the process's
    resident set (where its peak cannot be reset, as outside Linux, the peak since the process began).
    """

    def __init__(self, device: str):
        self.on_cuda = torch.device(device).type == "cuda"

    def reset(self) -> None:
        if self.on_cuda:
            torch.cuda.reset_peak_memory_stats()
            return
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text(RESET_PEAK)

    def read(self) -> int:
        if self.on_cuda:
            return torch.cuda.max_memory_allocated()
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
        except OSError:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


class FlopCounter(FlopCounterMode):
    """torch's counter of floating-point operations (2 a multiply-add), and the CPU's attention, which it leaves out."""

    def __init__(self):
        cpu_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        super().__init__(display=False, custom_mapping={cpu_attention: _attention_flops})


def _attention_flops(query: tuple, key: tuple, value: tuple, *args, **kwargs) -> int:
    """Of shapes `(B, heads, n, d)`, `(B, heads, m, d)`, `(B, heads, m, dv)`; a causal one counts in full."""
    rows, heads, n, d = query
    return 2 * rows * heads * n * key[2] * (d + value[3])


def count_flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products, convolutions and attention during `call`."""
    with FlopCounter() as counter:
        call()
    return counter.get_total_flops()
