"""What prompts begin with in common, computed once: keys and values up to where their questions differ."""

import copy
from itertools import takewhile

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from ..model.configuration_flashsloth import FlashSlothConfig
from ..model.prompt_memory import CACHE
from ..model.question_spans import question_starts
from .features import FeatureStore, with_features
from .prompts import Prompt


class KeptPrefix:
    """
    The last prefix that was computed. It is used again as long as prompts begin with it, and goes on where they begin
    with more than it.

    Args:
        model: answers.
        store ([`FeatureStore`]): of the images' features.
    """

    def __init__(self, model: PreTrainedModel, store: FeatureStore):
        self.model, self.store = model, store
        self.ids, self.digests, self.cache = [], (), None

    def cache_for(self, prompts: list[Prompt], following: Prompt | None) -> tuple[Cache | None, int]:
        """
        A cache for the rows of `prompts`, and how many of their positions it holds; `None` and 0 where they have
        nothing in common with each other and with the prompt that follows.
        """
        group = [*prompts, following] if following else prompts
        length = common_prefix(group, self.model.config) if len(group) > 1 else self._held_of(prompts[0])
        if not length:
            return None, 0
        self._compute(prompts[0], length)
        cache = copy.deepcopy(self.cache)  # decoders with a state, or a sliding window, cannot be cropped
        if len(prompts) > 1:
            cache.batch_repeat_interleave(len(prompts))
        return cache, length

    def _held_of(self, prompt: Prompt) -> int:
        return len(self.ids) if self._begins(prompt, len(prompt.ids) - 1) else 0

    def _begins(self, prompt: Prompt, length: int) -> bool:
        """Whether the first `length` positions of a prompt begin with what is held."""
        held = len(self.ids)
        same_ids = held <= length and prompt.ids[:held] == self.ids
        return bool(held) and same_ids and prompt.digests[: len(self.digests)] == self.digests

    @torch.no_grad()
    def _compute(self, prompt: Prompt, length: int) -> None:
        if not self._begins(prompt, length):
            self.ids, self.digests, self.cache = [], (), None
        past, seen = len(self.ids), len(self.digests)
        if past == length:
            return
        digests = prompt.digests[: num_images(prompt, length, self.model.config)]
        ids = torch.tensor([prompt.ids[past:length]], device=self.model.device)
        inputs = {"input_ids": ids}
        if len(digests) > seen:
            inputs["pixel_values"] = prompt.pixel_values[seen : len(digests)].to(self.model.device)
        inputs = with_features(self.model, inputs, self.store, digests[seen:])
        inputs["attention_mask"] = torch.ones((1, length), dtype=torch.long, device=self.model.device)
        outputs = self.model(**inputs, **{CACHE: self.cache}, use_cache=True, logits_to_keep=1, return_dict=True)
        self.ids, self.digests, self.cache = prompt.ids[:length], digests, outputs[CACHE]


def common_prefix(prompts: list[Prompt], config: FlashSlothConfig) -> int:
    """
    How many first positions prompts have in common, cut where a question begins, as that enters the model together
    with its queries. Images are compared by their pixels. 0 where nothing can be shared.
    """
    rows = [prompt.ids for prompt in prompts]
    length = sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, zip(*rows, strict=False)))
    length = min(length, *(len(row) - 1 for row in rows))
    ids = torch.tensor([rows[0]])
    is_query = ids == config.query_token_id
    starts = question_starts(ids == config.image_token_id, ids, config.user_prefix_ids or [])  # (1, L)
    starts[:, 1:] |= is_query[:, :-1] & ~is_query[:, 1:]
    for start in reversed(starts[0, : length + 1].nonzero()[:, 0].tolist()):
        images = {prompt.digests[: num_images(prompt, start, config)] for prompt in prompts}
        if start and len(images) == 1:
            return start
    return 0


def num_images(prompt: Prompt, length: int, config: FlashSlothConfig) -> int:
    """How many images stand in the first `length` positions of a prompt."""
    placeholders = prompt.ids.count(config.image_token_id)
    return prompt.ids[:length].count(config.image_token_id) * len(prompt.digests) // max(placeholders, 1)
