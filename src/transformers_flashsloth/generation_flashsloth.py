"""What `generate` needs to know of FlashSloth; the one place that overrides private methods of transformers."""

import torch
from transformers import GenerationConfig, LogitsProcessorList, SuppressTokensLogitsProcessor
from transformers.generation import GenerationMixin


class SuppressPlaceholders(SuppressTokensLogitsProcessor):
    """
    Keeps a model from answering with placeholders, which would stand for images and queries that are not there. A class
    of its own, as upstream lets a processor of a class replace what options such as `suppress_tokens` ask for.
    """


class FlashSlothGenerationMixin(GenerationMixin):
    """
    Overrides `generate`, and two private methods of [`~transformers.generation.GenerationMixin`] (transformers 5.19 to
    5.x) that have no public counterpart.
    """

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        *args,
        **kwargs,
    ):
        """
        As upstream's. Image and query placeholders are never generated. With `past_key_values`, the pixels of images
        that are cached already may be passed along with the whole conversation; they are not encoded again.
        """
        input_ids = kwargs.get("input_ids") if inputs is None else inputs
        cache, pixel_values = kwargs.get("past_key_values"), kwargs.get("pixel_values")
        if cache is not None and pixel_values is not None and input_ids is not None:
            new_images = self._uncached(pixel_values, input_ids, int(cache.get_seq_length()))
            kwargs.pop("pixel_values")
            kwargs |= {"pixel_values": new_images} if len(new_images) else {}
        suppress = SuppressPlaceholders([self.config.image_token_id, self.config.query_token_id], device=self.device)
        processors = LogitsProcessorList([*(logits_processor or []), suppress])
        return super().generate(inputs, generation_config, processors, *args, **kwargs)

    def _uncached(self, pixel_values: torch.Tensor, input_ids: torch.Tensor, length: int) -> torch.Tensor:
        """Those images `(N, V, 3, H, W)` whose placeholders stand behind the first `length` positions."""
        tokens_per_image = pixel_values.shape[1] * self.config.tokens_per_view
        positions = (input_ids == self.config.image_token_id).nonzero()[::tokens_per_image, 1]  # (N,)
        if len(positions) != len(pixel_values):
            return pixel_values  # refused with its numbers by the model
        return pixel_values[positions.to(pixel_values.device) >= length]

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

    def _validate_generated_length(
        self, generation_config: GenerationConfig, input_ids_length: int, has_default_max_length: bool
    ) -> None:
        # Said before the first token rather than when the context is full.
        if getattr(generation_config, "prefill_chunk_size", None) is not None:
            raise ValueError(
                "FlashSloth cannot prefill in chunks, as its queries must enter together with their question: "
                "generate without `prefill_chunk_size`."
            )
        super()._validate_generated_length(generation_config, input_ids_length, has_default_max_length)
        context = self.config.text_config.max_position_embeddings
        if generation_config.max_length > context:
            raise ValueError(
                f"The prompt of {input_ids_length} positions and the new tokens would take "
                f"{generation_config.max_length} positions, but the decoder's context is {context}. "
                f"Set `max_new_tokens` to at most {max(context - input_ids_length, 0)}."
            )
