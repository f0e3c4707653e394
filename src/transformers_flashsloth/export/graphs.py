"""
The two graphs of an exported FlashSloth, as modules that can be traced.

An image is encoded once; everything else is in one decoder, which reads a prompt, a later turn or a single token alike.
A client only keeps ids, keys, values and encoded images.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain

import torch
from torch import nn
from transformers import DynamicCache

from ..model.decoders import finish_logits, undo_scale
from ..model.embedded_query import calls_at, put_queries
from ..model.modeling_flashsloth import FlashSlothForConditionalGeneration
from ..model.prompt_memory import CACHE
from ..model.question_spans import QuerySpans, find_query_spans


class ImageEncoder(nn.Module):
    """
    Images to what the decoder reads of them. Whatever has weights runs once, as a graph holds those of each run apart.

    Args:
        model ([`FlashSlothForConditionalGeneration`]): in evaluation mode.
        windows (`list[tuple[int, int]]`): in which patches are pooled, of `config.windows`.
    """

    def __init__(self, model: FlashSlothForConditionalGeneration, windows: list[tuple[int, int]]):
        super().__init__()
        self.model, self.windows = model.model, windows

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        Pixels `(N, V, 3, H, W)` to visual tokens of the first window `(N, V*T, D)`, un-pooled patches `(N, V*P, Dv)`,
        and the share of each patch in its window, `(N, V*P)`, as [`FlashSlothExplanation`] has it; then the tokens and
        shares of each further window.
        """
        projector, num_views = self.model.multi_modal_projector, pixel_values.shape[1]
        rows, columns = self.model.config.patch_grid
        patches = self.model.get_image_features(pixel_values, return_dict=True).last_hidden_state  # (N, V*P, Dv)
        views = patches.reshape(-1, rows * columns, patches.shape[-1])  # (N*V, P, Dv)
        with _once([*projector.pooling.children()]), _noted([projector.pooling], "weights") as noted:
            pooled = [projector.pooling(views, window) for window in self.windows]  # (N*V, T, Dv) each
        if not noted:  # an average, which needs none
            noted = [projector.pooling.weights(views, window) for window in self.windows]
        counts = [part.shape[1] for part in pooled]
        tokens = projector.linear_2(projector.act(projector.linear_1(torch.cat(pooled, dim=1))))  # (N*V, all T, D)
        tokens = tokens.unflatten(0, (-1, num_views))
        outputs = [
            (own.flatten(1, 2), shares.reshape(patches.shape[:2]))
            for own, shares in zip(tokens.split(counts, dim=2), noted, strict=True)
        ]
        (first, weights), *others = outputs
        return first, patches, weights, *chain(*others)


class Decoder(nn.Module):
    """
    One step: positions behind the cached ones to the logits of the last of them, and to all keys and values.

    Args:
        model ([`FlashSlothForConditionalGeneration`]): in evaluation mode.
    """

    def __init__(self, model: FlashSlothForConditionalGeneration):
        super().__init__()
        self.model, self.lm_head, self.config = model.model, model.lm_head, model.config

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        image_tokens: torch.Tensor,
        image_features: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """
        Args:
            input_ids (`torch.LongTensor`): all ids so far, cached ones included, `(B, L)`.
            attention_mask (`torch.LongTensor`): 0 at padding, `(B, L)`.
            image_tokens, image_features (`torch.Tensor`): of all images so far in reading order, `(N, V*T, D)` and
                `(N, V*P, Dv)`; one that no placeholder stands for where there is none.
            past (`list[torch.Tensor]`): keys and values of each layer, `(B, H, cached, d)`.

        Returns:
            logits `(B, 1, vocabulary)` in float32, minus infinity at placeholders, then the present keys and values,
            then, if there are queries, what those of each row's last run read of each patch, `(N, Q, V*P)`, as
            [`FlashSlothExplanation`] has it, and 0 where the new positions have no run.
        """
        config, num_cached = self.config, past[0].shape[2]
        new_ids = input_ids[:, num_cached:]
        embeds = self._embed(input_ids, new_ids, num_cached, image_tokens)
        embq = {}
        if self.model.embq is not None:
            spans = find_query_spans(
                input_ids,
                config,
                max_runs=new_ids.shape[1] // (config.num_query_tokens + 1) + 1,
                num_images=image_features.shape[0],
                tokens_per_image=image_tokens.shape[1],
                num_cached=num_cached,
                attention_mask=attention_mask,
                refuse_parts=False,  # which nothing in a graph could; the client passes turns whole
            )
            embq = calls_at(config.embq_layers, self.model.embq_modules, image_features, spans)
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        with _noted(self.model.embq_modules, "image_weights") as weights:  # (N, H, R*Q, V*P) each
            outputs = self.model.language_model(
                inputs_embeds=embeds,
                attention_mask=attention_mask,
                position_ids=positions[:, num_cached:],
                use_cache=True,
                embq=embq,
                **{CACHE: DynamicCache(list(zip(past[::2], past[1::2], strict=True)))},
            )
        logits = finish_logits(self.lm_head(outputs.last_hidden_state[:, -1:]), config.text_config).float()
        placeholders = torch.tensor(config.placeholder_ids, device=logits.device)
        logits = logits.index_fill(-1, placeholders, float("-inf"))
        present = [part for layer in getattr(outputs, CACHE).layers for part in (layer.keys, layer.values)]
        if not embq:
            return (logits, *present)
        attention = torch.stack(weights).mean(dim=(0, 2))  # (N, R*Q, V*P)
        return (logits, *present, _of_last_run(attention, spans))

    def _embed(
        self, input_ids: torch.Tensor, new_ids: torch.Tensor, num_cached: int, image_tokens: torch.Tensor
    ) -> torch.Tensor:
        """Embeddings of the new positions with queries and visual tokens in their places, `(B, new, D)`."""
        embeds = self.model.get_input_embeddings()(new_ids)
        if self.model.query_tokens is not None:
            embeds = put_queries(self.model, new_ids, embeds)
        # The n-th image position of the batch holds the n-th visual token, also behind cached ones.
        is_image = input_ids == self.config.image_token_id
        numbers = is_image.flatten().long().cumsum(0).view_as(input_ids)[:, num_cached:] - 1
        is_image = is_image[:, num_cached:]
        tokens = undo_scale(image_tokens, self.config.text_config).flatten(0, 1).to(embeds.dtype)  # (N*V*T, D)
        return torch.where(is_image[..., None], tokens[torch.where(is_image, numbers, 0)], embeds)


@contextmanager
def _noted(modules: list[nn.Module], method: str) -> Iterator[list[torch.Tensor]]:
    """Notes what a method of modules returns, so that a graph need not compute it twice."""
    noted = []

    def note(call: Callable, *arguments) -> torch.Tensor:
        noted.append(call(*arguments))
        return noted[-1]

    for module in modules:
        setattr(module, method, partial(note, getattr(module, method)))
    try:
        yield noted
    finally:
        for module in modules:
            delattr(module, method)


@contextmanager
def _once(modules: list[nn.Module]) -> Iterator[None]:
    """Runs each of modules, which get the same input each time, but once."""
    with ExitStack() as stack:
        for module in modules:
            noted = stack.enter_context(_noted([module], "forward"))
            module.forward = partial(_first_or, noted, module.forward)
        yield


def _first_or(noted: list[torch.Tensor], call: Callable, *arguments) -> torch.Tensor:
    return noted[0] if noted else call(*arguments)


def _of_last_run(attention: torch.Tensor, spans: QuerySpans) -> torch.Tensor:
    """Of `(N, R*Q, V*P)` what belongs to the last run of each image's row, `(N, Q, V*P)`."""
    num_queries = spans.positions.shape[2]
    last = (spans.valid.long().sum(1) - 1).clamp(min=0)[spans.image_rows]  # (N,)
    positions = last[:, None] * num_queries + torch.arange(num_queries, device=last.device)  # (N, Q)
    return attention.gather(1, positions[..., None].expand(-1, -1, attention.shape[2]))
