"""Rows of `generate`: padded on the left, or behind a prefix that they have in common."""

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel, StoppingCriteriaList
from transformers.cache_utils import Cache

from ..model.processing_flashsloth import FlashSlothProcessor
from ..model.prompt_memory import CACHE
from .features import FeatureStore, with_features
from .kept_prefix import KeptPrefix, num_images
from .prompts import Prompt
from .stopping import EndsAnswer, cut_before

DEFAULT_MAX_NEW_TOKENS = 256


class Rows:
    """
    Answers prompts with a model.

    Args:
        model: answers.
        processor ([`FlashSlothProcessor`]): of the model.
        store ([`FeatureStore`]): of the images' features.
        options (`dict`): of `generate`.
        until (`Sequence[str]`): texts that answers end before.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: FlashSlothProcessor,
        store: FeatureStore,
        options: dict,
        until: Sequence[str] = (),
    ):
        self.until = until
        self.model, self.processor, self.store = model, processor, store
        self.prefix = KeptPrefix(model, store)
        config = options.get("generation_config") or model.generation_config
        self.longest = options.get("max_new_tokens") or config.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        self.context = model.config.get_text_config().max_position_embeddings
        self.padding = next(
            (found for found in (options.get("pad_token_id"), config.pad_token_id, processor.tokenizer.pad_token_id)
             if found is not None), 0,
        )  # fmt: skip
        self.options = dict(options)
        if options.get("stop_strings") or config.stop_strings:
            self.options.setdefault("tokenizer", processor.tokenizer)

    def checked(self, prompt: Prompt) -> Prompt:
        """
        The prompt.

        Raises:
            ValueError: if it fills the context.
        """
        if len(prompt.ids) >= self.context:
            raise ValueError(f"it takes {len(prompt.ids)} tokens, but the model reads at most {self.context - 1}")
        return prompt

    def answers(
        self, prompts: list[Prompt], shares_prefix: bool, following: Prompt | None
    ) -> Iterator[tuple[Prompt, str]]:
        """
        Each prompt with its answer, in any order. Rows are answered together unless their images take different
        numbers of tokens, or the longest prompt leaves the answers less room than they may take.
        """
        crowded = max(len(prompt.ids) for prompt in prompts) + self.longest > self.context
        kinds = [None if prompt.pixel_values is None else self._kind(prompt) for prompt in prompts]
        first = next((kind for kind in kinds if kind is not None), None)
        alike: dict[object, list[Prompt]] = {}
        for prompt, kind in zip(prompts, kinds, strict=True):
            alike.setdefault(prompt.index if crowded else kind or first, []).append(prompt)
        for group in alike.values():
            cache, past = self.prefix.cache_for(group, following) if shares_prefix else (None, 0)
            yield from zip(group, self._generate(group, cache, past), strict=True)

    def _kind(self, prompt: Prompt) -> tuple:
        """What images must have in common to be in one batch: their shape and the tokens that they take."""
        placeholders = prompt.ids.count(self.model.config.image_token_id)
        return (*prompt.pixel_values.shape[1:], placeholders // len(prompt.pixel_values))

    def _generate(self, prompts: list[Prompt], cache: Cache | None, past: int) -> list[str]:
        """Answers prompts whose first `past` positions are cached."""
        device = self.model.device
        new = [prompt.ids[past:] for prompt in prompts]
        length = max(map(len, new))
        padding = [length - len(row) for row in new]
        rows = [[self.padding] * count + row for count, row in zip(padding, new, strict=True)]
        mask = [[1] * past + [0] * count + [1] * (length - count) for count in padding]
        ids = torch.tensor(rows, device=device)
        inputs = {"input_ids": ids, "attention_mask": torch.tensor(mask, device=device)}
        if past:
            prefix = torch.tensor([prompts[0].ids[:past]], device=device).expand(len(prompts), -1)
            inputs |= {"input_ids": torch.cat([prefix, ids], dim=1), CACHE: cache}
        inputs |= self._images(prompts, ids, past)
        longest = min(self.longest, self.context - past - length)
        if self.until:
            ends = EndsAnswer(self.processor.tokenizer, self.until, past + length)
            inputs["stopping_criteria"] = StoppingCriteriaList([*self.options.get("stopping_criteria", []), ends])
        output = self.model.generate(**self.options | inputs | {"max_new_tokens": longest})
        output = getattr(output, "sequences", output)[:, past + length :]
        texts = self.processor.batch_decode(output, skip_special_tokens=True)
        return [cut_before(text, self.until).strip() for text in texts]

    def _images(self, prompts: list[Prompt], ids: torch.Tensor, past: int) -> dict:
        """The images of the positions `(B, L)` behind the cached ones, as `generate` takes them."""
        pixels, digests = [], []
        for prompt in prompts:
            seen = num_images(prompt, past, self.model.config)
            if len(prompt.digests) > seen:
                pixels.append(prompt.pixel_values[seen:])
                digests += prompt.digests[seen:]
        if not pixels:
            return {}
        images = {"pixel_values": torch.cat(pixels).to(self.model.device)}
        # An assistant encodes them with its own tower, an exported model inside of its `generate`.
        if self.options.get("assistant_model") is not None or not hasattr(self.model, "get_image_features"):
            return images
        inputs = with_features(self.model, {"input_ids": ids, **images}, self.store, digests)
        return {"mm_encoder_outputs": inputs["mm_encoder_outputs"]}
