"""Which tokens are the question: the rule that tells, from ids alone, what each query run reads."""

from typing import NamedTuple

import torch

from .configuration_flashsloth import FlashSlothConfig
from .placeholders import shift
from .prompt_memory import UNKNOWN


class QuerySpans(NamedTuple):
    """
    Where the query runs of a batch stand and what each may read. R is the number of runs of the row that has most;
    rows with fewer are filled up with runs that are not valid.

    Attributes:
        positions (`torch.LongTensor`): the Q positions of each run in its row, `(B, R, Q)`.
        valid (`torch.BoolTensor`): whether the run exists, `(B, R)`.
        question (`torch.BoolTensor`): the positions of the question that the run ends, `(B, R, L)`.
        image_rows (`torch.LongTensor`): the row that each image stands in, `(N,)`.
        visible (`torch.BoolTensor`): whether the image stands before the run, in the run's row, `(N, R)`.
    """

    positions: torch.Tensor
    valid: torch.Tensor
    question: torch.Tensor
    image_rows: torch.Tensor
    visible: torch.Tensor


def question_starts(
    is_image: torch.Tensor,
    input_ids: torch.Tensor,
    user_prefix_ids: list[int],
    pad_token_id: int | None = None,
    is_padding: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Marks the first token of what a user typed: the second token behind an image (a newline stands between), and the
    token behind the ids that open a later user turn (`</s>USER:`). Neither can be forged from typed text, as both
    contain a special token. Padding may stand behind `</s>`: where rows are answered together, some answers end early.

    All tensors are `(B, L)`; `is_image` and `is_padding`, where it is known, are bool, and so is what is returned.
    """
    image_ends = is_image & ~shift(is_image, -1)
    starts = shift(image_ends, 2)
    if is_padding is not None:  # padding may stand between, where a cache ends behind the image
        count = (~is_padding).cumsum(1)  # (B, L)
        count_at_image = torch.where(image_ends, count, -2).cummax(dim=1)[0]
        starts = ~is_padding & (count - count_at_image == 2)
    header = torch.full_like(is_image, bool(user_prefix_ids))
    for distance, token_id in enumerate(reversed(user_prefix_ids), start=1):
        # The header may begin with the very token that pads (ChatML's `<|im_end|>`); padding then is a beginning too.
        if distance == len(user_prefix_ids):
            seen = torch.zeros_like(is_image) if is_padding is None else is_padding
            input_ids = _through_padding(input_ids, seen | (input_ids == pad_token_id) & (token_id != pad_token_id))
        header = header & shift((input_ids == token_id) | (input_ids == UNKNOWN), distance)
    return starts | header


def _through_padding(input_ids: torch.Tensor, is_padding: torch.Tensor) -> torch.Tensor:
    """Writes over padding in `(B, L)` the id of the last token before it."""
    where = torch.arange(input_ids.shape[1], device=input_ids.device)
    return input_ids.gather(1, torch.where(is_padding, 0, where).cummax(dim=1)[0])


def padding_of(attention_mask: torch.Tensor | dict | None, input_ids: torch.Tensor) -> torch.Tensor | None:
    """
    The positions of `(B, L)` that are padding, `(B, L)`, by a mask `(B, L)`, or by what the last position sees of a
    mask `(B, heads, queries, L or more)`, as static caches have it; `None` where the mask does not say.
    """
    if isinstance(attention_mask, dict):
        attention_mask = attention_mask.get("full_attention")
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.shape[-1] < input_ids.shape[1]:
        return None
    attention_mask = attention_mask.to(input_ids.device)
    if attention_mask.ndim == 4:
        seen = attention_mask[:, 0, -1, : input_ids.shape[1]]
        return ~seen if seen.dtype == torch.bool else seen < 0
    return attention_mask[:, : input_ids.shape[1]] == 0


def find_query_spans(
    input_ids: torch.Tensor,
    config: FlashSlothConfig,
    *,
    max_runs: int,
    num_images: int,
    tokens_per_image: int,
    num_cached: int = 0,
    attention_mask: torch.Tensor | dict | None = None,
    refuse_parts: bool = True,
) -> QuerySpans:
    """
    Finds the query runs of a batch, the question of each and the images before it. Padding belongs to no question.

    Args:
        input_ids (`torch.LongTensor`): ids with the placeholders expanded, `(B, L)`.
        max_runs (`int`): R, at least the runs of the fullest row.
        num_images (`int`): N, the images of the batch in reading order.
        tokens_per_image (`int`): placeholders an image takes (V x T).
        num_cached (`int`, defaults to 0): the first positions of `input_ids` whose keys and values are cached; their
            runs are over, their images can be seen, and the spans count positions from behind them.
        attention_mask (`torch.Tensor` or `dict`, *optional*): what the decoder is given; says where padding is. Without
            it there is none but on the sides, and behind answers that ended early.
        refuse_parts (`bool`, defaults to `True`): whether to look for a question that is cached in part; an exported
            graph cannot.

    Raises:
        ValueError: if a part of a question is cached, as EmbQ needs it together with its queries.
    """
    length = input_ids.shape[1]
    where = torch.arange(length, device=input_ids.device)  # (L,)
    is_image = input_ids == config.image_token_id
    is_query = input_ids == config.query_token_id
    run_ends = is_query & ~shift(is_query, -1)
    is_query = is_query & (where >= num_cached)

    # Runs: the k-th query of a row belongs to run k // Q.
    is_run_start = is_query & ((is_query.cumsum(1) - 1) % config.num_query_tokens == 0)
    order = torch.where(is_run_start, where, length).sort(dim=1)[0]
    run_starts = torch.nn.functional.pad(order - length, (0, max_runs))[:, :max_runs] + length  # (B, R)
    valid = run_starts < length
    positions = run_starts[:, :, None] + torch.arange(config.num_query_tokens, device=input_ids.device)  # (B, R, Q)
    positions = positions.clamp(max=length - 1)

    # Questions: from the last start before the run, or from the run before it, up to the run.
    pad_token_id = config.text_config.pad_token_id
    is_padding = padding_of(attention_mask, input_ids)
    starts = question_starts(is_image, input_ids, config.user_prefix_ids, pad_token_id, is_padding)
    starts = starts | shift(run_ends, 1)
    last_start = torch.where(starts, where, 0).cummax(dim=1)[0]  # (B, L)
    question_start = last_start.gather(1, run_starts.clamp(max=length - 1))  # (B, R)
    question = (where >= question_start[:, :, None]) & (where < run_starts[:, :, None])  # (B, R, L)
    question = question & valid[:, :, None] & ~is_image[:, None, :]
    if is_padding is not None:
        question = question & ~is_padding[:, None, :]

    if refuse_parts and num_cached and question[..., :num_cached].any():
        raise ValueError(
            "A question must enter the model together with its queries, but a part of it is in the cache already. "
            "Pass a turn in one piece, and generate without `prefill_chunk_size`."
        )

    # Images: the n-th one begins at the (n * V * T)-th image position of the batch.
    image_positions = is_image.flatten().cumsum(0)
    first_tokens = torch.arange(num_images, device=input_ids.device) * tokens_per_image + 1
    first = torch.searchsorted(image_positions, first_tokens)  # (N,), B * L for an image without placeholders
    row = first // length
    image_rows = row.clamp(max=input_ids.shape[0] - 1)
    placed = first < input_ids.numel()
    run_of_row = run_starts[image_rows]  # (N, R)
    visible = placed[:, None] & valid[image_rows] & ((first - row * length)[:, None] < run_of_row)
    positions = (positions - num_cached).clamp(min=0)
    return QuerySpans(positions, valid, question[..., num_cached:], image_rows, visible)
