"""PEFT's learned prompts, which stand before a row or in its cache, and come into `generate` from outside."""

import copy

import pytest
import torch
from transformers import DynamicCache

from tests.default_model.chats import answer, ask, default_model, encode

peft = pytest.importorskip("peft")

MODEL = default_model()
INPUTS = encode([ask(0), answer("fox"), ask(3, 7)])
NEVER = [MODEL.config.text_config.eos_token_id, *MODEL.config.placeholder_ids]
OPTIONS = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": NEVER}
KINDS = {
    "prompt tuning": peft.PromptTuningConfig,
    "p-tuning": peft.PromptEncoderConfig,
    "prefix tuning": peft.PrefixTuningConfig,
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def model(request):
    model = peft.get_peft_model(copy.deepcopy(MODEL), request.param(num_virtual_tokens=3, task_type="CAUSAL_LM")).eval()
    for parameter in model.prompt_encoder.parameters():
        torch.nn.init.normal_(parameter, std=5.0)
    return model


@torch.no_grad()
def one_by_one(model) -> tuple[torch.Tensor, torch.Tensor]:
    """A row `(1, L)` that goes on with the likeliest token, and its logits, computed anew from its start each time."""
    ids, mask, logits = INPUTS["input_ids"], INPUTS["attention_mask"], []
    for _ in range(OPTIONS["max_new_tokens"]):
        logits.append(model(input_ids=ids, attention_mask=mask, pixel_values=INPUTS["pixel_values"]).logits[:, -1])
        token = logits[-1].index_fill(-1, torch.tensor(NEVER), float("-inf")).argmax(-1, keepdim=True)
        ids, mask = torch.cat([ids, token], dim=1), torch.cat([mask, torch.ones_like(token)], dim=1)
    return ids, torch.cat(logits)


@pytest.mark.parametrize("kept", [False, True])
def test_a_prompt_enters_once(model, kept):
    cache = {"past_key_values": DynamicCache(config=MODEL.config)} if kept else {}
    found = model.generate(**INPUTS, **OPTIONS, **cache, return_dict_in_generate=True, output_logits=True)
    ids, logits = one_by_one(model)
    assert found.sequences.tolist() == ids.tolist()
    torch.testing.assert_close(torch.cat(found.logits), logits, rtol=1e-4, atol=1e-4)
    assert (logits - one_by_one(MODEL)[1]).abs().max() > 0.1  # the prompt says something
    if kept and model.peft_type != "PREFIX_TUNING":  # for which PEFT makes a cache of its own
        assert cache["past_key_values"].get_seq_length() == 3 + ids.shape[1] - 1


def test_the_model_answers_as_before_without_it(model):
    model.generate(**INPUTS, **OPTIONS)
    cache = DynamicCache(config=MODEL.config)
    with model.disable_adapter():
        found = model.get_base_model().generate(**INPUTS, **OPTIONS, past_key_values=cache)
    assert found.tolist() == MODEL.generate(**INPUTS, **OPTIONS).tolist()
    assert cache.get_seq_length() == found.shape[1] - 1
