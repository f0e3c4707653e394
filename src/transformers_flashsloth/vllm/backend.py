"""FlashSloth on vLLM's Transformers backend: the package's own model, with vLLM's attention, linears and scheduling."""

import torch
from vllm.exceptions import VLLMValidationError
from vllm.model_executor.models.transformers import (
    MultiModalDummyInputsBuilder,
    MultiModalProcessingInfo,
    MultiModalProcessor,
    TransformersMultiModalForCausalLM,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.platforms import current_platform

from ..model.decoders import finish_logits
from ..model.embedded_query import put_queries
from ..model.placeholders import put_visual_tokens
from .adapters import keep_rows_without_adapters
from .config import NAMESPACE, OP, WINDOW_REFUSED
from .packing import pack, unpack
from .quantising import spare_all_but_the_decoder
from .step import Step


class FlashSlothInfo(MultiModalProcessingInfo):
    """Images only: frames of videos would be counted as images by nobody."""

    _is_video_model = False


class FlashSlothMultiModalProcessor(MultiModalProcessor):
    """As vLLM's, but images stay apart: one of a single view and one of five may meet in a step."""

    def _get_mm_fields_config(self, hf_inputs, hf_processor_mm_kwargs):
        if hf_processor_mm_kwargs.get("pooling_window") is not None:
            raise VLLMValidationError(
                WINDOW_REFUSED,
                parameter="mm_processor_kwargs",
                value=hf_processor_mm_kwargs["pooling_window"],
            )
        return super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)

    def _get_field_config(self, modality, *args, **kwargs):
        return MultiModalFieldConfig.batched(modality)


@MULTIMODAL_REGISTRY.register_processor(
    FlashSlothMultiModalProcessor, info=FlashSlothInfo, dummy_inputs=MultiModalDummyInputsBuilder
)
class FlashSlothForVllm(TransformersMultiModalForCausalLM):
    """What vLLM makes of a checkpoint; see [`FlashSlothForConditionalGeneration`]."""

    def __init__(self, *, vllm_config, prefix: str = ""):
        spare_all_but_the_decoder(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if vllm_config.lora_config is not None and current_platform.is_cpu():
            keep_rows_without_adapters()
        # Scales and caps of the logits are the decoder's own, of which vLLM knows some.
        self.logits_processor.scale, self.logits_processor.soft_cap = 1.0, None
        name = f"{prefix}flashsloth_step"
        modules = dict(zip(self.config.embq_layers, self.model.embq_modules, strict=True))
        # No submodule: the modules belong to the model already.
        object.__setattr__(self, "step", Step(self.config, modules, name, vllm_config))
        self.calls = {layer: _call(name, layer) for layer in self.config.embq_layers}

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """What stands for an image in a prompt's text."""
        return "<image>" if modality == "image" else None

    def embed_multimodal(self, pixel_values=None, **kwargs) -> list[torch.Tensor]:
        """Encodes images, `(V, 3, H, W)` each; packed, `(V*T, D + w*w*Dv)` each."""
        packed = []
        for views in [] if pixel_values is None else pixel_values:
            images = self.model.get_image_features(views.unflatten(0, (1, -1)), return_dict=True)
            packed += pack(images.pooler_output, images.last_hidden_state, self.config)
        return packed

    def embed_input_ids(self, input_ids, multimodal_embeddings=None, **kwargs) -> torch.Tensor:
        """Embeds the tokens of a step, `(tokens,)`, with queries and visual tokens in their places: `(tokens, D)`."""
        images = [] if multimodal_embeddings is None else list(multimodal_embeddings)
        self.step.take(input_ids, images)
        embeds, ids = self.model.get_input_embeddings()(input_ids)[None], input_ids[None]
        if self.model.query_tokens is not None:
            embeds = put_queries(self.model, ids, embeds)
        if images:
            tokens = torch.cat([unpack(image[None], self.config)[0][0] for image in images])
            embeds = put_visual_tokens(tokens, ids, embeds, self.config)
        return embeds[0]

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None, **kwargs) -> torch.Tensor:
        """Runs the decoder on a step: `(tokens, D)`."""
        self.step.place(positions)
        try:
            if inputs_embeds is None:
                inputs_embeds = self.embed_input_ids(input_ids)
            outputs = self.model.language_model(
                inputs_embeds=inputs_embeds[None],
                position_ids=positions[None],
                use_cache=False,
                return_dict=False,
                embq=self.calls,
            )
            return outputs[0][0]
        finally:
            self.step.clear()

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits as the decoder's own head finishes them; placeholders are never generated."""
        logits = super().compute_logits(hidden_states)
        if logits is None:
            return None
        logits = finish_logits(logits, self.config.text_config)
        return logits.index_fill(-1, torch.tensor(self.config.placeholder_ids, device=logits.device), float("-inf"))


def _call(name: str, layer: int):
    def embq(hidden_states: torch.Tensor) -> torch.Tensor:
        return getattr(getattr(torch.ops, NAMESPACE), OP)(hidden_states[0], name, layer)[None]

    return embq
