"""What both training phases share: optimisers, a schedule that ends on time, checkpoints, batches made ahead."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

Batch = TypeVar("Batch")
CHECKPOINT_SECONDS = 180
WARM_UP, DECAY_FROM = 0.02, 0.4
"""Shares of the planned time: the learning rate rises until the first and falls to zero from the second on."""


def fast_products(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16, but on a CPU that would only emulate it, at a sixth of float32's speed."""
    emulated = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    return torch.autocast(device.type, torch.bfloat16, enabled=not emulated)


class Optimisers:
    """Muon for the weight matrices of transformer layers, AdamW for everything else."""

    def __init__(
        self,
        modules: list[nn.Module],
        matrix_lr: float,
        other_lr: float,
        weight_decay: float = 0.02,
        rate_of: Callable[[str], float] = lambda name: 1.0,
    ):
        """`rate_of` a parameter's name is the share of the learning rates that it gets."""
        groups: dict[bool, dict[float, list[nn.Parameter]]] = {True: {}, False: {}}
        for module in modules:
            for name, parameter in module.named_parameters():
                if not parameter.requires_grad:
                    continue
                is_matrix = parameter.ndim == 2 and ("layers." in name or "embq" in name or "projector" in name)
                own = groups[is_matrix and min(parameter.shape) > 1]
                own.setdefault(rate_of(name), []).append(parameter)
        matrices, others = (
            [{"params": parameters, "peak": peak * rate} for rate, parameters in sorted(groups[is_matrix].items())]
            for is_matrix, peak in ((True, matrix_lr), (False, other_lr))
        )
        self.optimisers = [
            torch.optim.Muon(matrices, lr=matrix_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=other_lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.parameters = [parameter for group in matrices + others for parameter in group["params"]]

    def step(self, loss: torch.Tensor, factor: float) -> None:
        """One update, gradients clipped to norm 1, at `factor` times the peak learning rates."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict]:
        return [optimiser.state_dict() for optimiser in self.optimisers]

    def load_state_dict(self, states: list[dict]) -> None:
        for optimiser, state in zip(self.optimisers, states, strict=True):
            optimiser.load_state_dict(state)


class Clock:
    """Time trained so far, over interruptions, against the planned one."""

    def __init__(self, minutes: float, elapsed: float = 0.0):
        self.planned = minutes * 60
        self.started = time.monotonic() - elapsed

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    @property
    def finished(self) -> bool:
        return self.elapsed >= self.planned

    @property
    def factor(self) -> float:
        """See `learning_rate_factor`."""
        return learning_rate_factor(min(1.0, self.elapsed / self.planned))


def learning_rate_factor(done: float) -> float:
    """Rises to 1, stays, and falls to 0 along a cosine as the share `done` of a training goes from 0 to 1."""
    if done < WARM_UP:
        return max(0.05, done / WARM_UP)
    if done < DECAY_FROM:
        return 1.0
    return 0.5 + 0.5 * math.cos(math.pi * (done - DECAY_FROM) / (1 - DECAY_FROM))


class Budget:
    """What a stage may take: minutes, over interruptions, or a number of batches, the same on every machine."""

    def __init__(self, *, minutes: float | None = None, steps: int | None = None):
        self.minutes, self.steps = minutes, steps
        self.go_on_from(0, 0.0)

    def go_on_from(self, step: int, elapsed: float) -> None:
        """Begin, or begin again where `step` batches had taken `elapsed` seconds."""
        self.clock = Clock(1 if self.minutes is None else self.minutes, elapsed)

    @property
    def elapsed(self) -> float:
        """Seconds so far."""
        return self.clock.elapsed

    def spent(self, step: int) -> bool:
        """Whether nothing is left after `step` batches."""
        return self.clock.finished if self.steps is None else step >= self.steps

    def factor(self, step: int) -> float:
        """See `learning_rate_factor`."""
        return self.clock.factor if self.steps is None else learning_rate_factor(step / self.steps)


def save_checkpoint(path: Path, **state: object) -> None:
    """Write `state` so that an interruption leaves either the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def made_ahead(make: Callable[[int], Batch], first: int) -> Iterator[Batch]:
    """`make(first)`, `make(first + 1)`, ..., each made in a thread while its predecessor is used."""
    with ThreadPoolExecutor(1) as pool:
        index, pending = first, pool.submit(make, first)
        while True:
            ready = pending.result()
            index += 1
            pending = pool.submit(make, index)
            yield ready
