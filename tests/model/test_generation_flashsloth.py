import inspect

import pytest
import torch

from tests.golden_model import tiny_model
from tests.model.test_modeling_flashsloth import inputs_of
from transformers_flashsloth.model.generation_flashsloth import SuppressPlaceholders


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def generate(model, rows, **kwargs) -> list[list[int]]:
    kwargs = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None} | kwargs
    inputs = inputs_of(rows)
    tokens = model.generate(**inputs, **kwargs)
    return tokens[:, inputs["input_ids"].shape[1] :].tolist()


def test_images_are_encoded_once(model):
    calls = []
    handle = model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    generate(model, [0, 1], num_beams=3)
    handle.remove()
    assert len(calls) == 1


def test_beams_of_a_ragged_batch_equal_beams_of_single_rows(model):
    together = generate(model, [2, 1, 0], num_beams=3, num_return_sequences=2)
    alone = [sequence for row in (2, 1, 0) for sequence in generate(model, [row], num_beams=3, num_return_sequences=2)]
    assert together == alone


def test_several_sequences_a_row_all_read_their_rows_images(model):
    # With next to no temperature, samples are the greedy answer.
    sampled = generate(model, [1, 0], do_sample=True, temperature=1e-4, num_return_sequences=3)
    greedy = generate(model, [1, 0])
    assert sampled == [greedy[0]] * 3 + [greedy[1]] * 3


def test_without_cache_and_with_a_static_one(model):
    expected = generate(model, [0, 1])
    assert generate(model, [0, 1], use_cache=False) == expected
    assert generate(model, [0, 1], cache_implementation="static", disable_compile=True) == expected


def test_encoded_images_can_be_given(model):
    inputs = inputs_of([0])
    with torch.no_grad():
        images = model.get_image_features(inputs["pixel_values"])
    tokens = model.generate(
        input_ids=inputs["input_ids"],
        mm_encoder_outputs={"image": images},
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=None,
    )
    assert tokens[:, -6:].tolist() == generate(model, [0])


def test_an_answer_that_cannot_fit_the_context_is_refused_at_once(model):
    length = inputs_of([0])["input_ids"].shape[1]
    with pytest.raises(ValueError, match=f"`max_new_tokens` to at most {2048 - length}"):
        generate(model, [0], max_new_tokens=2048)


def test_chunked_prefill_is_refused(model):
    with pytest.raises(ValueError, match="without `prefill_chunk_size`"):
        generate(model, [0], prefill_chunk_size=8)


def test_what_generation_inspects_with_every_token_is_kept_and_true(model):
    suppress = SuppressPlaceholders([1], device="cpu")
    assert list(inspect.signature(suppress.__call__).parameters) == ["input_ids", "scores"]
    assert list(inspect.signature(model.forward).parameters)[:2] == ["input_ids", "pixel_values"]
    for function in (SuppressPlaceholders.__call__, type(model).forward):
        kept = vars(function)["__signature__"]
        assert list(kept.parameters) == list(inspect.signature(inspect.unwrap(function)).parameters)
