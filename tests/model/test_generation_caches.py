"""Caches of `generate` on the shipped default model: each kind, and conversations that go on over a kept one."""

import functools

import pytest
import torch
from transformers import DynamicCache, LogitsProcessorList, QuantizedCache, StaticCache

from tests.default_model.chats import ask, default_model, default_processor, encode, image_of, new_tokens
from tests.needs_gpu import GPU_MARKS

MODEL, PROCESSOR = default_model(), default_processor()
CONFIG = MODEL.config
EOS, PAD = CONFIG.text_config.eos_token_id, CONFIG.text_config.pad_token_id
OPTIONS = {"max_new_tokens": 6, "do_sample": False, "disable_compile": True, "return_dict_in_generate": True}
INPUTS = encode([ask(0)], [ask(3, 7)])


EXACT = {
    "dynamic": lambda: DynamicCache(config=CONFIG),
    "lazy": DynamicCache,
    "static": lambda: StaticCache(config=CONFIG, max_cache_len=400),
    "offloaded": lambda: DynamicCache(config=CONFIG, offloading=True),
    "offloaded_static": lambda: StaticCache(config=CONFIG, max_cache_len=400, offloading=True),
}
MARKS = {name: GPU_MARKS for name in EXACT if "offloaded" in name}  # upstream offloads from accelerators only
EXACT_NAMES = [pytest.param(name, marks=MARKS.get(name, ())) for name in EXACT]
PACKAGES = {"quanto": "optimum.quanto", "hqq": "hqq"}


@functools.cache
def default_answer() -> list[list[int]]:
    return new_tokens(INPUTS, MODEL.generate(**INPUTS, **OPTIONS).sequences)


def encodings(run) -> tuple:
    """What `run` returns, and how many images were encoded meanwhile."""
    seen = []
    handle = MODEL.model.vision_tower.register_forward_hook(lambda *call: seen.append(len(call[-1][0])))
    try:
        return run(), sum(seen)
    finally:
        handle.remove()


@pytest.mark.parametrize("name", [*EXACT_NAMES[2:], "dynamic", "sliding_window", "hybrid"])
def test_cache_implementations(name):
    result = MODEL.generate(**INPUTS, **OPTIONS, cache_implementation=name)
    assert new_tokens(INPUTS, result.sequences) == default_answer()


def turn(text: str, images: list[str]) -> str:
    return f"USER: {'<image>' * len(images)}{chr(10) if images else ''}{text}<learnable> ASSISTANT:"


class Talk:
    """Rows that talk with the model together; their answers end after so many tokens, and padding fills them up."""

    def __init__(self, cache):
        self.cache, self.rows, self.images = cache, None, None
        self.input_ids = self.mask = None

    def ask(self, questions: list[str], images: list[list[str]], lengths: list[int]):
        texts = [turn(question, shown) for question, shown in zip(questions, images, strict=True)]
        if self.input_ids is None:
            texts = [f"Be brief. {text}" for text in texts]
            self.rows, self.images = [[] for _ in texts], [[] for _ in texts]
        new = PROCESSOR(text=texts, images=images, padding=True, return_tensors="pt")
        self.images = [[*before, *shown] for before, shown in zip(self.images, images, strict=True)]
        ids, mask = new["input_ids"], new["attention_mask"]
        for row, tokens, real in zip(self.rows, ids, mask.bool(), strict=True):
            row += tokens[real].tolist()
        if self.input_ids is not None:
            ids, mask = torch.cat([self.input_ids, ids], dim=1), torch.cat([self.mask, mask], dim=1)

        pixels = {"pixel_values": new["pixel_values"]} if "pixel_values" in new else {}
        options = OPTIONS | {"logits_processor": ending(ids.shape[1], lengths), "output_logits": True}
        cache = {"past_key_values": self.cache}
        result, encoded = encodings(lambda: MODEL.generate(ids, attention_mask=mask, **pixels, **cache, **options))
        assert encoded == sum(map(len, images))

        answers = result.sequences[:, ids.shape[1] :]
        alone = [self.alone(i, lengths[i]) for i in range(len(lengths))]
        for i, (tokens, logits) in enumerate(alone):
            assert answers[i, : lengths[i]].tolist() == tokens
            for step in range(lengths[i]):
                torch.testing.assert_close(result.logits[step][i], logits[step][0], rtol=1e-3, atol=1e-3)
            self.rows[i] += tokens
        self.input_ids = result.sequences
        real = torch.arange(answers.shape[1]) < torch.tensor(lengths)[:, None]
        self.mask = torch.cat([mask, real.long()], dim=1)

    def alone(self, row: int, length: int) -> tuple[list[int], tuple[torch.Tensor, ...]]:
        """The whole conversation of a row computed anew, without padding."""
        ids, images = torch.tensor([self.rows[row]]), self.images[row]
        pixels = PROCESSOR.image_processor(images, return_tensors="pt") if images else {}
        options = OPTIONS | {"logits_processor": ending(ids.shape[1], [length]), "output_logits": True}
        result = MODEL.generate(ids, **pixels, **options)
        return result.sequences[0, ids.shape[1] :].tolist(), result.logits


def ending(prompt: int, lengths: list[int]) -> LogitsProcessorList:
    """Lets the answer of row i end after `lengths[i]` tokens, the last of them `</s>`."""

    def end(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ends = torch.tensor(lengths) <= input_ids.shape[1] - prompt + 1
        is_end = torch.arange(scores.shape[1]) == EOS
        return torch.where(ends[:, None] ^ is_end, -float("inf"), scores)

    return LogitsProcessorList([end])


@pytest.mark.parametrize("name", EXACT_NAMES)
def test_three_turns_of_ragged_rows_equal_each_row_recomputed(name):
    talk = Talk(EXACT[name]())
    fox, rocket, zoo, shapes = (image_of(example) for example in (0, 1, 3, 7))
    talk.ask(["What is this?", "Hello", "Which of both is larger?"], [[fox], [], [rocket, zoo]], [2, 5, 3])
    talk.ask(["Where is the panda?", "What color is the triangle?", "And now?"], [[zoo], [shapes], []], [4, 2, 3])
    talk.ask(["Why?", "Is there a fox?", "What is this?"], [[], [], [fox]], [3, 3, 2])


@pytest.mark.parametrize("backend", ["fp8", *PACKAGES])
def test_quantized_caches(backend):
    if backend in PACKAGES:
        pytest.importorskip(PACKAGES[backend])
        options = {"backend": backend, "nbits": 4 if backend == "quanto" else 8, "q_group_size": 32}
        options |= {"axis_key": 1, "axis_value": 1} if backend == "hqq" else {}
    else:
        options = {"backend": backend}
        try:
            QuantizedCache(config=CONFIG, **options)
        except ValueError:
            pytest.skip("transformers 5.19 has no fp8 cache")
    result = MODEL.generate(**INPUTS, **OPTIONS, cache_implementation="quantized", cache_config=options)
    # The first token is computed from exact keys and values.
    assert [row[0] for row in new_tokens(INPUTS, result.sequences)] == [row[0] for row in default_answer()]

    cache = QuantizedCache(config=CONFIG, **options)
    row = encode([ask(0)])
    first = MODEL.generate(**row, **OPTIONS, past_key_values=cache).sequences
    ids = torch.cat([first, PROCESSOR(text=turn("What is this?", []), return_tensors="pt")["input_ids"]], dim=1)
    options = OPTIONS | {"output_logits": True}
    recomputed = MODEL.generate(ids, pixel_values=row["pixel_values"], **options).logits[0]
    continued, encoded = encodings(lambda: MODEL.generate(ids, past_key_values=cache, **options).logits[0])
    assert encoded == 0
    assert torch.nn.functional.cosine_similarity(continued, recomputed).item() > 0.98


def test_a_static_cache_that_is_too_small_is_refused():
    cache = StaticCache(config=CONFIG, max_cache_len=INPUTS["input_ids"].shape[1] + 3)
    with pytest.raises(ValueError, match=r"static cache can hold is .*`max_new_tokens` to at most 4"):
        MODEL.generate(**INPUTS, **OPTIONS | {"max_new_tokens": 5}, past_key_values=cache)
    MODEL.generate(**INPUTS, **OPTIONS | {"max_new_tokens": 4}, past_key_values=cache)


@pytest.mark.parametrize("name", ["dynamic", "static"])
def test_a_reset_cache_begins_a_new_conversation(name):
    cache = EXACT[name]()
    MODEL.generate(**encode([ask(0)]), **OPTIONS, past_key_values=cache)
    if name == "static":
        cache.reset()
    else:
        cache.crop(-cache.get_seq_length())
    talk = Talk(cache)
    talk.ask(["Hello"], [[]], [3])
    talk.ask(["What is this?"], [[]], [3])
    talk.ask(["What is this?"], [[image_of(1)]], [3])
    talk.ask(["And now?"], [[]], [3])


def test_one_cached_image_serves_a_batch_of_questions():
    cache = DynamicCache(config=CONFIG)
    prefix = PROCESSOR(text="Be brief. USER: <image>\n", images=[image_of(3)], return_tensors="pt")
    with torch.no_grad():
        MODEL(**prefix, past_key_values=cache)
    cache.batch_repeat_interleave(2)
    questions = ["Where is the panda?<learnable> ASSISTANT:", "What is in the zoo?<learnable> ASSISTANT:"]
    new = PROCESSOR(text=questions, padding=True, return_tensors="pt")
    ids = torch.cat([prefix["input_ids"].repeat(2, 1), new["input_ids"]], dim=1)
    mask = torch.cat([torch.ones(2, prefix["input_ids"].shape[1]), new["attention_mask"]], dim=1).long()
    sequences = MODEL.generate(ids, attention_mask=mask, past_key_values=cache, **OPTIONS).sequences
    for row in range(2):
        whole = torch.cat([prefix["input_ids"][0], new["input_ids"][row][new["attention_mask"][row].bool()]])[None]
        alone = MODEL.generate(whole, pixel_values=prefix["pixel_values"], **OPTIONS).sequences
        answer = sequences[row, ids.shape[1] :][: alone.shape[1] - whole.shape[1]]
        assert answer.tolist() == alone[0, whole.shape[1] :].tolist()


def test_another_number_of_rows_is_refused():
    cache = DynamicCache(config=CONFIG)
    MODEL.generate(**INPUTS, **OPTIONS, past_key_values=cache)
    ids = torch.full((1, cache.get_seq_length() + 3), 50)
    with pytest.raises(ValueError, match="remembers a prompt of 2 rows, but 1 rows go on"):
        MODEL.generate(ids, past_key_values=cache, **OPTIONS)


def test_continuous_batching_is_refused():
    with pytest.raises(ValueError, match="cannot batch continuously"):
        MODEL.generate(**INPUTS, cache_implementation="paged")
    with pytest.raises(ValueError, match="cannot batch continuously"):
        MODEL.generate_batch(INPUTS["input_ids"].tolist())
