import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache

from tests.golden_model import EOS, IMAGE, PAD, QUERY, USER_PREFIX, pixels, tiny_model
from tests.model.test_modeling_flashsloth import IMAGE_TURN, IMAGES_OF_ROWS, ROWS, RUN, inputs_of

SECOND_TURN = [*USER_PREFIX, 70, 71, *RUN]
SECOND_TURN_WITH_IMAGE = [*USER_PREFIX, *IMAGE_TURN, 72, *RUN]
OPTIONS = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def go_on(inputs: dict, tokens: torch.Tensor, turn: list[int]) -> dict:
    """The conversation so far, its answer and another turn."""
    answered = torch.cat([tokens, torch.tensor([turn] * len(tokens))], dim=1)
    new = answered.shape[1] - inputs["input_ids"].shape[1]
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, new), value=1)
    return {"input_ids": answered, "attention_mask": mask}


def images(names_of_rows: list[list[str]]) -> torch.Tensor:
    return pixels(*[name for names in names_of_rows for name in names])


@pytest.mark.parametrize("turn", [SECOND_TURN, SECOND_TURN_WITH_IMAGE])
@pytest.mark.parametrize("static", [False, True])
def test_going_on_equals_recomputing(model, turn, static):
    rows = [0, 2, 1]
    inputs = inputs_of(rows)
    cache = StaticCache(config=model.config, max_cache_len=256) if static else DynamicCache(config=model.config)
    options = OPTIONS | {"disable_compile": True}
    first = model.generate(**inputs, **options, past_key_values=cache)
    following = go_on(inputs, first.sequences, turn)

    names = [IMAGES_OF_ROWS[row] + (["new"] if IMAGE in turn else []) for row in rows]
    recomputed = model.generate(**following, pixel_values=images(names), **options, output_logits=True)
    encoded = []
    handle = model.model.vision_tower.register_forward_hook(lambda *call: encoded.append(len(call[-1][0])))
    continued = model.generate(
        **following, pixel_values=images(names), past_key_values=cache, **options, output_logits=True
    )
    handle.remove()
    assert encoded == ([3] if IMAGE in turn else [])
    assert continued.sequences.tolist() == recomputed.sequences.tolist()
    torch.testing.assert_close(continued.logits[0], recomputed.logits[0], rtol=1e-4, atol=1e-4)


def logits(model, ids: list[int], cache: DynamicCache, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), past_key_values=cache, **kwargs).logits[0, -1]


def test_a_cached_image_serves_several_questions(model):
    prefix = [32, 25, *IMAGE_TURN]
    cache = DynamicCache(config=model.config)
    logits(model, prefix, cache, pixel_values=pixels("a"))
    for question in ([10, 11], [20]):
        whole = logits(model, [*prefix, *question, *RUN], DynamicCache(config=model.config), pixel_values=pixels("a"))
        torch.testing.assert_close(logits(model, [*question, *RUN], copy.deepcopy(cache)), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("split", [0, 1, 2, 3])
def test_a_header_may_be_split(model, split):
    answer, header = [317], SECOND_TURN[:split]
    cache = DynamicCache(config=model.config)
    logits(model, ROWS[0], cache, pixel_values=pixels("a"))
    for token in [*answer, *header]:  # as if decoded: nobody keeps these ids
        logits(model, [token], cache)
    continued = logits(model, SECOND_TURN[split:], cache)
    whole = [*ROWS[0], *answer, *SECOND_TURN]
    expected = logits(model, whole, DynamicCache(config=model.config), pixel_values=pixels("a"))
    torch.testing.assert_close(continued, expected, rtol=1e-4, atol=1e-4)


def test_cropping_forgets_the_images_behind(model):
    cache = DynamicCache(config=model.config)
    logits(model, ROWS[1], cache, pixel_values=pixels("b", "c"))
    first_turn = ROWS[1].index(EOS)
    cache.crop(first_turn - len(ROWS[1]))
    continued = logits(model, SECOND_TURN, cache)
    whole = [*ROWS[1][:first_turn], *SECOND_TURN]
    expected = logits(model, whole, DynamicCache(config=model.config), pixel_values=pixels("b"))
    torch.testing.assert_close(continued, expected, rtol=1e-4, atol=1e-4)


def test_tokens_decoded_in_place_of_cropped_ones_are_new(model):
    cache = DynamicCache(config=model.config)
    logits(model, ROWS[1], cache, pixel_values=pixels("b", "c"))
    first_turn = ROWS[1].index(EOS)
    cropped = len(ROWS[1]) - first_turn
    cache.crop(-cropped)
    decoded = [60 + step for step in range(cropped)]
    for token in decoded:  # the cache is as long as before
        logits(model, [token], cache)
    continued = logits(model, SECOND_TURN, cache)
    whole = [*ROWS[1][:first_turn], *decoded, *SECOND_TURN]
    expected = logits(model, whole, DynamicCache(config=model.config), pixel_values=pixels("b"))
    torch.testing.assert_close(continued, expected, rtol=1e-4, atol=1e-4)


def test_repeated_rows_see_their_own_images(model):
    cache, prefix = DynamicCache(config=model.config), [32, 25, *IMAGE_TURN]
    with torch.no_grad():
        model(input_ids=torch.tensor([prefix, prefix]), past_key_values=cache, pixel_values=pixels("a", "b"))
    cache.batch_repeat_interleave(2)
    questions = [[10, *RUN], [20, *RUN], [10, *RUN], [21, *RUN]]
    with torch.no_grad():
        continued = model(input_ids=torch.tensor(questions), past_key_values=cache).logits[:, -1]
    for row, (name, question) in enumerate(zip("aabb", questions, strict=True)):
        fresh = DynamicCache(config=model.config)
        expected = logits(model, [*prefix, *question], fresh, pixel_values=pixels(name))
        torch.testing.assert_close(continued[row], expected, rtol=1e-4, atol=1e-4)


def test_a_question_in_two_pieces_is_refused(model):
    cache = DynamicCache(config=model.config)
    logits(model, [32, 25, *IMAGE_TURN, 10], cache, pixel_values=pixels("a"))
    with pytest.raises(ValueError, match="must enter the model together with its queries"):
        logits(model, [11, *RUN], cache)


def test_other_views_in_a_later_turn_are_refused(model):
    cache = DynamicCache(config=model.config)
    logits(model, ROWS[0], cache, pixel_values=pixels("a"))
    turn = [*USER_PREFIX, *[IMAGE] * 45, 198, 72, *[QUERY] * 9, PAD]
    with pytest.raises(ValueError, match="takes 45 tokens, those of the earlier turns 9"):
        logits(model, turn, cache, pixel_values=pixels("b", views=5))
