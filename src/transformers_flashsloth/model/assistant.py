"""Assisted decoding: what an assistant is given of a prompt with images."""

import torch
from transformers import PreTrainedConfig, PreTrainedModel

# What only a model that sees images can take.
MULTIMODAL_INPUTS = ("pixel_values", "mm_encoder_outputs", "mm_token_type_ids")
# In these an assistant must be like its model, as it reads the same ids.
STRUCTURE = ("image_token_id", "query_token_id", "num_query_tokens", "tokens_per_view", "view_size")


class Assistant:
    """
    An assistant model behind a `generate` that gives it what it can take of a prompt: a FlashSloth encodes the images
    itself, once; any other model reads the ids alone, and placeholders are tokens like others to it. Everything else
    is the assistant's own.

    Args:
        model (`PreTrainedModel`): drafts tokens.
        config ([`FlashSlothConfig`]): of the model that it assists.
        images (`dict`): what that model was given of `pixel_values` `(N, V, 3, H, W)` and `mm_encoder_outputs`.

    Raises:
        ValueError: if the assistant is a FlashSloth that cannot read the prompt's placeholders or images.
    """

    def __init__(self, model: PreTrainedModel, config: PreTrainedConfig, images: dict):
        self._model = model
        self._images = images if model.config.model_type == config.model_type else {}
        if model.config is config or not self._images:
            return
        pairs = {name: (getattr(config, name), getattr(model.config, name)) for name in STRUCTURE}
        if differences := [f"`{name}` ({mine} and {its})" for name, (mine, its) in pairs.items() if mine != its]:
            raise ValueError(
                f"The assistant cannot read this model's prompts: they differ in {', '.join(differences)}. Use a "
                "FlashSloth with the same tokenizer, queries and image size, or a text-only assistant."
            )
        if "pixel_values" not in self._images:
            raise ValueError(
                "A FlashSloth that assists another encodes the images itself: pass `pixel_values`, not "
                "`mm_encoder_outputs`."
            )

    def __getattr__(self, name: str):
        return getattr(self._model, name)

    def generate(self, **kwargs) -> torch.LongTensor:
        """As the assistant's own, with the images it can take."""
        kwargs = {name: value for name, value in kwargs.items() if name not in MULTIMODAL_INPUTS}
        return self._model.generate(**kwargs, **self._images)
