"""The server encodes an image once for all requests, and answers as if it did not."""

import json
import logging
import random
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from openai import APIStatusError

from tests.serving.test_server import EXAMPLES, chat_about, client_of, generated, serving_of
from transformers_flashsloth.answering.features import FeatureStore
from transformers_flashsloth.asking.conversation import Conversation

ASKED = ["What is this?", "What is in the bottom left corner?", "How many apples are there?", "Is there a fox?"]
WRONG = {
    "no image": chat_about("What?", "data:image/png;base64,bm8gaW1hZ2U="),
    "placeholder": chat_about("What is <image>?", "fox.png"),
    "no file": chat_about("What?", "nothing.png"),
    "no role": [{"content": "What?"}],
}


@pytest.fixture(scope="module")
def conversation() -> Conversation:
    return Conversation([], device="cpu")


@pytest.fixture(scope="module")
def pictures() -> list[str]:
    examples = json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))
    return sorted({example["image"] for example in examples})[:5]


@pytest.fixture
def encoded(conversation):
    """Grows by the number of images that the tower sees."""
    seen = []
    tower = conversation.model.model.vision_tower
    handle = tower.register_forward_hook(lambda *_, **__: seen.append(1))
    yield seen
    handle.remove()


def ask(client, messages: list[dict], **options) -> str | int:
    try:
        completion = client.chat.completions.create(model="flashsloth", messages=messages, max_tokens=12, **options)
    except APIStatusError as error:
        return error.status_code
    return completion.choices[0].message.content.strip()


@pytest.fixture(scope="module")
def expected(conversation, pictures) -> dict[tuple[str, str], str]:
    return {
        (name, question): generated(conversation, question, EXAMPLES / name, max_new_tokens=12)
        for name in pictures
        for question in ASKED
    }


def test_300_questions_about_5_images_with_wrong_ones_among_them(conversation, pictures, expected, encoded, caplog):
    choose = random.Random(0)
    questions = [(choose.choice(pictures), choose.choice(ASKED)) for _ in range(300)]
    wrong = {number: choose.choice([*WRONG.values()]) for number in range(0, 300, 7)}
    requests = [wrong.get(number) or chat_about(asked, name) for number, (name, asked) in enumerate(questions)]
    store = FeatureStore(10**8)
    with serving_of(conversation, EXAMPLES, store) as port, client_of(port) as client, ThreadPoolExecutor(4) as pool:
        caplog.set_level(logging.INFO, "uvicorn.error")
        found = list(pool.map(partial(ask, client), requests))
    for number, answer in enumerate(found):
        assert answer in (400, 422) if number in wrong else answer == expected[questions[number]]
    assert len(encoded) == 5 == store.misses
    assert store.hits == 300 - len(wrong) - 5
    assert "so far 252 of 257" in caplog.text


def test_the_same_image_at_once(conversation, pictures, expected, encoded):
    store = FeatureStore(10**8)
    with serving_of(conversation, EXAMPLES, store) as port, client_of(port) as client, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda question: ask(client, chat_about(question, pictures[0])), ASKED * 4))
    assert found == [expected[pictures[0], question] for question in ASKED] * 4
    assert len(encoded) == 1


def test_few_bytes_keep_few_images(conversation, pictures, expected, encoded):
    one = sum(part.numel() * 4 for part in _features(conversation, pictures[0]))
    encoded.clear()
    store = FeatureStore(2 * one)
    with serving_of(conversation, EXAMPLES, store) as port, client_of(port) as client:
        for name in [*pictures[:3], pictures[2], pictures[0]]:
            assert ask(client, chat_about(ASKED[0], name)) == expected[name, ASKED[0]]
    assert len(store) == 2 and store.num_bytes == 2 * one
    assert len(encoded) == 4  # the third was there once more, the first was not


def test_nothing_is_kept_where_nothing_may_be(conversation, pictures, expected, encoded):
    store = FeatureStore(0)
    with serving_of(conversation, EXAMPLES, store) as port, client_of(port) as client:
        for _ in range(2):
            assert ask(client, chat_about(ASKED[0], pictures[0])) == expected[pictures[0], ASKED[0]]
    assert len(encoded) == 2 and len(store) == 0 == store.num_bytes


def test_tokens_and_views_are_kept_apart(conversation, pictures, encoded):
    """A request may say how its images are read; features of one reading are not those of another."""
    store, readings = FeatureStore(10**8), [{}, {"visual_tokens": 4}, {"image_hd": True}]
    readings += [{"image_hd": True, "visual_tokens": 1}]
    messages = chat_about("What is in the bottom left corner?", pictures[0])
    with serving_of(conversation, EXAMPLES, store) as port, client_of(port) as client:
        prompts = [
            client.chat.completions.create(model="flashsloth", messages=messages, max_tokens=12, extra_body=reading)
            for reading in readings * 2
        ]
        assert ask(client, messages, extra_body={"visual_tokens": 5}) == 400
        assert ask(client, messages, extra_body={"visual_tokens": 0}) == 422
    used = [completion.usage.prompt_tokens - prompts[0].usage.prompt_tokens for completion in prompts]
    assert used == [0, 4 - 16, 4 * 16, 5 - 16] * 2
    texts = [completion.choices[0].message.content.strip() for completion in prompts]
    windows = [{}, {"pooling_window": 6}, {"image_hd": True}, {"image_hd": True, "pooling_window": 12}]
    path = EXAMPLES / pictures[0]
    alone = [generated(conversation, messages[0]["content"][-1]["text"], path, max_new_tokens=12, **w) for w in windows]
    assert texts == alone * 2
    assert store.misses == 4 and store.hits == 4


def _features(conversation, name: str):
    inputs = conversation.processor(images=str(EXAMPLES / name), text="<image>", return_tensors="pt")
    outputs = conversation.model.get_image_features(inputs["pixel_values"])
    return outputs.last_hidden_state, outputs.pooler_output
