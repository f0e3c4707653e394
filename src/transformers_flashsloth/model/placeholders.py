"""
Placeholders: the positions that images and queries take. They are held against the images before any work is done,
filled with what they stand for, and never learned.

Labels at them are masked at three places, because a trainer may look at labels before, beside or inside of the model:
when a collator puts them into a batch of the processor (trainers count them there), when a model is called (TRL takes
the loss outside of the model's own `forward`), and in that `forward` itself.
"""

from math import inf
from typing import NamedTuple

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache, LinearAttentionCacheLayerMixin
from transformers.feature_extraction_utils import BatchFeature
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging

from .configuration_flashsloth import FlashSlothConfig
from .decoders import undo_scale
from .vision_towers import as_pair

logger = logging.get_logger(__name__)

# Stands for a token whose id nobody knows but which is none of structure.
OTHER = -2
# What a loss skips.
IGNORED = -100


def check_length(input_ids: torch.Tensor, cache: Cache | None, config: FlashSlothConfig) -> None:
    """Raises ValueError if `(B, L)` ids behind the cached ones go beyond the decoder's context."""
    context = config.text_config.max_position_embeddings
    past = 0 if cache is None else cache.get_seq_length()
    # Static caches count on the device; reading that would cost a synchronisation a step.
    if isinstance(past, int) and past + input_ids.shape[1] > context:
        raise ValueError(
            f"The sequence is {past + input_ids.shape[1]} positions long, images and queries included, but the "
            f"decoder's context is {context}. Shorten the text, use fewer images or video frames, or `image_hd=False`."
        )


def check_gaps(attention_mask: torch.Tensor | dict | None, config: FlashSlothConfig) -> None:
    """
    Raises ValueError if a mask `(B, L)` has padding between tokens of a row and layers of the decoder would count it:
    they hand a state from one position to the next (convolutions, linear attention), or see a window shorter than L.
    """
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2 or torch.compiler.is_compiling():
        return
    layers = DynamicCache(config=config.text_config).layers
    carries = any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)
    window = 0 if carries else min(getattr(layer, "sliding_window", None) or inf for layer in layers)
    if attention_mask.shape[1] <= window:
        return
    starts = attention_mask.bool().long().diff(dim=1, prepend=attention_mask.new_zeros(len(attention_mask), 1)) > 0
    if (starts.sum(1) > 1).any():
        raise ValueError(
            "A row has padding between its tokens, as where answers of a batch ended apart, and layers of the decoder "
            f"({config.text_config.model_type}) would read it. Go on with one row at a time, or without a cache."
        )


def check_views(pixel_values: torch.Tensor, config: FlashSlothConfig) -> None:
    """Raises ValueError unless `pixel_values` are `(N, V, 3, H, W)` of views of the config's size."""
    size = (3, *config.view_size)
    if pixel_values.ndim != 5 or pixel_values.shape[2:] != size:
        raise ValueError(
            f"`pixel_values` must have the shape (images, views, {', '.join(map(str, size))}), got "
            f"{tuple(pixel_values.shape)}. Make it with FlashSlothProcessor or FlashSlothImageProcessor."
        )


class PlaceholderCounts(NamedTuple):
    """
    Attributes:
        max_runs (`int`): R, the query runs of the row that has most; while a graph is traced, the most that L positions
            can hold.
        tokens_per_image (`int`): V*T, the placeholders of an image.
    """

    max_runs: int
    tokens_per_image: int


def check_placeholders(
    input_ids: torch.Tensor,
    num_images: int,
    config: FlashSlothConfig,
    *,
    num_views: int | None = None,
    tokens_per_image: int | None = None,
) -> PlaceholderCounts:
    """
    Holds the placeholders of `input_ids` `(B, L)` against N images, bringing all numbers to the host in one copy. While
    a graph is traced only their number is checked, and images have as many tokens as the config says.

    Of images that are encoded, `tokens_per_image` is V*T; of those that are to be, `num_views` is V, and how many
    placeholders there are for each says which window they are to be pooled in.

    Raises:
        ValueError: if images and image placeholders do not match, no window leaves as many tokens, or a query run is
            cut.
    """
    num_queries = max(config.num_query_tokens, 1)
    expected = tokens_per_image or (num_views or 1) * config.tokens_per_view
    if not num_images and input_ids.shape[1] == 1:
        return PlaceholderCounts(0, expected)  # a decoding step
    if torch.compiler.is_compiling():
        if num_views:
            found = (input_ids == config.image_token_id).sum()
            # Private, as there is no public check of values that does not break a graph.
            torch._assert_async(found == num_images * expected, "Image features and image tokens do not match.")
        return PlaceholderCounts(input_ids.shape[1] // (num_queries + 1) + 1, expected)

    is_query = (input_ids == config.query_token_id) & (config.num_query_tokens > 0)
    images_of_row = (input_ids == config.image_token_id).sum(1)  # (B,)
    queries = is_query.cumsum(1)  # (B, L)
    # Within a run each query but the first follows another one.
    loose = is_query & ((queries - 1) % num_queries != 0) & ~shift(is_query, 1)
    cut_runs = loose.any(1) | (queries[:, -1] % num_queries != 0)
    per_image = images_of_row.new_tensor(expected)
    if num_views and num_images:
        per_image = (images_of_row.sum() // num_images).clamp(min=1)
    counts = (images_of_row.sum(), (images_of_row % per_image != 0).sum(), cut_runs.sum(), queries.max(), per_image)
    image_tokens, cut_images, cut_runs, most_queries, tokens_per_image = torch.stack(counts).tolist()
    if num_views and tokens_per_image not in {num_views * tokens for tokens in config.windows}:
        tokens_per_image = expected

    if image_tokens != num_images * tokens_per_image or cut_images:
        raise ValueError(
            f"Image features and image tokens do not match: {num_images} images of {tokens_per_image} tokens each, "
            f"{image_tokens} image tokens (id {config.image_token_id}) in `input_ids`, {cut_images} rows with a part "
            "of an image. Pass the images that the prompt names, made by the same processor with one `pooling_window`, "
            "and do not truncate them (`max_length`)."
        )
    if cut_runs:
        raise ValueError(
            f"{cut_runs} rows of `input_ids` have a query run that is not {num_queries} tokens (id "
            f"{config.query_token_id}) in a row. Make prompts with FlashSlothProcessor, and do not truncate them "
            "(`max_length`)."
        )
    if num_views and num_images:
        _warn_of_window(config.windows[tokens_per_image // num_views], config)
    return PlaceholderCounts(most_queries // num_queries, tokens_per_image)


def _warn_of_window(window: tuple[int, int], config: FlashSlothConfig) -> None:
    trained = [as_pair(known) for known in config.pooling_windows or []]
    if window != config.window and window not in trained:
        logger.warning_once(
            f"Images are pooled in windows of {window[0]} x {window[1]} patches, which the model was not trained with; "
            f"it knows {[*dict.fromkeys([config.window, *trained])]}."
        )


def check_images(
    input_ids: torch.Tensor,
    pixel_values: torch.Tensor | None,
    images: BaseModelOutputWithPooling | None,
    config: FlashSlothConfig,
) -> PlaceholderCounts:
    """`check_placeholders` for images as a model takes them: pixels `(N, V, 3, H, W)`, encoded, or none."""
    if pixel_values is not None:
        check_views(pixel_values, config)
        return check_placeholders(input_ids, pixel_values.shape[0], config, num_views=pixel_values.shape[1])
    num_images, tokens_per_image = (0, None) if images is None else images.pooler_output.shape[:2]
    return check_placeholders(input_ids, num_images, config, tokens_per_image=tokens_per_image)


def ids_of_structure(inputs_embeds: torch.Tensor, embed: nn.Module, config: FlashSlothConfig) -> torch.Tensor:
    """
    The ids of the tokens that carry structure, read off embeddings `(B, L, D)` that `embed` made; `OTHER` for every
    other position. Returns `(B, L)`.
    """
    ids = torch.full(inputs_embeds.shape[:2], OTHER, dtype=torch.long, device=inputs_embeds.device)
    for token_id in (*config.placeholder_ids, *config.user_prefix_ids):
        embedding = embed(torch.full((1, 1), token_id, device=inputs_embeds.device))  # (1, 1, D)
        ids = torch.where((inputs_embeds == embedding).all(-1), token_id, ids)
    return ids


def put_visual_tokens(
    tokens: torch.Tensor, input_ids: torch.Tensor, inputs_embeds: torch.Tensor, config: FlashSlothConfig
) -> torch.Tensor:
    """Embeddings `(B, L, D)` with the visual tokens `(N, V*T, D)` at the image placeholders of `input_ids` `(B, L)`."""
    tokens = undo_scale(tokens.to(inputs_embeds.device, inputs_embeds.dtype), config.text_config)
    return inputs_embeds.masked_scatter((input_ids == config.image_token_id).unsqueeze(-1), tokens)


def shift(mask: torch.Tensor, distance: int) -> torch.Tensor:
    """Moves a `(B, L)` mask `distance` positions to the right (to the left if negative), filling with False."""
    shifted = nn.functional.pad(mask, (max(distance, 0), max(-distance, 0)), value=False)
    return shifted[:, : mask.shape[1]] if distance > 0 else shifted[:, -mask.shape[1] :]


def ignore_placeholders(
    labels: torch.Tensor, input_ids: torch.Tensor, placeholder_ids: tuple[int, ...]
) -> torch.Tensor:
    """Labels `(B, L)` with -100 wherever `input_ids` `(B, L)` holds one of the placeholders."""
    for token_id in placeholder_ids:
        labels = labels.masked_fill(input_ids == token_id, IGNORED)
    return labels


class FlashSlothBatch(BatchFeature):
    """
    What a call of the processor returns. `labels` that are put into it are -100 at `placeholder_ids`, image and query
    positions, so that a trainer which divides the loss by the number of labels counts those that the model learns.
    """

    placeholder_ids: tuple[int, ...] = ()

    def __getstate__(self):
        return super().__getstate__() | {"placeholder_ids": self.placeholder_ids}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.placeholder_ids = state["placeholder_ids"]

    def __setitem__(self, key: str, value):
        if key == "labels" and _are_alike(value, self.data.get("input_ids")):
            value = ignore_placeholders(value, self.data["input_ids"], self.placeholder_ids)
        super().__setitem__(key, value)


def ignore_placeholders_first(model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    """A forward pre-hook: whatever `forward` the model has been given, its labels are masked."""
    input_ids, labels = kwargs.get("input_ids", args[0] if args else None), kwargs.get("labels")
    if not _are_alike(labels, input_ids):
        return None
    return args, kwargs | {"labels": ignore_placeholders(labels, input_ids, model.config.placeholder_ids)}


def _are_alike(labels, input_ids) -> bool:
    tensors = isinstance(labels, torch.Tensor) and isinstance(input_ids, torch.Tensor)
    return tensors and labels.shape == input_ids.shape
