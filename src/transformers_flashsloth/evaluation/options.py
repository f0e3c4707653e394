"""Options of generation as tasks of lmms-eval write them, as those of `generate`."""

from dataclasses import dataclass, field
from typing import Any

from transformers.utils import logging

from ..checkpoints.opening import InputError

logger = logging.get_logger(__name__)

DEFAULT_MAX_NEW_TOKENS = 1024
# `num_return_sequences` and the like would give several answers where one is counted.
PASSED_ON = ("top_p", "top_k", "min_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size")


@dataclass(frozen=True)
class AnswerOptions:
    """
    How one question is answered.

    Args:
        max_new_tokens (`int`): longest answer, in tokens, before the context is looked at.
        stop (`tuple[str]`): an answer ends before the first of these.
        temperature (`float`): 0 is greedy.
        num_beams (`int`): beams of the search.
        others (`tuple`): names and values of `PASSED_ON` for `generate`.
    """

    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    num_beams: int = 1
    others: tuple[tuple[str, Any], ...] = field(default=())

    def for_generate(self) -> dict[str, Any]:
        """Arguments of `generate`, without the length."""
        others = dict(self.others)
        if self.temperature:
            return {"do_sample": True, "temperature": self.temperature, "num_beams": self.num_beams, **others}
        # What sampling alone reads would be warned of.
        others = {name: value for name, value in others.items() if name not in ("top_p", "top_k", "min_p")}
        unset = {"temperature": None, "top_p": None, "top_k": None}
        return {"do_sample": False, "num_beams": self.num_beams, **unset, **others}


def read_options(given: dict[str, Any], max_new_tokens: int | None = None) -> AnswerOptions:
    """
    Reads a task's `generation_kwargs`.

    Args:
        given (`dict`): as the task says. What `generate` is not given of it is named in a warning, once.
        max_new_tokens (`int`, *optional*): where the task does not say.

    Raises:
        InputError: for values that cannot be meant.
    """
    given = dict(given)
    stop = given.pop("until", None) or ()
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(text, str) for text in stop):
        raise InputError(f"`until` must be a string or a list of strings, got {stop!r}")
    longest = given.pop("max_new_tokens", None) or max_new_tokens or DEFAULT_MAX_NEW_TOKENS
    if int(longest) < 1:
        raise InputError(f"`max_new_tokens` must be at least 1, got {longest!r}")
    temperature, sample = given.pop("temperature", None), given.pop("do_sample", None)
    if temperature is None:
        temperature = 1.0 if sample else 0.0
    if float(temperature) < 0:
        raise InputError(f"`temperature` must be 0 (greedy) or more, got {temperature!r}")
    others = {name: given.pop(name) for name in PASSED_ON if name in given}
    beams = int(given.pop("num_beams", None) or 1)
    if unread := sorted(given):
        logger.warning_once(f"Of a task's generation options {', '.join(unread)} mean nothing to FlashSloth.")
    return AnswerOptions(
        max_new_tokens=int(longest),
        stop=tuple(text for text in stop if text),
        temperature=0.0 if sample is False else float(temperature),
        num_beams=beams,
        others=tuple(sorted((name, value) for name, value in others.items() if value is not None)),
    )
