"""Features that are kept are those of the same pixels, window and weights, whoever asks."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import DynamicCache

from tests.small_model import IMAGES_OF_ROWS, PAD, ROWS, inputs_of, small_model
from transformers_flashsloth.answering.features import FeatureStore, digest, with_features
from transformers_flashsloth.answering.kept_prefix import common_prefix
from transformers_flashsloth.answering.prompts import Prompt

OPTIONS = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD}


@pytest.fixture
def model():
    return small_model()


@pytest.fixture
def encoded(model):
    """Grows by the number of images that are encoded in a call."""
    seen = []
    model.model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(args[0] if args else kwargs["pixel_values"])), with_kwargs=True
    )
    return seen


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((count, 1, 3, 24, 24), generator=torch.Generator().manual_seed(seed))


def same(found, expected) -> None:
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output)


def test_any_order_and_repetition(model, encoded):
    store, pixels = FeatureStore(10**7), images(3)
    same(store.encode(model, pixels[[0, 0, 1]]), model.get_image_features(pixels[[0, 0, 1]]))
    assert encoded == [2, 3] and (store.hits, store.misses) == (1, 2)
    same(store.encode(model, pixels[[2, 1, 0, 2]]), model.get_image_features(pixels[[2, 1, 0, 2]]))
    assert encoded == [2, 3, 1, 4] and (store.hits, store.misses) == (4, 3)


def test_the_oldest_go_first_and_bytes_are_counted(model, encoded):
    store, pixels = FeatureStore(10**7), images(4)
    store.encode(model, pixels[:1])
    one = store.num_bytes
    outputs = model.get_image_features(pixels[:1])
    assert one == 4 * (outputs.last_hidden_state.numel() + outputs.pooler_output.numel())
    store = FeatureStore(3 * one - 1)
    for index in (0, 1, 0, 2):  # 1 was not asked for longest
        store.encode(model, pixels[index : index + 1])
    encoded.clear()
    same(store.encode(model, pixels[:1]), outputs)
    assert encoded == [] and len(store) == 2 and store.num_bytes == 2 * one
    store.encode(model, pixels[1:2])
    assert encoded == [1]
    all_at_once = FeatureStore(one)  # less than a request needs
    same(all_at_once.encode(model, pixels), model.get_image_features(pixels))
    assert all_at_once.num_bytes == one
    nothing = FeatureStore(one - 1)
    same(nothing.encode(model, pixels), model.get_image_features(pixels))
    assert nothing.num_bytes == 0 == len(nothing)


def test_windows_dtypes_and_pixels_tell_features_apart(model):
    store, pixels = FeatureStore(10**7), images(1)
    for window in (None, (6, 6), (2, 2), None):
        same(store.encode(model, pixels, window), model.get_image_features(pixels, pooling_window=window))
    assert store.misses == 3 and store.hits == 1
    changed = pixels.clone()
    changed[0, 0, 0, 0, 0] += 1e-6
    names = [digest(pixels[0]), digest(changed[0]), digest(pixels[0].double()), digest(pixels[0].reshape(3, 1, 24, 24))]
    assert len(set(names)) == 4 and digest(pixels[0].clone()) == names[0]
    before = store.misses
    store.encode(model.bfloat16(), pixels)
    assert store.misses == before + 1


def test_threads_that_ask_at_once_wait_for_one(model, encoded, monkeypatch):
    store, pixels = FeatureStore(10**7), images(3)
    expected = model.get_image_features(pixels)
    encoded.clear()
    encode = model.get_image_features
    monkeypatch.setattr(model, "get_image_features", lambda *a, **k: time.sleep(0.1) or encode(*a, **k))
    orders = [[0, 1], [1, 0], [2, 1], [0, 2], [1, 2, 0], [2], [0], [1]] * 2
    with ThreadPoolExecutor(len(orders)) as pool:
        found = list(pool.map(lambda order: store.encode(model, pixels[order]), orders))
    for order, outputs in zip(orders, found, strict=True):
        torch.testing.assert_close(outputs.pooler_output, expected.pooler_output[order])
        torch.testing.assert_close(outputs.last_hidden_state, expected.last_hidden_state[order])
    assert sum(encoded) == 3 == store.misses
    assert not store._coming


def test_a_failure_is_the_askers_own(model, monkeypatch):
    """Who waited for an image that another one failed with encodes it; nothing stays claimed."""
    store, pixels = FeatureStore(10**7), images(2)
    expected = model.get_image_features(pixels[:1])
    encode = model.get_image_features

    def fails_for_two(pixel_values, **kwargs):
        time.sleep(0.2)
        if len(pixel_values) == 2:
            raise MemoryError("too much")
        return encode(pixel_values, **kwargs)

    monkeypatch.setattr(model, "get_image_features", fails_for_two)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(store.encode, model, pixels)
        time.sleep(0.1)
        second = pool.submit(store.encode, model, pixels[:1])
        with pytest.raises(MemoryError):
            first.result()
        same(second.result(), expected)
    assert not store._coming
    same(store.encode(model, pixels[:1]), expected)


def test_weights_that_change_make_other_features(model):
    store, pixels = FeatureStore(10**7), images(1)
    store.encode(model, pixels)
    with torch.no_grad():
        model.model.multi_modal_projector.linear_1.weight.mul_(2)
    same(store.encode(model, pixels), model.get_image_features(pixels))
    other = small_model(num_query_tokens=2)
    with torch.no_grad():
        next(other.model.vision_tower.parameters()).mul_(2)
    same(store.encode(other, pixels), other.get_image_features(pixels))
    assert store.hits == 0


def test_adapters_that_are_switched_make_other_features(model):
    peft = pytest.importorskip("peft")
    store, pixels = FeatureStore(10**7), images(1)
    plain = model.get_image_features(pixels)
    config = peft.LoraConfig(target_modules=r".*vision_tower.*q_proj|.*multi_modal_projector.*linear_1", r=2)
    tuned = peft.get_peft_model(model, config)
    tuned.add_adapter("other", config)
    for parameter_name, parameter in tuned.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=1.0 if "other" in parameter_name else 0.5)
    tuned.eval()
    for _ in range(2):
        tuned.set_adapter("default")
        same(store.encode(tuned, pixels), tuned.get_image_features(pixels))
        tuned.set_adapter("other")
        same(store.encode(tuned, pixels), tuned.get_image_features(pixels))
        with tuned.disable_adapter():
            same(store.encode(tuned, pixels), plain)
    assert store.misses == 3 and store.hits == 3
    tuned.set_adapter("default")
    tuned.merge_adapter()
    same(store.encode(tuned, pixels), tuned.get_image_features(pixels))


@pytest.mark.parametrize("side", ["left", "right"])
def test_features_in_place_of_pixels(model, side):
    """The first public way: encoded once, in any batch, however that is padded."""
    inputs = inputs_of([0, 1, 2])
    expected = model.generate(**inputs, **OPTIONS)[:, inputs["input_ids"].shape[1] :]
    if side == "right":
        order = inputs["attention_mask"].argsort(dim=1, descending=True, stable=True)
        inputs |= {name: inputs[name].gather(1, order) for name in ("input_ids", "attention_mask")}
    features = with_features(model, inputs, FeatureStore(10**7))
    assert "pixel_values" not in features and features["mm_encoder_outputs"]["image"].pooler_output.shape[0] == 3
    found = model.generate(**features, **OPTIONS)[:, inputs["input_ids"].shape[1] :]
    assert found.tolist() == expected.tolist()
    row, pixels = ROWS[0], inputs["pixel_values"][: IMAGES_OF_ROWS[0]]
    alone = model.generate(input_ids=torch.tensor([row]), pixel_values=pixels, **OPTIONS)[:, len(row) :]
    assert alone.tolist() == expected[:1].tolist()


def test_a_prefix_in_place_of_positions(model):
    """The second public way: a cache of what prompts begin with, copied for each."""
    row, pixels = ROWS[0], inputs_of([0])["pixel_values"]
    prefix = row[:7]  # up to the newline behind the image
    cache = DynamicCache(config=model.config.text_config)
    with torch.no_grad():
        model(input_ids=torch.tensor([prefix]), pixel_values=pixels, past_key_values=cache)
    expected = model.generate(input_ids=torch.tensor([row]), pixel_values=pixels, **OPTIONS)
    found = model.generate(input_ids=torch.tensor([row]), past_key_values=cache, **OPTIONS)
    assert found.tolist() == expected.tolist()


def test_images_that_do_not_match_are_refused(model):
    inputs = inputs_of([0]) | {"pixel_values": images(2)}
    with pytest.raises(ValueError, match="do not match: 2 images"):
        with_features(model, inputs, FeatureStore(10**7))


def test_a_prefix_ends_where_questions_begin_and_images_differ(model):
    """Behind the newline of the last image that is the same, behind a query run; never inside of a question."""
    first, second = images(1), images(1, seed=1)

    def prompt(ids: list[int], pixels: torch.Tensor) -> Prompt:
        return Prompt(0, ids, pixels, tuple(map(digest, pixels)))

    row, longer = ROWS[0], [*ROWS[0], 24, *ROWS[1][-10:]]
    other = [*row[:8], 29, *row[9:]]  # another second word of the question
    assert common_prefix([prompt(row, first), prompt(other, first)], model.config) == 7
    assert common_prefix([prompt(row, first), prompt(other, second)], model.config) == 0
    assert common_prefix([prompt(row, first), prompt(longer, first)], model.config) == len(row) - 2
    assert common_prefix([prompt(row, first), prompt(row, first)], model.config) == len(row) - 2
