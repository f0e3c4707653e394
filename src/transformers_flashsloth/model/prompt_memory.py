"""
What a key-value cache remembers of a prompt, so that a conversation goes on without encoding its images again.

EmbQ runs on the prompt only, and a later turn's queries read the un-pooled images of the earlier ones. Those features
are no keys or values, yet belong to the same conversation; so they live on the cache object, and are copied, kept and
dropped with it.
"""

import inspect
from typing import NamedTuple

import torch
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin

# What upstream calls a key-value cache, as an argument of models and of generation and as a field of outputs: `cache`
# since transformers 5.24, `past_key_values` before. Ours take both; this is the name to pass on.
CACHE = (
    "cache"
    if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    else ("past_key_values")
)
# Stands for tokens that were decoded one by one, whose ids nobody kept.
UNKNOWN = -1


def one_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """
    The cache that was passed under either of its names.

    Raises:
        ValueError: if two were passed.
    """
    if cache is not None and past_key_values is not None and cache is not past_key_values:
        raise ValueError("`cache` and `past_key_values` are two names of one argument: pass one of them.")
    return past_key_values if cache is None else cache


class PromptMemory(NamedTuple):
    """
    Attributes:
        input_ids (`torch.LongTensor`): ids of the cached positions, `UNKNOWN` for decoded tokens, `(B, L)`.
        image_features (`torch.Tensor`, *optional*): un-pooled patches of the images in reading order, `(N, V*P, Dv)`.
        tokens_per_image (`int`): placeholders an image takes.
    """

    input_ids: torch.Tensor
    image_features: torch.Tensor | None = None
    tokens_per_image: int = 1

    def up_to(self, length: int, image_token_id: int) -> "PromptMemory":
        """The memory of the first `length` positions: cut where the cache was cropped, longer where it was decoded."""
        grown = max(length - self.input_ids.shape[1], 0)
        ids = torch.nn.functional.pad(self.input_ids[:, :length], (0, grown), value=UNKNOWN)
        features = self.image_features
        if features is not None and grown == 0:
            rows = (self.input_ids == image_token_id).nonzero()[:: self.tokens_per_image]
            features = features[rows[:, 1] < length]
        return self._replace(input_ids=ids, image_features=features)

    def repeated(self, num_rows: int, image_token_id: int) -> "PromptMemory":
        """
        The memory of a cache whose rows were repeated (`batch_repeat_interleave`) up to `num_rows`.

        Raises:
            ValueError: if the rows are no multiple of the remembered ones.
        """
        if num_rows == self.input_ids.shape[0]:
            return self
        times, rest = divmod(num_rows, self.input_ids.shape[0])
        if rest or not times:
            raise ValueError(
                f"The cache remembers a prompt of {self.input_ids.shape[0]} rows, but {num_rows} rows go on. Pass as "
                "many rows as are cached, or repeat those of the cache with `batch_repeat_interleave`."
            )
        ids, features = self.input_ids.repeat_interleave(times, dim=0), self.image_features
        if features is not None:
            rows = (self.input_ids == image_token_id).nonzero()[:: self.tokens_per_image, 0]  # (N,)
            rows = rows * times + torch.arange(times, device=rows.device)[:, None]  # (times, N)
            features = features[rows.flatten().argsort(stable=True) % features.shape[0]]
        return self._replace(input_ids=ids, image_features=features)

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
    cropped off the cache since is forgotten.

    Raises:
        ValueError: if these cannot be the rows of the cache.
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
    return memory.repeated(input_ids.shape[0], image_token_id).up_to(length, image_token_id)


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
        cache.prompt_memory = memory
