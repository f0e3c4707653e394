"""Under flash-attn 2 a left-padded ragged batch, whose queries EmbQ lets read its images, answers as under sdpa."""

import pytest
import torch
from transformers.utils import is_flash_attn_2_available, is_kernels_available

from tests.default_model.chats import answer, ask, encode, new_tokens
from tests.needs_gpu import GPU_MARKS
from transformers_flashsloth import FlashSlothForConditionalGeneration
from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT

HAS_FLASH = is_flash_attn_2_available() or is_kernels_available()
pytestmark = [*GPU_MARKS, pytest.mark.skipif(not HAS_FLASH, reason="needs the extra `flash-attn`")]

OPTIONS = {"max_new_tokens": 6, "do_sample": False}
# Of the largest logit; the rounding of bfloat16 alone is 2**-9.
TOLERANCE = 2**-6
HELLO = {"role": "user", "content": [{"type": "text", "text": "Hello"}]}
# One image, two in two turns, none, two in one turn.
CHATS = [[ask(0)], [ask(3), answer("guitar"), ask(7)], [HELLO], [ask(1, 2)]]


@pytest.fixture(scope="module")
def models() -> dict[str, FlashSlothForConditionalGeneration]:
    return {
        name: FlashSlothForConditionalGeneration.from_pretrained(
            DEFAULT_CHECKPOINT, dtype=torch.bfloat16, attn_implementation=name
        )
        .eval()
        .to("cuda")
        for name in ("sdpa", "flash_attention_2")
    }


def on_gpu(*chats: list[dict], **options) -> dict[str, torch.Tensor]:
    return {name: value.to("cuda") for name, value in encode(*chats, **options).items()}


@pytest.mark.parametrize("image_hd", [False, True])
def test_ragged_rows_answer_as_under_sdpa(models, image_hd):
    inputs = on_gpu(*CHATS, image_hd=image_hd)
    assert not inputs["attention_mask"][:, 0].all() and inputs["attention_mask"][:, -1].all()
    found, expected = (
        new_tokens(inputs, models[name].generate(**inputs, **OPTIONS)) for name in ("flash_attention_2", "sdpa")
    )
    assert found == expected


def test_logits_are_those_of_sdpa_wherever_there_is_no_padding(models):
    inputs = on_gpu(*CHATS)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        found, expected = (models[name](**inputs).logits[real].float() for name in ("flash_attention_2", "sdpa"))
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * expected.abs().max().item())


def test_rows_of_a_batch_answer_as_alone(models):
    model, inputs = models["flash_attention_2"], on_gpu(*CHATS)
    together = new_tokens(inputs, model.generate(**inputs, **OPTIONS))
    for chat, tokens in zip(CHATS, together, strict=True):
        single = on_gpu(chat)
        (alone,) = new_tokens(single, model.generate(**single, **OPTIONS))
        assert tokens[: len(alone)] == alone


def test_embq_reads_the_image_under_it(models):
    """Another image, other logits at the answer: what the queries found enters it."""
    model, inputs = models["flash_attention_2"], on_gpu([ask(0)])
    with torch.no_grad():
        seen = model(**inputs).logits[0, -1]
        unseen = model(**inputs | {"pixel_values": -inputs["pixel_values"]}).logits[0, -1]
    assert (seen - unseen).abs().max() > 0.1 * seen.abs().max()
