"""A kept cache whose rows are chosen, put in another order, padded or cut: each row goes on with its own images."""

import copy
import pickle

import pytest
import torch
from transformers import DynamicCache, QuantizedCache, StaticCache

from tests.golden_model import IMAGE, USER_PREFIX, pad, pixels, tiny_model
from tests.model.test_modeling_flashsloth import IMAGE_TURN, IMAGES_OF_ROWS, ROWS, RUN, inputs_of, without_dropout
from transformers_flashsloth.model.prompt_memory import PromptMemory

SECOND_TURN = [*USER_PREFIX, 70, 71, *RUN]
PREFIX = [32, 25, *IMAGE_TURN]
NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def logits(model, rows: list[list[int]], cache=None, side: str = "left", past_mask=None, **kwargs) -> torch.Tensor:
    """Logits behind the last token of each row; rows of another length are padded, as `generate` would place them."""
    mask = pad([[1] * len(row) for row in rows], side, value=0)
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    past = 0 if cache is None else int(cache.get_seq_length())
    if past:
        mask = torch.cat([torch.ones(len(rows), past, dtype=torch.long) if past_mask is None else past_mask, mask], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, past:]
    inputs = {"input_ids": pad(rows, side), "attention_mask": mask, "position_ids": positions}
    with torch.no_grad():
        found = model(**inputs, past_key_values=cache, **kwargs).logits
    return found[torch.arange(len(rows)), last]


def alone(model, row: list[int], *names: str) -> torch.Tensor:
    """The row by itself, without a cache before it."""
    return logits(model, [row], **({"pixel_values": pixels(*names)} if names else {}))[0]


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_images_matter_here(model):
    found = [alone(model, [*PREFIX, 10, *RUN, 317, *SECOND_TURN], name) for name in NAMES]
    assert (found[0] - found[1]).abs().max() > 1e-2 < (found[1] - found[2]).abs().max()


def kept(model, kind: str = "dynamic"):
    """The cache of three rows with an image each, behind their first turn."""
    if kind == "static":
        cache = StaticCache(config=model.config.text_config, max_cache_len=128)
    elif kind == "quantized":
        pytest.importorskip("optimum.quanto")
        cache = QuantizedCache("quanto", model.config.text_config, residual_length=256)
    else:
        cache = DynamicCache(config=model.config.text_config, offloading=False)
    rows = [[*PREFIX, 10 + index, *RUN, 317] for index in range(3)]
    logits(model, rows, cache, pixel_values=pixels(*NAMES))
    return cache, rows


CHOICES = {
    "batch_select_indices": (torch.tensor([2, 0]), [2, 0]),
    "reorder_cache": (torch.tensor([1, 2, 0]), [1, 2, 0]),
    "batch_repeat_interleave": (2, [0, 0, 1, 1, 2, 2]),
}


@pytest.mark.parametrize("kind", ["dynamic", "static", "quantized"])
@pytest.mark.parametrize("method", CHOICES)
def test_rows_keep_their_images(model, method, kind):
    if kind == "static" and method != "reorder_cache":
        pytest.skip("transformers has none for static caches")
    cache, rows = kept(model, kind)
    argument, order = CHOICES[method]
    getattr(cache, method)(argument)
    found = logits(model, [SECOND_TURN] * len(order), cache)
    for row, answer in zip(order, found, strict=True):
        same(answer, alone(model, [*rows[row], *SECOND_TURN], NAMES[row]))


def test_several_choices_one_after_another_also_over_copies(model):
    """Best of n: repeated, ordered, the best of each kept, copied, pickled; and a mask for indices."""
    cache, rows = kept(model)
    cache.batch_repeat_interleave(2)  # 0 0 1 1 2 2
    cache.reorder_cache(torch.tensor([5, 4, 3, 2, 1, 0]))  # 2 2 1 1 0 0
    cache = copy.deepcopy(cache)
    cache.batch_select_indices(torch.tensor([True, False, False, True, False, True]))  # 2 1 0
    cache = pickle.loads(pickle.dumps(cache))
    cache.batch_select_indices(torch.tensor([1, 2]))  # 1 0
    assert isinstance(cache, DynamicCache) and type(cache).__name__ == "DynamicCache"
    found = logits(model, [SECOND_TURN] * 2, cache)
    for row, answer in zip([1, 0], found, strict=True):
        same(answer, alone(model, [*rows[row], *SECOND_TURN], NAMES[row]))


def test_chosen_rows_get_further_images_and_are_chosen_again(model):
    cache, rows = kept(model)
    cache.reorder_cache(torch.tensor([2, 0, 1]))
    turn = [*USER_PREFIX, *IMAGE_TURN, 72, *RUN]
    logits(model, [turn] * 3, cache, pixel_values=pixels("d", "e", "f"))
    cache.batch_select_indices(torch.tensor([1]))
    found = logits(model, [SECOND_TURN], cache)
    same(found[0], alone(model, [*rows[0], *turn, *SECOND_TURN], "a", "e"))


def test_beams_are_followed(model):
    """After beam search the rows of the cache are beams, each with the images of its own prompt."""
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 4, "eos_token_id": None, "do_sample": False}
    inputs = inputs_of([1, 0])
    out = model.generate(**inputs, **options, return_dict_in_generate=True)
    memory = out.past_key_values.prompt_memory
    assert memory.rows is not None  # beams were put in order
    memory = memory.settled(6, IMAGE)
    features = model.get_image_features(inputs["pixel_values"]).last_hidden_state  # of b, c, a
    torch.testing.assert_close(memory.image_features, features[[0, 1, 0, 1, 0, 1, 2, 2, 2]])
    assert memory.input_ids.tolist() == inputs["input_ids"].repeat_interleave(3, 0).tolist()


def test_a_wrong_number_of_rows_is_refused(model):
    cache, _ = kept(model)
    cache.batch_select_indices(torch.tensor([2, 0]))
    with pytest.raises(ValueError, match="remembers a prompt of 2 rows, but 3 rows go on"):
        logits(model, [SECOND_TURN] * 3, cache)


# Where the cache ends, in a row of one image and its question; and what is new.
QUESTION = [*range(40, 46)]
CUTS = {"before the image": 2, "after the image": 11, "after its newline": 12, "after the queries": 12 + 6 + len(RUN)}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("cut", CUTS)
def test_padding_is_no_question(model, cut, side):
    """Cut points of the cache, sides of padding, ragged rows: as each row alone."""
    length = CUTS[cut]
    questions = [QUESTION, QUESTION[:2], QUESTION[:4]]
    wholes = [[*PREFIX, *question, *RUN] for question in questions]
    if cut == "after the queries":
        wholes = [[*PREFIX, *QUESTION, *RUN]] * 3
    past, new = [row[:length] for row in wholes], [row[length:] for row in wholes]
    if cut == "after the queries":
        new = [[*USER_PREFIX, *question, *RUN] for question in questions]
    images = pixels(*NAMES)
    behind = cut == "before the image"
    cache = DynamicCache(config=model.config.text_config)
    logits(model, past, cache, **({} if behind else {"pixel_values": images}))
    mask = torch.ones(3, length, dtype=torch.long)
    found = logits(model, new, cache, side, mask, **({"pixel_values": images} if behind else {}))
    for row in range(3):
        same(found[row], alone(model, [*past[row], *new[row]], NAMES[row]))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_at_every_turn(model, side):
    """Ragged first turns, ragged answers and ragged second turns, padded wherever a mask allows it."""
    first = [ROWS[0], ROWS[1], [*PREFIX, *QUESTION, *RUN]]
    names = [*IMAGES_OF_ROWS[0], *IMAGES_OF_ROWS[1], "d"]
    cache = DynamicCache(config=model.config.text_config)
    mask = pad([[1] * len(row) for row in first], "left", value=0)
    logits(model, first, cache, pixel_values=pixels(*names))
    turns = [[317, *USER_PREFIX, 70, *RUN], [317, 318, 319, *SECOND_TURN], [317, *USER_PREFIX, *QUESTION, *RUN]]
    found = logits(model, turns, cache, side, mask)
    images = [["a"], ["b", "c"], ["d"]]
    for row in range(3):
        same(found[row], alone(model, [*first[row], *turns[row]], *images[row]))


def test_a_static_cache_says_so_by_its_mask(model):
    """Its mask has four dimensions where upstream's generation has made it."""
    questions = [QUESTION, QUESTION[:2]]
    cache = StaticCache(config=model.config.text_config, max_cache_len=128)
    logits(model, [PREFIX] * 2, cache, pixel_values=pixels("a", "b"))
    new = [[*question, *RUN] for question in questions]
    prompt = pad([[*PREFIX, *row] for row in new], "left")
    inner = torch.cat([torch.tensor([PREFIX] * 2), pad(new, "left")], dim=1)
    mask = torch.cat([torch.ones(2, len(PREFIX), dtype=torch.long), pad([[1] * len(r) for r in new], "left", 0)], dim=1)
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "disable_compile": True}
    found = model.generate(input_ids=inner, attention_mask=mask, past_key_values=cache, **options)[:, inner.shape[1] :]
    whole_mask = pad([[1] * (len(PREFIX) + len(row)) for row in new], "left", 0)
    expected = model.generate(input_ids=prompt, attention_mask=whole_mask, pixel_values=pixels("a", "b"), **options)
    assert found.tolist() == expected[:, prompt.shape[1] :].tolist()


def test_a_cut_inside_the_question_is_refused(model):
    cache = DynamicCache(config=model.config.text_config)
    logits(model, [[*PREFIX, 40]] * 2, cache, pixel_values=pixels("a", "b"))
    with pytest.raises(ValueError, match="must enter the model together with its queries"):
        logits(model, [[41, *RUN], [41, 42, *RUN]], cache, "left", torch.ones(2, len(PREFIX) + 1, dtype=torch.long))


@pytest.mark.parametrize("behind", [0, 1])
def test_cropping_to_an_images_first_position(model, behind):
    """Right before an image it is forgotten; an image that is cut through is refused when it is asked about."""
    start = len(ROWS[1]) - 1 - ROWS[1][::-1].index(IMAGE) - 8  # of the second image
    assert ROWS[1][start] == IMAGE != ROWS[1][start - 1]
    cache = DynamicCache(config=model.config.text_config)
    logits(model, [ROWS[1]], cache, pixel_values=pixels("b", "c"))
    cache.crop(start + behind - len(ROWS[1]))
    if behind:
        memory = cache.prompt_memory.up_to(start + behind, IMAGE)
        assert memory.image_features.shape[0] == 2
        return
    rest = [*IMAGE_TURN, 20, *RUN]
    found = logits(model, [rest], cache, pixel_values=pixels("z"))
    same(found[0], alone(model, [*ROWS[1][:start], *rest], "b", "z"))


def test_memory_up_to_counts_first_positions():
    ids = torch.tensor([[5, 9, 9, 6, 9, 9]])
    memory = PromptMemory(ids, torch.arange(2.0)[:, None, None], 2)
    kept = [len(memory.up_to(length, 9).image_features) for length in range(1, 7)]
    assert kept == [0, 1, 1, 1, 2, 2]


class TestTrainingMode:
    """A model generates in training mode, too, right after `trainer.train()` and inside of GRPO and RLOO."""

    @pytest.fixture(scope="class")
    def training(self):
        return without_dropout(tiny_model())

    def test_images_are_encoded_once(self, training, model):
        inputs = inputs_of([0, 1, 2])
        calls = []
        handle = training.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
        options = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None}
        found = training.generate(**inputs, **options)
        handle.remove()
        assert len(calls) == 1 and training.training
        assert found.tolist() == model.generate(**inputs, **options).tolist()

    def test_text_alone_encodes_nothing(self, training):
        calls = []
        handle = training.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
        training.generate(**inputs_of([2]), max_new_tokens=4, eos_token_id=None)
        handle.remove()
        assert not calls

    @pytest.mark.parametrize("grad", [False, True])
    def test_a_kept_cache_keeps_its_images(self, training, model, grad):
        cache = DynamicCache(config=model.config.text_config)
        with torch.set_grad_enabled(grad):
            training(**inputs_of([0]), past_key_values=cache)
            found = training(input_ids=torch.tensor([[317, *SECOND_TURN]]), past_key_values=cache).logits[0, -1]
        same(found.detach(), alone(model, [*ROWS[0], 317, *SECOND_TURN], "a"))

    def test_a_decoding_step_with_gradients_encodes_nothing(self, training):
        cache = DynamicCache(config=training.config.text_config)
        training(**inputs_of([0]), past_key_values=cache)
        calls = []
        handle = training.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
        training(input_ids=torch.tensor([[317]]), past_key_values=cache)
        handle.remove()
        assert not calls

    def test_a_step_of_training_on_text_reaches_every_parameter(self, training):
        training.zero_grad()
        inputs = inputs_of([2])
        training(**inputs, labels=inputs["input_ids"]).loss.backward()
        without = [name for name, parameter in training.named_parameters() if parameter.grad is None]
        assert not without
