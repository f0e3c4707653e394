"""Ragged batches on the shipped default model: each row answers as it does on its own."""

import pytest
import torch

from tests.default_model.chats import QUESTIONS, answer, ask, default_model, encode, new_tokens

OPTIONS = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
# How far logits in bfloat16 may be from one another, in units of the largest logit; its rounding alone is 2**-9.
BFLOAT16_TOLERANCE = 2**-5
# Most are nearer than this.
USUAL = 2**-6


def conversation(number: int) -> list[dict]:
    """One to three turns with none to three images, all twelve ways in a dozen numbers."""
    turns, examples = 1 + number % 3, [(number * 3 + k) % 10 for k in range(number // 3 % 4)]
    chat = []
    for turn in range(turns):
        asked = QUESTIONS[(number + turn) % 10]
        chat += [ask(*examples[turn::turns], question=asked["question"]), answer(asked["answer"])]
    return chat[:-1]


@pytest.mark.parametrize(("rows", "image_hd"), [(1, False), (2, False), (5, True), (32, False)])
def test_rows_of_a_batch_equal_single_rows(rows, image_hd):
    model, chats = default_model(), [conversation(number + 5) for number in range(rows)]
    inputs = encode(*chats, image_hd=image_hd)
    together = new_tokens(inputs, model.generate(**inputs, **OPTIONS).sequences)
    for chat, tokens in zip(chats, together, strict=True):
        single = encode(chat, image_hd=image_hd)
        (alone,) = new_tokens(single, model.generate(**single, **OPTIONS).sequences)
        padding = model.config.text_config.pad_token_id
        assert tokens == alone + [padding] * (len(tokens) - len(alone))


def test_rows_in_bfloat16():
    """
    Sums in another order round to other numbers in bfloat16: a row of the shipped model, alone or in a batch, is up to
    1/50 of its largest logit away from float32, in which rows are equal (above). So logits may differ by the tolerance,
    and a row may take another token where its two best logits are no further apart than twice that; what follows then
    is not compared.
    """
    model, chats = default_model(torch.bfloat16), [conversation(number) for number in range(16)]
    inputs = encode(*chats)
    together = model.generate(**inputs, **OPTIONS)
    clear, compared, far = 0, 0, 0
    for row, chat in enumerate(chats):
        single = encode(chat)
        alone = model.generate(**single, **OPTIONS)
        for step, token in enumerate(new_tokens(single, alone.sequences)[0]):
            expected, logits = alone.logits[step][0], together.logits[step][row]
            tolerance = BFLOAT16_TOLERANCE * expected.abs().max()
            torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance.item())
            far += int((logits - expected).abs().max() > USUAL * expected.abs().max())
            best, second = expected.topk(2).values
            compared += 1
            clear += int(best - second > 2 * tolerance)
            same = token == together.sequences[row, inputs["input_ids"].shape[1] + step].item()
            assert same or best - second <= 2 * tolerance
            if not same:
                break
    assert clear > compared / 2
    assert far <= compared / 8
