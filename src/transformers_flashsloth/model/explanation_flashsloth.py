"""What the model looked at: the shares that pooling and the queries give to each patch."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .placeholders import check_images
from .question_spans import find_query_spans


@dataclass
class FlashSlothExplanation(ModelOutput):
    """
    Args:
        pooling_weights (`torch.Tensor`): spatial attention pooling's share of each patch in its window, float32,
            `(N, V, rows, columns)`; every window sums to 1.
        query_attention (`torch.Tensor`): each query's share of each patch, mean over the heads, float32,
            `(N, R, Q, V, rows, columns)`, mean over the embedded query modules too where there are several; `None`
            without queries. For the images of one row it sums to 1 over images, views and patches; it is 0
            where the run stands before the image.
    """

    pooling_weights: torch.Tensor | None = None
    query_attention: torch.Tensor | None = None


@torch.no_grad()
def explain(
    model: PreTrainedModel, input_ids: torch.Tensor, pixel_values: torch.Tensor, attention_mask: torch.Tensor | None
) -> FlashSlothExplanation:
    """
    Runs a prompt, `(B, L)`, `(N, V, 3, H, W)` and `(B, L)` as the processor makes them, on a [`FlashSlothModel`] and
    reports what was looked at. Raises ValueError as the model's `forward` does.
    """
    config = model.config
    max_runs, tokens_per_image = check_images(input_ids, pixel_values, None, config)
    window = config.windows[tokens_per_image // pixel_values.shape[1]]
    images = model.get_image_features(pixel_values, pooling_window=window, return_dict=True)
    entering = {}  # what each module reads; nothing without a query run
    hooks = [
        module.register_forward_pre_hook(lambda module, args: entering.update({module: args[0]}))
        for module in model.embq_modules
    ]
    try:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "mm_encoder_outputs": {"image": images}}
        hidden_states = model(**inputs, use_cache=False).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    patches = images.last_hidden_state  # (N, V*P, Dv)
    rows, columns = config.patch_grid
    views = (pixel_values.shape[1], rows, columns)
    pooling = model.multi_modal_projector.pooling
    weights = pooling.weights(patches.reshape(-1, rows * columns, patches.shape[-1]), window)
    explanation = FlashSlothExplanation(pooling_weights=weights.reshape(-1, *views))
    if model.embq is None:
        return explanation

    spans = find_query_spans(
        input_ids,
        config,
        max_runs=max(max_runs, 1),
        num_images=len(pixel_values),
        attention_mask=attention_mask,
        tokens_per_image=tokens_per_image,
    )
    attentions = [
        module.attention_over_patches(entering.get(module, hidden_states), patches, spans)  # (N, H, R*Q, V*P)
        for module in model.embq_modules
    ]
    attention = torch.stack(attentions).mean(dim=(0, 2))  # (N, R*Q, V*P)
    explanation.query_attention = attention.unflatten(1, (-1, config.num_query_tokens)).unflatten(3, views)
    return explanation
