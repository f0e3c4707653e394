"""
A key-value cache has two names upstream: `past_key_values`, and since transformers 5.24 `cache`. Ours takes both, and
calls upstream by the one that it does not warn of.
"""

import contextlib
import logging
import warnings

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.utils import logging as upstream_logging

from tests.default_model.chats import answer, ask, default_model, default_processor, encode
from transformers_flashsloth.model.prompt_memory import CACHE

MODEL, PROCESSOR = default_model(), default_processor()
CONFIG = MODEL.config
NAMES = ("past_key_values", "cache")
OPTIONS = {"max_new_tokens": 4, "do_sample": False, "disable_compile": True}
FIRST, BOTH_TURNS = encode([ask(0)]), encode([ask(0), answer("fox"), ask(3)])
BATCH = encode([ask(0)], [ask(0), answer("fox"), ask(3, 7)], [ask(question="Hello there")])
RIGHT = encode([ask(0)], [ask(0), answer("fox"), ask(3, 7)], padding_side="right")


def dynamic() -> DynamicCache:
    return DynamicCache(config=CONFIG)


@pytest.mark.parametrize("name", NAMES)
class TestBothNames:
    def test_of_generate(self, name):
        cache = dynamic()
        MODEL.generate(**FIRST, **OPTIONS, **{name: cache})
        cache.crop(FIRST["input_ids"].shape[1] - cache.get_seq_length())  # the second turn has an answer of its own
        encoded = []
        handle = MODEL.model.vision_tower.register_forward_hook(lambda *call: encoded.append(len(call[-1][0])))
        found = MODEL.generate(**BOTH_TURNS, **OPTIONS, **{name: cache})
        handle.remove()
        assert found.tolist() == MODEL.generate(**BOTH_TURNS, **OPTIONS).tolist()
        assert encoded == [1]  # the first turn's image was in the cache

    @pytest.mark.parametrize("model", [MODEL, MODEL.model], ids=["with head", "without"])
    def test_of_forward(self, model, name):
        cache, length = dynamic(), FIRST["input_ids"].shape[1]
        second = {"input_ids": BOTH_TURNS["input_ids"][:, length:], "pixel_values": BOTH_TURNS["pixel_values"][1:]}
        with torch.no_grad():
            first = model(**FIRST, **{name: cache})
            found = model(**second, **{name: cache})[0]
            expected = model(**BOTH_TURNS)[0][:, length:]
        assert first[CACHE] is cache and getattr(first, CACHE) is cache
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    def test_of_prepare_inputs_for_generation(self, name):
        cache = dynamic()
        with torch.no_grad():
            MODEL(**FIRST, **{name: cache})
        inputs = MODEL.prepare_inputs_for_generation(FIRST["input_ids"], next_sequence_length=1, **{name: cache})
        assert inputs[CACHE] is cache and inputs["input_ids"].shape == (1, 1)
        assert not (set(NAMES) - {CACHE}) & inputs.keys()


CALLS = {
    "generate": lambda **caches: MODEL.generate(**FIRST, **OPTIONS, **caches),
    "forward": lambda **caches: MODEL(**FIRST, **caches),
    "prepare_inputs_for_generation": lambda **caches: MODEL.prepare_inputs_for_generation(FIRST["input_ids"], **caches),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_two_caches_are_refused(call):
    with torch.no_grad(), pytest.raises(ValueError, match="two names of one argument: pass one of them"):
        call(cache=dynamic(), past_key_values=dynamic())


@contextlib.contextmanager
def nothing_said():
    """Fails if upstream says, by Python's warnings or in its log, that something goes away."""
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = upstream_logging.get_logger("transformers")
    # What was said once, by a test before, is said again.
    type(logger).warning_once.cache_clear()
    logger.addHandler(handler)
    verbosity = upstream_logging.get_verbosity()
    upstream_logging.set_verbosity_warning()  # whatever a test before has set
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)
            warnings.simplefilter("error", DeprecationWarning)
            yield
    finally:
        logger.removeHandler(handler)
        upstream_logging.set_verbosity(verbosity)
    assert not [message for message in said if "past_key_values" in message]


def kept(cache) -> torch.Tensor:
    MODEL.generate(**FIRST, **OPTIONS, **{CACHE: cache})
    return MODEL.generate(**BOTH_TURNS, **OPTIONS, **{CACHE: cache})


def sampled(**options) -> torch.Tensor:
    return MODEL.generate(**FIRST, **OPTIONS | options)


ANSWERS = {
    "greedy": lambda: MODEL.generate(**BATCH, **OPTIONS),
    "sampled": lambda: sampled(do_sample=True, num_return_sequences=2),
    "beams": lambda: MODEL.generate(**BATCH, **OPTIONS, num_beams=2),
    "padded on the right": lambda: MODEL.generate(**RIGHT, **OPTIONS),
    "assisted": lambda: sampled(assistant_model=MODEL),
    "prompt lookup": lambda: sampled(prompt_lookup_num_tokens=2),
    "guided": lambda: sampled(guidance_scale=1.5),
    "static": lambda: sampled(cache_implementation="static"),
    "without a cache": lambda: sampled(use_cache=False),
    "a kept cache": lambda: kept(dynamic()),
    "a kept static cache": lambda: kept(StaticCache(config=CONFIG, max_cache_len=400)),
    "explained": lambda: MODEL.explain(FIRST["input_ids"], FIRST["pixel_values"]),
}


@pytest.mark.parametrize("answer_it", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_warns_of_nothing(answer_it):
    with nothing_said():
        answer_it()


@pytest.mark.skipif(CACHE == "past_key_values", reason="upstream has one name only")
def test_a_warning_would_be_noticed():
    with pytest.raises(FutureWarning), nothing_said():
        MODEL.model.language_model(input_ids=torch.tensor([[5]]), past_key_values=dynamic())
    with pytest.raises(AssertionError), nothing_said(), torch.no_grad():
        outputs = MODEL(**FIRST)
        assert outputs.past_key_values is outputs.cache
