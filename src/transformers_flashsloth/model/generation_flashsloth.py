"""What `generate` needs to know of FlashSloth, and which private methods of transformers' generation it overrides."""

import inspect
from collections.abc import Callable
from functools import partial
from weakref import WeakMethod

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedConfig,
    StaticCache,
    SuppressTokensLogitsProcessor,
)
from transformers.cache_utils import Cache
from transformers.generation import CandidateGenerator, GenerationMixin
from transformers.generation.utils import GenerateOutput

from .assistant import Assistant
from .decoders import masks_for_generate
from .placeholders import check_gaps, check_images
from .prompt_memory import CACHE, follow_rows, one_cache

# Inputs of `generate` with a position in their second dimension.
POSITIONED_INPUTS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "mm_token_type_ids")


def with_signature(function: Callable) -> Callable:
    """Marks what upstream's generation inspects with every token, so that the inspection takes no time to speak of."""
    function.__signature__ = inspect.signature(function)
    return function


class SuppressPlaceholders(SuppressTokensLogitsProcessor):
    """
    Keeps a model from answering with placeholders, which would stand for images and queries that are not there. A class
    of its own, as upstream lets a processor of a class replace what options such as `suppress_tokens` ask for.
    """

    @with_signature
    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores `(B, vocabulary)` in one operation, where upstream's looks at every id."""
        if self.suppress_tokens.device != scores.device:
            self.suppress_tokens = self.suppress_tokens.to(scores.device)
        return scores.index_fill(-1, self.suppress_tokens, float("-inf"))


class FlashSlothGenerationMixin(GenerationMixin):
    """
    Overrides public methods of [`~transformers.generation.GenerationMixin`] (transformers 5.19 to 5.x), and three
    private ones that have no public counterpart.
    """

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        *args,
        **kwargs,
    ) -> GenerateOutput | torch.LongTensor:
        """
        As upstream's, and beyond it:

        - Image and query placeholders are never generated, whatever the logits or other processors say.
        - Padding behind a row's tokens is moved in front of them, also in the returned sequences.
        - With a kept cache (`cache` or `past_key_values`), the pixels of images that are cached already may be passed
          along with the whole conversation; they are not encoded again.
        - `assistant_model` may be a FlashSloth with the same placeholders, which then sees the images too (pass
          `pixel_values`), or any text-only model that upstream takes.
        """
        if inputs is not None and "input_ids" not in kwargs:
            inputs, kwargs["input_ids"] = None, inputs
        cache = one_cache(kwargs.pop("cache", None), kwargs.pop("past_key_values", None))
        kwargs |= {} if cache is None else {CACHE: cache}
        past = 0 if cache is None else int(cache.get_seq_length())
        kwargs = self._pad_left(kwargs, past)
        check_gaps(kwargs.get("attention_mask"), self.config)  # what is compiled does not look
        if kwargs.get("assistant_model") is not None:
            names = ("pixel_values", "mm_encoder_outputs")
            images = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
            kwargs["assistant_model"] = Assistant(kwargs["assistant_model"], self.config, images)
        if past and kwargs.get("pixel_values") is not None and kwargs.get("input_ids") is not None:
            new_images = self._uncached(kwargs.pop("pixel_values"), kwargs["input_ids"], cache)
            kwargs |= {"pixel_values": new_images} if len(new_images) else {}
        kwargs = self._encode_in_window(kwargs, past)
        device = "cpu" if self.device.type == "meta" else self.device  # offloaded weights lie on no device
        suppress = SuppressPlaceholders(list(self.config.placeholder_ids), device=device)
        processors = LogitsProcessorList([*(logits_processor or []), suppress])
        return super().generate(inputs, generation_config, processors, *args, **kwargs)

    def init_continuous_batching(self, *args, **kwargs):
        """Always raises ValueError: it prefills in chunks, and takes no images."""
        raise ValueError(
            "FlashSloth cannot batch continuously, as its queries must enter together with their question and their "
            "images: use `generate`, without `cache_implementation='paged'`."
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,  # upstream looks for this name
        is_first_iteration: bool | None = False,
        cache: Cache | None = None,
        **kwargs,
    ) -> dict:
        """As upstream's; also for an assistant's prefill, and for assisted decoding over a kept cache."""
        cache = one_cache(cache, past_key_values)
        position_ids = kwargs.get("position_ids")
        if cache is not None and next_sequence_length != 1:
            past = int(cache.get_seq_length())
            # Upstream calls an assistant's prefill no first iteration, and would withhold the images.
            is_first_iteration = is_first_iteration or past == 0
            # Assisted decoding passes what is cached once more.
            if next_sequence_length is None and past and position_ids is not None:
                is_whole = position_ids.shape[-1] == input_ids.shape[1] > past
                next_sequence_length = input_ids.shape[1] - past if is_whole else None
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **{CACHE: cache},
            **kwargs,
        )
        # PEFT's prompt learning stands in for this method, and adds its prompt where it sees no cache that holds
        # something: under the older name, or the newer once it knows that.
        if CACHE == "cache" and cache is not None and "prepare_inputs_for_generation" in vars(self):
            inputs["past_key_values"] = cache
            if not int(cache.get_seq_length()):
                del inputs["cache"]
        return inputs

    @staticmethod
    def create_masks_for_generate(config: PreTrainedConfig, **inputs) -> torch.Tensor | dict[str, torch.Tensor] | None:
        """As the decoder's own; upstream asks for masks this way where a cache is static."""
        return masks_for_generate(config.get_text_config(), **inputs)

    def _pad_left(self, inputs: dict, past: int) -> dict:
        """Moves padding behind the tokens of a row's uncached positions in front of them; upstream cannot read it."""
        input_ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        pad, eos = self.generation_config.pad_token_id, self.generation_config.eos_token_id
        if mask is None and input_ids is not None and not past and pad is not None:
            # Upstream reads the mask off the ids only if padding cannot be an answer's end.
            mask = input_ids != pad if pad not in (eos if isinstance(eos, list) else [eos]) else None
        if mask is None or mask.ndim != 2 or mask.shape[1] <= past or mask[:, -1].all():
            return inputs
        inputs = inputs | {"attention_mask": mask.long()}
        order = mask[:, past:].bool().long().argsort(dim=1, stable=True)  # (B, new positions)
        for name in POSITIONED_INPUTS:
            values = inputs.get(name)
            if values is not None and values.shape[1] >= order.shape[1]:
                cached, new = values.split([values.shape[1] - order.shape[1], order.shape[1]], dim=1)
                moved = new.take_along_dim(order if new.ndim == 2 else order[..., None], dim=1)
                inputs[name] = torch.cat([cached, moved], dim=1)
        return inputs

    def _uncached(self, pixel_values: torch.Tensor, input_ids: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Those images `(N, V, 3, H, W)` whose placeholders stand behind the cached positions."""
        memory = getattr(cache, "prompt_memory", None)
        if memory is None or memory.image_features is None:
            return pixel_values
        positions = (input_ids == self.config.image_token_id).nonzero()[:: memory.tokens_per_image, 1]  # (N,)
        if len(positions) != len(pixel_values):
            return pixel_values  # refused with its numbers by the model
        return pixel_values[positions.to(pixel_values.device) >= int(cache.get_seq_length())]

    @torch.no_grad()
    def _encode_in_window(self, inputs: dict, past: int) -> dict:
        """Encodes images whose placeholders ask for another window than the config's; upstream encodes the others."""
        pixel_values, input_ids = inputs.get("pixel_values"), inputs.get("input_ids")
        if pixel_values is None or input_ids is None:
            return inputs
        new_ids = input_ids[:, past:] if input_ids.shape[1] > past else input_ids
        _, tokens_per_image = check_images(new_ids, pixel_values, None, self.config)
        window = self.config.windows[tokens_per_image // pixel_values.shape[1]]
        if window == self.config.window:
            return inputs
        images = self.get_image_features(inputs.pop("pixel_values"), pooling_window=window, return_dict=True)
        return inputs | {"mm_encoder_outputs": {"image": images}}

    def _expand_multimodal_outputs(
        self,
        input_ids: torch.LongTensor,
        mm_encoder_output: dict,
        expand_size: int = 1,
        inputs_embeds: torch.Tensor | None = None,
    ) -> dict:
        # Upstream copies the visual tokens for beams and several sequences; EmbQ's un-pooled patches must go along.
        images = mm_encoder_output.get("image")
        if images is None:
            return mm_encoder_output
        order = torch.arange(images.pooler_output.shape[0], device=images.pooler_output.device)
        order = order[:, None, None].expand(-1, images.pooler_output.shape[1], 1)
        patches, images.pooler_output, tokens = images.last_hidden_state, order, images.pooler_output
        super()._expand_multimodal_outputs(input_ids, mm_encoder_output, expand_size, inputs_embeds)
        order = images.pooler_output[:, 0, 0]
        images.last_hidden_state, images.pooler_output = patches[order], tokens[order]
        return mm_encoder_output

    def _get_candidate_generator(self, *args, **kwargs) -> CandidateGenerator:
        generator = super()._get_candidate_generator(*args, **kwargs)
        # Held weakly, or its caches would outlive it until the garbage collector comes round.
        get_candidates = WeakMethod(generator.get_candidates)
        generator.get_candidates = partial(_without_placeholders, get_candidates, self.config.placeholder_ids)
        return generator

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict,
        generation_mode,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        # Said before the first token rather than when the context or the cache is full.
        if getattr(generation_config, "prefill_chunk_size", None) is not None:
            raise ValueError(
                "FlashSloth cannot prefill in chunks, as its queries must enter together with their question: "
                "generate without `prefill_chunk_size`."
            )
        prompt = model_kwargs["position_ids"].shape[-1]  # cached positions included, even if their ids are not passed
        new_tokens = generation_config.max_new_tokens
        length = max_cache_length + 1 if new_tokens is None else prompt + new_tokens
        context = self.config.text_config.max_position_embeddings
        cache = model_kwargs.get(CACHE)
        room = context if not isinstance(cache, StaticCache) else min(context, cache.get_max_length() + 1)
        if length > room:
            holder = "the decoder's context" if room == context else "what the static cache can hold"
            raise ValueError(
                f"The prompt of {prompt} positions and the new tokens would take {length} positions, but {holder} is "
                f"{room}. Set `max_new_tokens` to at most {max(room - prompt, 0)}."
            )
        super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )
        if model_kwargs.get(CACHE) is not None:
            follow_rows(model_kwargs[CACHE])  # here, as a compiled model could not


def _without_placeholders(
    get_candidates: WeakMethod, placeholders: tuple[int, ...], input_ids: torch.LongTensor, **kwargs
) -> tuple[torch.LongTensor, torch.Tensor | None]:
    """
    What the method proposes behind `input_ids` `(1, L)`, up to the first placeholder: that is never accepted, and
    the model would miss its image.
    """
    candidates, logits = get_candidates()(input_ids, **kwargs)
    proposed = candidates[0, input_ids.shape[1] :].tolist()
    kept = next((i for i, token_id in enumerate(proposed) if token_id in placeholders), len(proposed))
    return candidates[:, : input_ids.shape[1] + kept], None if logits is None or kept == 0 else logits[:, :kept]
