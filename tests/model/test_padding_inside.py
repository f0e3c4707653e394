"""Decoders that carry a state along, or see a window: later turns on a kept cache, and padding between tokens."""

import pytest
import torch
from transformers import DynamicCache

from tests.model.decoder_families import config_of
from tests.tiny_backbones import HEADER, QUERY, build, generate, inputs_of, row_of

SECOND_TURN = [*HEADER, 30, 31, QUERY, QUERY, 10]
# A convolution, linear attention, a window of four positions; what counts no padding comes last.
READS_PADDING = ("lfm2", "qwen3_5_text", "gemma3_text")
FAMILIES = (*READS_PADDING, "smollm3")
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 3}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return build(config_of(request.param))


@pytest.fixture(scope="module")
def batch(model):
    return inputs_of(model, [20, 21, 22], [25] * 6)


def first_turn(model, inputs: dict) -> tuple[torch.Tensor, torch.Tensor, DynamicCache]:
    """Ids and mask `(B, L)` of a prompt and its answer, all three tokens long, and the cache behind them."""
    cache = DynamicCache(config=model.config.text_config)
    ids = model.generate(**inputs, past_key_values=cache, **GREEDY)
    prompt = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    return ids, torch.cat([prompt, torch.ones(len(ids), 3, dtype=torch.long)], dim=1), cache


def go_on(model, ids: torch.Tensor, mask: torch.Tensor, **inputs) -> list[torch.Tensor]:
    """The logits of each token of the answer to a second turn."""
    turn = torch.tensor([SECOND_TURN] * len(ids))
    ids, mask = torch.cat([ids, turn], dim=1), torch.cat([mask, torch.ones_like(turn)], dim=1)
    options = GREEDY | {"return_dict_in_generate": True, "output_logits": True}
    return torch.stack(model.generate(ids, attention_mask=mask, **inputs, **options).logits, dim=1)


def alone(model, batch: dict, ids: torch.Tensor, mask: torch.Tensor, row: int) -> torch.Tensor:
    """A row of a conversation computed anew, without padding and without a cache."""
    ids = ids[row : row + 1, mask[row].bool()]
    return go_on(model, ids, torch.ones_like(ids), pixel_values=batch["pixel_values"][row : row + 1])[0]


def test_greedy_decoding_equals_the_whole_computed_anew(model, batch):
    row = row_of(batch, 1)
    ids = row["input_ids"]
    for token in generate(model, row)[0]:
        with torch.no_grad():
            logits = model(input_ids=ids, pixel_values=row["pixel_values"]).logits[0, -1]
        logits[list(model.config.placeholder_ids)] = -torch.inf
        assert logits.argmax() == token
        ids = torch.cat([ids, token[None, None]], dim=1)


def test_a_second_turn_on_a_kept_cache_equals_it_without(model, batch):
    """Of a left-padded batch, whose answers are of one length."""
    ids, mask, cache = first_turn(model, batch)
    found = go_on(model, ids, mask, past_key_values=cache)
    for row in range(2):
        torch.testing.assert_close(found[row], alone(model, batch, ids, mask, row), rtol=1e-4, atol=1e-5)


def test_beams_of_a_batch_are_those_of_each_row(model, batch):
    found = generate(model, batch, num_beams=3)
    for row in range(2):
        assert torch.equal(found[row : row + 1], generate(model, row_of(batch, row), num_beams=3))


def test_padding_between_tokens_changes_nothing_or_is_refused(model, batch):
    """Behind an answer that ended early. No layer of the last decoder reads it; the others would answer wrongly."""
    ids, mask, cache = first_turn(model, batch)
    ids[0, -2:], mask[0, -2:] = 0, 0
    if model.config.text_config.model_type in READS_PADDING:
        with pytest.raises(ValueError, match=r"padding between its tokens.*one row at a time"):
            go_on(model, ids, mask, past_key_values=cache)
        turn = torch.tensor([SECOND_TURN] * 2)
        mask = torch.cat([mask, torch.ones_like(turn)], dim=1)
        with pytest.raises(ValueError, match=f"{model.config.text_config.model_type}.*would read it"):
            model(input_ids=turn, attention_mask=mask, past_key_values=cache)
        return
    found = go_on(model, ids, mask, past_key_values=cache)
    for row in range(2):
        torch.testing.assert_close(found[row], alone(model, batch, ids, mask, row), rtol=1e-4, atol=1e-5)


def test_a_window_that_holds_the_whole_conversation_takes_padding():
    model = build(config_of("gemma3_text").__class__(**config_of("gemma3_text").to_dict() | {"sliding_window": 64}))
    batch = inputs_of(model, [20, 21, 22], [25] * 6)
    ids, mask, cache = first_turn(model, batch)
    ids[0, -2:], mask[0, -2:] = 0, 0
    found = go_on(model, ids, mask, past_key_values=cache)
    torch.testing.assert_close(found[0], alone(model, batch, ids, mask, 0), rtol=1e-4, atol=1e-5)
