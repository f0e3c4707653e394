"""What `generate` needs to know of FlashSloth; the one place that overrides private methods of transformers."""

import torch
from transformers import GenerationConfig
from transformers.generation import GenerationMixin


class FlashSlothGenerationMixin(GenerationMixin):
    """
    Overrides two private methods of [`~transformers.generation.GenerationMixin`] (transformers 5.19 to 5.x), as
    neither has a public counterpart.
    """

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
        super()._validate_generated_length(generation_config, input_ids_length, has_default_max_length)
        context = self.config.text_config.max_position_embeddings
        if generation_config.max_length > context:
            raise ValueError(
                f"The prompt of {input_ids_length} positions and the new tokens would take "
                f"{generation_config.max_length} positions, but the decoder's context is {context}. "
                f"Set `max_new_tokens` to at most {max(context - input_ids_length, 0)}."
            )
