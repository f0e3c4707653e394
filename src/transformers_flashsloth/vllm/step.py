"""What EmbQ needs in a step of the engine, and the opaque op that runs it inside of the decoder."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.utils.torch_utils import direct_register_custom_op

from ..model.configuration_flashsloth import FlashSlothConfig
from ..model.placeholders import OTHER
from ..model.question_spans import QuerySpans, find_query_spans
from .config import OP
from .packing import unpack


class Prompts(NamedTuple):
    """
    Whole prompts of a step whose images take as many tokens each, as rows.

    Attributes:
        where (`torch.LongTensor`): positions in the step, filled up with 0, `(B, L)`.
        image_features (`torch.Tensor`): un-pooled patches, `(N, V*P, Dv)`.
        spans ([`QuerySpans`]): of the rows.
    """

    where: torch.Tensor
    image_features: torch.Tensor
    spans: QuerySpans


class Step:
    """
    The prompts of a step, from the embedding of its tokens to the end of the decoder.

    Args:
        config ([`FlashSlothConfig`]): of the model.
        modules (`dict[int, nn.Module]`): embedded query modules by their layer.
        name (`str`): under which the op finds this step.
        vllm_config (`VllmConfig`): of the engine.
    """

    def __init__(self, config: FlashSlothConfig, modules: dict[int, nn.Module], name: str, vllm_config: VllmConfig):
        self.config, self.modules, self.name = config, modules, name
        vllm_config.compilation_config.static_forward_context[name] = self
        self.clear()

    def clear(self) -> None:
        """Forgets the step."""
        self.input_ids, self.images, self.prompts = None, [], []

    def take(self, input_ids: torch.Tensor, images: list[torch.Tensor]) -> None:
        """Takes the ids of a step, `(tokens,)`, and its packed images, `(V*T, D + w*w*Dv)` each, in reading order."""
        self.clear()
        self.input_ids, self.images = input_ids, list(images)

    def place(self, positions: torch.Tensor) -> None:
        """
        Finds the prompts of the step by the positions of its tokens, `(tokens,)`: one begins wherever these do not run
        on. Decoding steps have none.

        Raises:
            RuntimeError: if a prompt came in pieces, which nothing could answer rightly.
        """
        ids = self.input_ids
        if ids is None or not self.modules:
            return
        is_query, is_image = ids == self.config.query_token_id, ids == self.config.image_token_id
        if not bool(is_query.any()):
            return
        positions = positions[: len(ids)]
        begins = torch.cat([positions.new_zeros(1), (positions.diff() != 1).nonzero().flatten() + 1])
        edges = [*begins.tolist(), len(ids)]
        firsts = positions[begins].tolist()
        image_tokens = [0, *is_image.cumsum(0)[torch.tensor(edges[1:], device=ids.device) - 1].tolist()]
        images, groups = iter(self.images), {}
        for number, (start, end) in enumerate(pairwise(edges)):
            missing = image_tokens[number + 1] - image_tokens[number]
            if firsts[number] and (missing or bool(is_query[start:end].any())):
                raise RuntimeError(
                    "A prompt of FlashSloth came in pieces, so that its queries would miss their question or images: "
                    "chunked prefill and prefix caching must be off, as its plug-in sets them."
                )
            mine = []
            while missing > 0:
                mine.append(next(images))
                missing -= len(mine[-1])
            if mine:
                groups.setdefault(len(mine[0]), []).append((start, end, mine))
        self.prompts = [self._rows(tokens_per_image, rows) for tokens_per_image, rows in groups.items()]

    def _rows(self, tokens_per_image: int, rows: list[tuple[int, int, list[torch.Tensor]]]) -> Prompts:
        ids = self.input_ids
        shape = (len(rows), max(end - start for start, end, _ in rows))
        where = torch.zeros(shape, dtype=torch.long, device=ids.device)
        padded = torch.full(shape, OTHER, dtype=ids.dtype, device=ids.device)
        mask = torch.zeros(shape, dtype=torch.long, device=ids.device)
        for row, (start, end, _) in enumerate(rows):
            where[row, : end - start] = torch.arange(start, end, device=ids.device)
            padded[row, : end - start] = ids[start:end]
            mask[row, : end - start] = 1
        _, features = unpack(torch.stack([image for *_, mine in rows for image in mine]), self.config)
        spans = find_query_spans(
            padded,
            self.config,
            max_runs=int((padded == self.config.query_token_id).sum(1).max()) // self.config.num_query_tokens or 1,
            num_images=len(features),
            tokens_per_image=tokens_per_image,
            attention_mask=mask,
        )
        return Prompts(where, features, spans)

    def run(self, hidden_states: torch.Tensor, layer: int) -> torch.Tensor:
        """What enters a layer, `(tokens, D)`, with what its module found added at the queries: a new tensor."""
        changed = hidden_states.clone()
        for where, features, spans in self.prompts:
            rows = self.modules[layer](hidden_states[where], image_features=features, spans=spans)  # (B, L, D)
            positions = spans.positions.flatten(1)  # (B, R*Q)
            valid = spans.valid.repeat_interleave(spans.positions.shape[2], dim=1)
            found = rows.gather(1, positions[..., None].expand(-1, -1, rows.shape[-1]))
            changed[where.gather(1, positions)[valid]] = found[valid]
        return changed


def _embq(hidden_states: torch.Tensor, name: str, layer: int) -> torch.Tensor:
    return get_forward_context().no_compile_layers[name].run(hidden_states, layer)


def _embq_shape(hidden_states: torch.Tensor, name: str, layer: int) -> torch.Tensor:
    return torch.empty_like(hidden_states)


direct_register_custom_op(OP, _embq, fake_impl=_embq_shape)
