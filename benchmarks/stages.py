"""Where the time of a prefill goes: hooks note when the modules of each stage begin and end."""

from collections.abc import Callable
from typing import Any

from torch import nn


class Stages:
    """
    Between `begin` and `end`, reads something, such as a clock, whenever a module of a stage begins and ends.

    Args:
        modules (`dict[str, list[nn.Module]]`): the modules of each stage. One may run inside of another, as a
            compressor inside of its decoder, and is taken out of it.
    """

    def __init__(self, modules: dict[str, list[nn.Module]]):
        self.modules = modules
        self.read: Callable[[], Any] | None = None
        self.open: list[tuple[str, Any]] = []
        self.spans: list[tuple[str, str | None, Any, Any]] = []
        self.handles = []
        for stage, parts in modules.items():
            for module in parts:
                enter = module.register_forward_pre_hook(lambda *_, stage=stage: self._enter(stage))
                self.handles += [enter, module.register_forward_hook(lambda *_: self._leave())]

    def begin(self, read: Callable[[], Any]) -> None:
        self.read, self.open, self.spans = read, [], []

    def end(self) -> None:
        self.read = None

    def remove(self) -> None:
        """Takes the hooks off: a compiler would stumble over them, and they take some time."""
        for handle in self.handles:
            handle.remove()

    def totals(self, between: Callable[[Any, Any], dict[str, float]]) -> dict[str, dict[str, float]]:
        """What passed in each stage, where `between` tells it for two readings."""
        totals = {stage: {} for stage in self.modules}
        for stage, outer, start, end in self.spans:
            for name, value in between(start, end).items():
                totals[stage][name] = totals[stage].get(name, 0) + value
                if outer is not None:
                    totals[outer][name] = totals[outer].get(name, 0) - value
        return totals

    def _enter(self, stage: str) -> None:
        if self.read is not None:
            self.open.append((stage, self.read()))

    def _leave(self) -> None:
        if self.read is not None and self.open:
            stage, start = self.open.pop()
            self.spans.append((stage, self.open[-1][0] if self.open else None, start, self.read()))
