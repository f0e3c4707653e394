"""The embedded query module (EmbQ): inside the decoder, learned queries fetch from the image what a question asks."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from .configuration_flashsloth import FlashSlothConfig
from .question_spans import QuerySpans


def build_embq(config: FlashSlothConfig) -> nn.Module | None:
    """One embedded query module, several in one if `embq_layer` is a list, or none without queries."""
    widths = (config.text_config.hidden_size, config.vision_config.hidden_size, config.embq_hidden_size)
    modules = [EmbeddedQuery(*widths, config.embq_num_heads) for _ in config.embq_layers]
    if not modules:
        return None
    return modules[0] if isinstance(config.embq_layer, int) else EmbeddedQueries(modules)


class EmbeddedQueries(nn.Module):
    """Embedded query modules of several layers. PEFT can train and save a module in full, but no list of modules."""

    def __init__(self, modules: list[nn.Module]):
        super().__init__()
        for index, module in enumerate(modules):
            self.add_module(str(index), module)

    @property
    def parts(self) -> list[nn.Module]:
        """The modules, in the order of their layers; an attribute, as PEFT's wrapper of a module passes those on."""
        return list(self.children())


class QueryTokens(nn.Module):
    """The Q learned input embeddings, D wide, that stand at the query placeholders."""

    def __init__(self, num_queries: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_queries, width))

    def forward(self, is_query: torch.Tensor, base: torch.Tensor | None) -> torch.Tensor:
        """
        For the query positions `(B, L)`, bool, `(B, L, D)`: at the k-th of a row the (k mod Q)-th query, on top of the
        embedding `base` `(D,)` if there is one, and anything elsewhere.
        """
        queries = self.weight if base is None else self.weight + base
        return queries[(is_query.cumsum(1) - 1) % self.weight.shape[0]]


def put_queries(model: PreTrainedModel, input_ids: torch.Tensor, inputs_embeds: torch.Tensor) -> torch.Tensor:
    """
    Embeddings `(B, L, D)` with the learned queries of a [`FlashSlothModel`] at the query placeholders of `input_ids`
    `(B, L)`, each on top of the embedding of `query_init_token_id`.
    """
    config = model.config
    is_query = input_ids == config.query_token_id
    base = None
    if config.query_init_token_id is not None:
        # As many as a row has, since hooks on the embeddings (NEFTune) count positions.
        ids = torch.full((1, input_ids.shape[1]), config.query_init_token_id, device=inputs_embeds.device)
        base = model.get_input_embeddings()(ids)[0, 0]  # (D,)
    queries = model.query_tokens(is_query, base).to(inputs_embeds.device, inputs_embeds.dtype)
    return torch.where(is_query.unsqueeze(-1), queries, inputs_embeds)


def calls_at(
    layers: list[int], modules: list[nn.Module], image_features: torch.Tensor, spans: QuerySpans
) -> dict[int, Callable[[torch.Tensor], torch.Tensor]]:
    """What the decoder's seam takes: for each layer the call of its module with `image_features` and `spans`."""
    calls = [partial(module, image_features=image_features, spans=spans) for module in modules]
    return dict(zip(layers, calls, strict=True))


class CrossAttention(nn.Module):
    """
    Multi-head attention without output projection or residual, scores and softmax in float32. Queries and keys are
    `width` wide, scaled by 1/sqrt(width / heads), values `value_width`.
    """

    def __init__(self, width: int, value_width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (width // num_heads) ** -0.5
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(value_width, value_width)

    def scores(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """`(rows, n, width)` against `(rows, m, width)`: float32 scores, `(rows, heads, n, m)`."""
        queries = self._heads(self.q_proj(queries)).float() * self.scale
        return queries @ self._heads(self.k_proj(keys)).float().mT

    def read(self, weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """`values` `(rows, m, value_width)` summed under `weights` `(rows, heads, n, m)`: `(rows, heads, n, d)`."""
        values = self._heads(self.v_proj(values))
        return weights.to(values.dtype) @ values

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class EmbeddedQuery(nn.Module):
    """
    Lets the hidden states of each query run read its question, then, with what they learned, the un-pooled patches
    of every image before the run, and adds what they found to them (paper section 3.3). Nothing else is touched. The
    decoder is D wide, the vision tower Dv, the module `hidden_size` (576); both attentions have `num_heads` heads.
    """

    def __init__(self, decoder_width: int, vision_width: int, hidden_size: int, num_heads: int):
        super().__init__()
        self.text_down_proj = nn.Linear(decoder_width, hidden_size)
        self.image_down_proj = nn.Linear(vision_width, hidden_size)
        self.query_norm = nn.LayerNorm(hidden_size)
        self.question_norm = nn.LayerNorm(hidden_size)
        self.image_norm = nn.LayerNorm(hidden_size)
        self.question_attention = CrossAttention(hidden_size, hidden_size, num_heads)
        self.image_attention = CrossAttention(hidden_size, vision_width, num_heads)
        self.up_proj = nn.Linear(vision_width, decoder_width)

    def forward(self, hidden_states: torch.Tensor, image_features: torch.Tensor, spans: QuerySpans) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.Tensor`): what enters a decoder layer, `(B, L, D)`.
            image_features (`torch.Tensor`): un-pooled patch features of each image, views in order, `(N, V*P, Dv)`.
            spans ([`QuerySpans`]): where the runs stand and what they read.

        Returns:
            `torch.Tensor`: `(B, L, D)`, changed at the positions of valid runs that have an image before them.
        """
        asked = self._read_question(hidden_states, spans)  # (B, R*Q, hidden)
        found, has_image = self._read_images(asked, image_features, spans)  # (B, R*Q, Dv), (B, R)

        update = self.up_proj(found)  # (B, R*Q, D)
        num_queries = spans.positions.shape[2]
        reads = has_image.repeat_interleave(num_queries, dim=1)[..., None]  # (B, R*Q, 1)
        update = torch.where(reads, update, torch.zeros_like(update)).to(hidden_states.dtype)
        positions = spans.positions.flatten(1)[..., None].expand_as(update)
        return hidden_states.scatter_add(1, positions, update)

    def _read_question(self, hidden_states: torch.Tensor, spans: QuerySpans) -> torch.Tensor:
        """a = MHA(q, t): each query reads the tokens of its own run's question. Returns `(B, R*Q, hidden)`."""
        text = self.text_down_proj(hidden_states)  # (B, L, hidden), shared by queries and question
        positions = spans.positions.flatten(1)[..., None].expand(-1, -1, text.shape[-1])
        queries = self.query_norm(text.gather(1, positions))
        text = self.question_norm(text)

        scores = self.question_attention.scores(queries, text)  # (B, H, R*Q, L)
        readable = spans.question.repeat_interleave(spans.positions.shape[2], dim=1)[:, None]  # (B, 1, R*Q, L)
        weights = scores.masked_fill(~readable, torch.finfo(scores.dtype).min).softmax(dim=-1)
        # An empty question reads nothing.
        weights = torch.where(readable, weights, torch.zeros_like(weights))
        return self.question_attention.read(weights, text).transpose(1, 2).flatten(2)

    def attention_over_patches(
        self, hidden_states: torch.Tensor, image_features: torch.Tensor, spans: QuerySpans
    ) -> torch.Tensor:
        """
        How much each query reads of each patch, for the arguments of a call: `(N, H, R*Q, V*P)`, float32. A query's
        shares of all images of its row sum to 1, or are 0 where it sees none.
        """
        return self.image_weights(self._read_question(hidden_states, spans), image_features, spans)

    def _read_images(
        self, asked: torch.Tensor, image_features: torch.Tensor, spans: QuerySpans
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """b = MHA(a, X). Returns what was found, `(B, R*Q, Dv)`, and whether the run sees an image, `(B, R)`."""
        num_rows, num_runs, _ = spans.positions.shape
        weights = self.image_weights(asked, image_features, spans)  # (N, H, R*Q, V*P)
        parts = self.image_attention.read(weights, image_features)  # (N, H, R*Q, Dv/H)
        found = parts.new_zeros((num_rows, *parts.shape[1:])).index_add(0, spans.image_rows, parts)
        images_seen = spans.image_rows.new_zeros((num_rows, num_runs))
        images_seen = images_seen.index_add(0, spans.image_rows, spans.visible.long())
        return found.transpose(1, 2).flatten(2), images_seen > 0

    def image_weights(self, asked: torch.Tensor, image_features: torch.Tensor, spans: QuerySpans) -> torch.Tensor:
        """
        One softmax over the patches of all images that a run sees. Each image is scored on its own, and the parts are
        put in proportion by their exponentials, so that the cost grows with the images and not with rows x images.
        """
        num_rows, _, num_queries = spans.positions.shape
        rows = spans.image_rows
        keys = self.image_norm(self.image_down_proj(image_features))  # (N, V*P, hidden)
        scores = self.image_attention.scores(asked[rows], keys)  # (N, H, R*Q, V*P)
        visible = spans.visible.repeat_interleave(num_queries, dim=1)[:, None, :, None]  # (N, 1, R*Q, 1)

        # The largest score a query meets in any image of its row; only there for the exponentials' range.
        lowest = torch.finfo(scores.dtype).min
        peaks = scores.detach().amax(dim=-1, keepdim=True).masked_fill(~visible, lowest)  # (N, H, R*Q, 1)
        row_peaks = peaks.new_full((num_rows, *peaks.shape[1:]), lowest)
        row_peaks = row_peaks.scatter_reduce(0, rows[:, None, None, None].expand_as(peaks), peaks, "amax")
        exponentials = torch.where(visible, scores - row_peaks[rows], float("-inf")).exp()
        totals = exponentials.new_zeros(row_peaks.shape).index_add(0, rows, exponentials.sum(-1, keepdim=True))
        return exponentials / totals.clamp(min=torch.finfo(totals.dtype).tiny)[rows]
