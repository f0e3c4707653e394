"""
FlashSloth: image -> vision tower -> SAP -> projector -> decoder, with EmbQ inside the decoder.

    pixel_values (N, V, 3, H, W)
      -> vision_tower                 patches  (N, V*P, Dv) ---------------------------.
      -> multi_modal_projector (SAP)  tokens   (N, V*T, D)  at the image placeholders  |
         query_tokens                 queries  (Q, D)       at the query placeholders  |
      -> language_model layers 0 .. embq_layer - 1                                     |
           embq                       each query run reads its question, then the <----'
      -> language_model layers embq_layer ..
      -> lm_head

Shape letters are explained in `configuration_flashsloth.py`.
"""

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_flashsloth import FlashSlothConfig
from .decoder_seam import open_seam
from .decoders import build_decoder, embedding_name, finish_logits, layers_of
from .embedded_query import QueryTokens, build_embq, calls_at, put_queries
from .explanation_flashsloth import FlashSlothExplanation, explain
from .generation_flashsloth import FlashSlothGenerationMixin, with_signature
from .multi_modal_projector import FlashSlothMultiModalProjector
from .placeholders import (
    check_gaps,
    check_images,
    check_length,
    check_views,
    ids_of_structure,
    ignore_placeholders,
    ignore_placeholders_first,
    put_visual_tokens,
)
from .pretrained_flashsloth import (
    FlashSlothCausalLMOutputWithPast,
    FlashSlothModelOutputWithPast,
    FlashSlothPreTrainedModel,
)
from .prompt_memory import CACHE, PromptMemory, one_cache, recall, remember
from .question_spans import find_query_spans
from .text_only import is_learning, runs_every_module
from .vision_towers import build_tower, read_patches


class FlashSlothModel(FlashSlothPreTrainedModel):
    """FlashSloth without the language head: everything that is multimodal happens here."""

    def __init__(self, config: FlashSlothConfig):
        super().__init__(config)
        self.vision_tower = build_tower(
            config.vision_config, config.num_vision_layers, config.view_size, config.patch_grid
        )
        self.multi_modal_projector = FlashSlothMultiModalProjector(config)
        # Without queries there is none of these.
        self.query_tokens = None
        if config.num_query_tokens:
            self.query_tokens = QueryTokens(config.num_query_tokens, config.text_config.hidden_size)
        self.embq = build_embq(config)
        self.language_model = build_decoder(config.text_config)
        open_seam(layers_of(self.language_model))
        self.post_init()

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        pooling_window: tuple[int, int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """
        Encodes images.

        Args:
            pixel_values (`torch.Tensor`): `(N, V, 3, H, W)`, any float dtype; cast to the vision tower's.
            pooling_window (`tuple[int, int]`, *optional*): one of `config.windows`; by default the config's own.

        Returns:
            [`~transformers.modeling_outputs.BaseModelOutputWithPooling`] with `last_hidden_state`, the un-pooled
            patches `(N, V*P, Dv)` that EmbQ reads, and `pooler_output`, the visual tokens `(N, V*T, D)`.

        Raises:
            ValueError: if `pixel_values` has another shape.
        """
        check_views(pixel_values, self.config)
        num_views = pixel_values.shape[1]
        pixel_values = pixel_values.flatten(0, 1).to(self.vision_tower.dtype)  # (N*V, 3, H, W)
        patches, outputs = read_patches(self.vision_tower, pixel_values, self.config.patch_grid, **kwargs)
        # The tower may have a dtype of its own; those of the linears behind it may be packed, and tell nothing.
        patches = patches.to(self.language_model.dtype)  # (N*V, P, Dv)
        tokens = self.multi_modal_projector(patches, pooling_window)  # (N*V, T, D)
        return BaseModelOutputWithPooling(
            last_hidden_state=patches.unflatten(0, (-1, num_views)).flatten(1, 2),  # (N, V*P, Dv)
            pooler_output=tokens.unflatten(0, (-1, num_views)).flatten(1, 2),  # (N, V*T, D)
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_token_type_ids: torch.LongTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | FlashSlothModelOutputWithPast:
        """
        Args:
            input_ids (`torch.LongTensor`): `(B, L)`, each image as V*T `image_token_id`, each query run as Q
                `query_token_id`.
            pixel_values (`torch.Tensor`, *optional*): the images of all rows in reading order, `(N, V, 3, H, W)`.
            inputs_embeds (`torch.Tensor`, *optional*): `(B, L, D)` instead of `input_ids`; placeholders are the
                positions that hold their tokens' embeddings.
            cache or past_key_values (`Cache`, *optional*): keys and values of earlier turns; it also remembers their
                images, so that this turn's queries read them (see `prompt_memory.py`).
            mm_token_type_ids (`torch.LongTensor`, *optional*): accepted, as the processor can make them; not needed.
            mm_encoder_outputs (`dict`, *optional*): `{"image": get_image_features(...)}` instead of `pixel_values`.

        Raises:
            ValueError: if images and placeholders do not match, a query run is cut, or the row is longer than the
                decoder's context.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of `input_ids` and `inputs_embeds`.")
        if pixel_values is not None and mm_encoder_outputs:
            raise ValueError("Pass `pixel_values` or `mm_encoder_outputs`, not both: each stands for the same images.")

        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)  # (B, L, D)
        else:
            input_ids = ids_of_structure(inputs_embeds, self.get_input_embeddings(), self.config)
        # With a device map the embeddings may lie elsewhere than the inputs.
        input_ids = input_ids.to(inputs_embeds.device)
        cache = one_cache(cache, past_key_values)
        check_length(input_ids, cache, self.config)
        check_gaps(attention_mask if input_ids.shape[1] > 1 else None, self.config)

        images = mm_encoder_outputs.get("image") if mm_encoder_outputs else None
        # Before images are encoded, which the copy to the host would wait for.
        max_runs, tokens_per_image = check_images(input_ids, pixel_values, images, self.config)
        if pixel_values is not None:
            window = self.config.windows[tokens_per_image // pixel_values.shape[1]]
            images = self.get_image_features(pixel_values, pooling_window=window, return_dict=True)
        image_outputs, image_hidden_states = images, None if images is None else images.pooler_output
        learning = is_learning(self, input_ids, cache)
        unseen = images is None and runs_every_module(self, learning, input_ids, cache)
        if unseen:  # one blank image that no placeholder stands for: it gives every parameter a gradient, of zero
            blank = inputs_embeds.new_zeros((1, 1, 3, *self.config.view_size))
            images = self.get_image_features(blank, return_dict=True)

        features = None
        if images is not None:
            features = images.last_hidden_state.to(inputs_embeds.device)  # (N, V*P, Dv)
            inputs_embeds = put_visual_tokens(images.pooler_output, input_ids, inputs_embeds, self.config)
        if self.query_tokens is not None and (max_runs or learning):
            inputs_embeds = put_queries(self, input_ids, inputs_embeds)

        prompt = PromptMemory(input_ids, features, tokens_per_image)
        if earlier := recall(cache, input_ids, self.config.image_token_id):
            prompt = earlier.and_then(prompt, self.config.image_token_id)
        if prompt.image_features is not None and self.embq is not None and (max_runs or unseen or learning):
            spans = find_query_spans(
                prompt.input_ids,
                self.config,
                max_runs=max(max_runs, 1),
                num_images=prompt.image_features.shape[0],
                tokens_per_image=prompt.tokens_per_image,
                num_cached=prompt.input_ids.shape[1] - input_ids.shape[1],
                attention_mask=attention_mask,
            )
            kwargs["embq"] = calls_at(self.config.embq_layers, self.embq_modules, prompt.image_features, spans)

        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE: cache},
            **kwargs,
        )
        if prompt.image_features is not None and not unseen:
            remember(getattr(outputs, CACHE), prompt)
        return FlashSlothModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            **{CACHE: getattr(outputs, CACHE)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_hidden_states,
            image_outputs=image_outputs,
        )

    @property
    def embq_modules(self) -> list[nn.Module]:
        """The embedded query modules, as many as `config.embq_layers`."""
        if self.embq is None:
            return []
        return self.embq.parts if hasattr(self.embq, "parts") else [self.embq]


class FlashSlothForConditionalGeneration(FlashSlothPreTrainedModel, FlashSlothGenerationMixin):
    """FlashSloth with its language head: answers questions about images."""

    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: FlashSlothConfig):
        super().__init__(config)
        self.model = FlashSlothModel(config)
        text_config = config.text_config
        self.lm_head = nn.Linear(text_config.hidden_size, text_config.vocab_size, bias=config.lm_head_bias)
        self.register_forward_pre_hook(ignore_placeholders_first, with_kwargs=True)
        embeddings = f"model.language_model.{embedding_name(self.model.language_model)}.weight"
        self._tied_weights_keys = {"lm_head.weight": embeddings}
        self._is_stateful = self.model.language_model._is_stateful
        self.post_init()

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> tuple | BaseModelOutputWithPooling:
        """See [`FlashSlothModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def explain(
        self, input_ids: torch.LongTensor, pixel_values: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> FlashSlothExplanation:
        """What the model looks at in a prompt's images; see `explanation_flashsloth.explain` for the arguments."""
        return explain(self.model, input_ids, pixel_values, attention_mask)

    def compile(self, *args, **kwargs) -> None:
        """As torch's; also vision tower and projector on their own, as `generate` encodes images before `forward`."""
        for module in (self.model.vision_tower, self.model.multi_modal_projector):
            module.compile(*args, **kwargs)
        super().compile(*args, **kwargs)

    @with_signature
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        mm_token_type_ids: torch.LongTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | FlashSlothCausalLMOutputWithPast:
        """
        Args:
            labels (`torch.LongTensor`, *optional*): `(B, L)`, -100 where nothing is to be learned. Labels at image and
                query positions are ignored, whatever they say.
            logits_to_keep (`int` or `torch.Tensor`, defaults to 0): compute logits for the last that many positions,
                or for these; 0 means all.

        The other arguments and the errors are those of [`FlashSlothModel.forward`].
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            cache=cache,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = finish_logits(self.lm_head(outputs.last_hidden_state[:, kept]), self.config.text_config)

        loss = None
        if labels is not None:
            ids = input_ids
            if ids is None:
                ids = ids_of_structure(inputs_embeds, self.get_input_embeddings(), self.config)
            labels = ignore_placeholders(labels, ids, self.config.placeholder_ids)
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        carried = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return FlashSlothCausalLMOutputWithPast(loss=loss, logits=logits, **carried)


__all__ = ["FlashSlothForConditionalGeneration", "FlashSlothModel"]
