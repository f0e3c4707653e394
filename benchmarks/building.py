"""Models from configs in seconds: weights are random numbers of a sane size, and nothing is fetched."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import nn
from transformers import initialization

# Random numbers are drawn once and laid over all weights; no layer's width divides a prime.
NUM_DRAWN = 1_000_003
SPREAD = 0.02
# Memory that is left to activations, caches and everybody else.
MARGIN = 2**30
HAS_VALUES: ContextVar[bool] = ContextVar("has_values", default=True)


@contextmanager
def without_values() -> Iterator[None]:
    """Within it, `build` leaves weights as they came: pages that nobody has written to take no memory."""
    token = HAS_VALUES.set(False)
    try:
        yield
    finally:
        HAS_VALUES.reset(token)


def build(create: Callable[[], nn.Module], device: str) -> nn.Module:
    """
    What `create` makes, in evaluation mode on `device`, without its own slow initialisation.

    Raises:
        MemoryError: if the weights would not leave `MARGIN` of the host's memory free, before they take any.
    """
    with torch.device(device), initialization.no_init_weights():
        model = create()
        model.tie_weights()  # which a model without initialisation leaves out
    if not HAS_VALUES.get():
        return model.eval()
    if torch.device(device).type == "cpu":
        check_memory(num_bytes([model]))
    fill(model)
    return model.eval()


def check_memory(needed: int) -> None:
    """Raises MemoryError if Linux has not `needed` bytes and `MARGIN` to give; elsewhere nothing is known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    if needed + MARGIN > free:
        raise MemoryError(
            f"The model's weights take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB of memory are free, of which "
            f"{MARGIN / 1e9:.1f} GB must stay so. End what else runs here, or leave this model out."
        )


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Norms weigh 1, biases are 0, and all other weights lie between -`SPREAD` and `SPREAD`."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        generator = torch.Generator(parameter.device).manual_seed(0)
        drawn = torch.empty(NUM_DRAWN, device=parameter.device, dtype=parameter.dtype)
        drawn.uniform_(-SPREAD, SPREAD, generator=generator)
        flat = parameter.view(-1)
        whole = flat.numel() // NUM_DRAWN
        flat[: whole * NUM_DRAWN].view(whole, NUM_DRAWN).copy_(drawn)
        flat[whole * NUM_DRAWN :].copy_(drawn[: flat.numel() - whole * NUM_DRAWN])


def share(stock: nn.Module, source: nn.Module) -> nn.Module:
    """`stock`, built on the meta device, with the very parameters and buffers of `source`, a module of its kind."""
    stock.load_state_dict(source.state_dict(), assign=True)
    for name, buffer in source.named_buffers():
        owner, _, leaf = name.rpartition(".")
        setattr(stock.get_submodule(owner), leaf, buffer)
    return stock.eval()


def num_bytes(modules: list[nn.Module]) -> int:
    """Bytes of all parameters, those that several modules share counted once."""
    unique = {id(p): p.numel() * p.element_size() for module in modules for p in module.parameters()}
    return sum(unique.values())
