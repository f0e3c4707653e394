"""
What a key-value cache remembers of a prompt, so that a conversation goes on without encoding its images again.

EmbQ runs on the prompt only, and a later turn's queries read the un-pooled images of the earlier ones. Those features
are no keys or values, yet belong to the same conversation; so they live on the cache object, and are copied, kept,
dropped, and put in another order with it.
"""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin

from .decoder_seam import grafted

# What upstream calls a key-value cache, as an argument of models and of generation and as a field of outputs: `cache`
# since transformers 5.24, `past_key_values` before. Ours take both; this is the name to pass on.
_PARAMETERS = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE = "cache" if "cache" in _PARAMETERS else "past_key_values"
# Stands for tokens that were decoded one by one, whose ids nobody kept.
UNKNOWN = -1


def one_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """The cache that was passed under either of its names. Raises ValueError if two were passed."""
    if cache is not None and past_key_values is not None and cache is not past_key_values:
        raise ValueError("`cache` and `past_key_values` are two names of one argument: pass one of them.")
    return past_key_values if cache is None else cache


class PromptMemory(NamedTuple):
    """
    Attributes:
        input_ids (`torch.LongTensor`): ids of the cached positions, `UNKNOWN` for decoded tokens, `(B, L)`.
        image_features (`torch.Tensor`, *optional*): un-pooled patches of the images in reading order, `(N, V*P, Dv)`.
        tokens_per_image (`int`): placeholders an image takes.
        rows (`torch.LongTensor`, *optional*): which of the B rows each row of the cache is, where these were chosen,
            repeated or put in another order since; as many as the cache has.
    """

    input_ids: torch.Tensor
    image_features: torch.Tensor | None = None
    tokens_per_image: int = 1
    rows: torch.Tensor | None = None

    def up_to(self, length: int, image_token_id: int) -> "PromptMemory":
        """The memory of the first `length` positions: cut where the cache was cropped, longer where it was decoded."""
        grown = max(length - self.input_ids.shape[1], 0)
        ids = torch.nn.functional.pad(self.input_ids[:, :length], (0, grown), value=UNKNOWN)
        features = self.image_features
        if features is not None and grown == 0:
            rows = (self.input_ids == image_token_id).nonzero()[:: self.tokens_per_image]
            features = features[rows[:, 1] < length]
        return self._replace(input_ids=ids, image_features=features)

    def choosing(self, choose: Callable[[torch.Tensor], torch.Tensor]) -> "PromptMemory":
        """The memory of a cache whose rows `choose` takes from its rows so far; worked out when it is needed."""
        rows = self.rows
        if rows is None:
            rows = torch.arange(self.input_ids.shape[0], device=self.input_ids.device)
        return self._replace(rows=choose(rows))

    def settled(self, num_rows: int, image_token_id: int) -> "PromptMemory":
        """
        The memory with ids and images of the rows that the cache has now. Raises ValueError if these are not
        `num_rows`, and no repetition of them.
        """
        count = self.input_ids.shape[0] if self.rows is None else len(self.rows)
        times, rest = divmod(num_rows, count)
        if rest or not times:
            raise ValueError(
                f"The cache remembers a prompt of {count} rows, but {num_rows} rows go on. Pass as many rows as are "
                "cached, or repeat those of the cache with `batch_repeat_interleave`."
            )
        if times > 1:  # of a cache that no method said to be repeated
            return self.choosing(lambda rows: rows.repeat_interleave(times)).settled(num_rows, image_token_id)
        if self.rows is None:
            return self
        features = self.image_features
        if features is not None:
            row_of_image = (self.input_ids == image_token_id).nonzero()[:: self.tokens_per_image, 0]  # (N,)
            features = features[(self.rows[:, None] == row_of_image).nonzero()[:, 1]]
        return PromptMemory(self.input_ids[self.rows], features, self.tokens_per_image)

    def and_then(self, new: "PromptMemory", image_token_id: int) -> "PromptMemory":
        """This prompt followed by new positions of the same rows and their images."""
        ids = torch.cat([self.input_ids, new.input_ids], dim=1)
        if new.image_features is None:
            return self._replace(input_ids=ids)
        if self.image_features is None or not len(self.image_features):
            return new._replace(input_ids=ids)
        if new.tokens_per_image != self.tokens_per_image:
            raise ValueError(
                f"An image of this turn takes {new.tokens_per_image} tokens, those of the earlier turns "
                f"{self.tokens_per_image}. Use the same `image_hd` and `pooling_window` throughout a conversation."
            )
        # Both parts are in reading order; together, a row's earlier images come before its later ones.
        rows = [
            (part.input_ids == image_token_id).nonzero()[:: self.tokens_per_image, 0]  # (N,)
            for part in (self, new)
        ]
        order = torch.cat(rows).argsort(stable=True)
        features = torch.cat([self.image_features, new.image_features])[order]
        return PromptMemory(ids, features, self.tokens_per_image)


def recall(cache: Cache | None, input_ids: torch.Tensor, image_token_id: int) -> PromptMemory | None:
    """
    What `cache` remembers of the rows that `input_ids` `(B, L)` go on; `None` if no prompt came before them. What was
    cropped off the cache since is forgotten. Raises ValueError if these cannot be the rows of the cache.
    """
    if cache is None:
        return None
    if torch.compiler.is_compiling():
        # Without a memory there are no earlier images, and nothing here depends on the cache.
        remembers = input_ids.shape[1] > 1 and getattr(cache, "prompt_memory", None) is not None
        return recall_untraced(cache, input_ids, image_token_id) if remembers else None
    memory, length = getattr(cache, "prompt_memory", None), cache.get_seq_length()
    if input_ids.shape[1] == 1 and not isinstance(length, int):
        return None  # a decoding step; static caches count on the device, and are never cropped
    length = int(length)
    if memory is not None and length < memory.input_ids.shape[1]:
        memory = cache.prompt_memory = memory.up_to(length, image_token_id) if length else None
    # A decoding step has no queries.
    if length == 0 or input_ids.shape[1] == 1:
        return None
    memory = memory or PromptMemory(input_ids[:, :0])
    return memory.settled(input_ids.shape[0], image_token_id).up_to(length, image_token_id)


@torch.compiler.disable
def recall_untraced(cache: Cache, input_ids: torch.Tensor, image_token_id: int) -> PromptMemory | None:
    """
    `recall` outside of a compiled graph: a later turn's shapes depend on what is cached, so its prefill breaks the
    graph here, and cannot be compiled with `fullgraph=True`.
    """
    return recall(cache, input_ids, image_token_id)


def remember(cache: Cache | None, memory: PromptMemory) -> None:
    """Puts `memory` on `cache`, if there is one."""
    if cache is not None:
        follow_rows(cache)
        cache.prompt_memory = memory


def follow_rows(cache: Cache) -> None:
    """
    Has the memory of `cache` follow its rows wherever its own methods choose, repeat or order them. The class of the
    cache gets a subclass, as the layers of the decoder do; while a graph is traced, that has to be done before.
    """
    if not isinstance(cache, FollowsRows) and not torch.compiler.is_compiling():
        cache.__class__ = grafted(FollowsRows, type(cache))


class FollowsRows:
    """What the class of a cache gets: its methods on rows, which the memory follows."""

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """As upstream's."""
        super().batch_select_indices(indices)
        self._choose(lambda rows: rows[indices.to(rows.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """As upstream's."""
        super().batch_repeat_interleave(repeats)
        self._choose(lambda rows: rows.repeat_interleave(repeats))

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """As upstream's."""
        super().reorder_cache(beam_idx)
        self._choose(lambda rows: rows[beam_idx.to(rows.device)])

    def _choose(self, choose: Callable[[torch.Tensor], torch.Tensor]) -> None:
        memory = getattr(self, "prompt_memory", None)
        if memory is not None:
            self.prompt_memory = memory.choosing(choose)
