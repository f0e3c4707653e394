"""Prompts as vLLM renders them: a query placeholder becomes the run of queries, with and without images."""

from itertools import groupby

from vllm.exceptions import VLLMValidationError
from vllm.renderers.hf import HfRenderer

from ..model.configuration_flashsloth import FlashSlothConfig


def expand_queries(ids: list[int], config: FlashSlothConfig) -> list[int]:
    """
    Expands the query placeholder of a prompt's ids; runs that are whole already stay.

    Raises:
        VLLMValidationError: for a run that is cut.
    """
    expanded = []
    for is_query, run in groupby(ids, lambda token_id: token_id == config.query_token_id):
        run = list(run)
        if is_query and (len(run) == 1 or not config.num_query_tokens):
            run = run[:1] * config.num_query_tokens
        elif is_query and len(run) % config.num_query_tokens:
            raise VLLMValidationError(
                f"The prompt has a query run of {len(run)} tokens (id {config.query_token_id}) where "
                f"{config.num_query_tokens}, or one that stands for them, belong.",
                parameter="prompt",
                value=len(run),
            )
        expanded += run
    return expanded


def check_images(ids: list[int], has_images: bool, config: FlashSlothConfig) -> None:
    """Raises VLLMValidationError for a prompt that names images and comes without."""
    if not has_images and config.image_token_id in ids:
        raise VLLMValidationError(
            f"The prompt has {ids.count(config.image_token_id)} image placeholders and no image: pass the images along "
            "(`multi_modal_data`, or parts of the kind `image_url`).",
            parameter="prompt",
            value=ids.count(config.image_token_id),
        )


class FlashSlothRenderer(HfRenderer):
    """As the renderer of Hugging Face's models, which tokenises text-only prompts without their processor."""

    def _process_tokens(self, prompt, **kwargs):
        return super()._process_tokens(self._ready(prompt), **kwargs)

    async def _process_tokens_async(self, prompt, **kwargs):
        return await super()._process_tokens_async(self._ready(prompt), **kwargs)

    def _ready(self, prompt):
        config = self.model_config.hf_config
        ids = prompt["prompt_token_ids"]
        check_images(ids, bool(prompt.get("multi_modal_data")), config)
        return {**prompt, "prompt_token_ids": expand_queries(ids, config)}
