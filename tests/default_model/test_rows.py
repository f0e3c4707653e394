"""Training rows of the default model are what the processor makes of the same conversation."""

from random import Random

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from conversion.default_model.dense import pixel_values
from conversion.default_model.questions import Turn
from conversion.default_model.rows import IGNORED, RowEncoder
from conversion.default_model.scenes import KINDS, scene_of
from conversion.default_model.tokenizer import ANSWERS
from conversion.default_model.train import DEFAULT_CHECKPOINT
from tests.default_model.fakes import fake_glyphs

TURNS = [
    Turn("What is this?", "top left", "any"),
    Turn("is THERE a cat", "yes", "any"),
    Turn('  odd "question": \n?', "3", "any"),
]


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(DEFAULT_CHECKPOINT)


@pytest.fixture
def encoder(processor):
    return RowEncoder(processor.tokenizer, 16, processor.num_query_tokens)


def conversation(turns: list[Turn], image: Image.Image) -> list[dict]:
    messages = []
    for turn in turns:
        question = [{"type": "text", "text": turn.question}]
        messages.append(
            {"role": "user", "content": question if messages else [{"type": "image", "image": image}, *question]}
        )
        messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
    return messages


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_row_equals_the_chat_template(processor, encoder, count):
    ids, labels = encoder.row(TURNS[:count])
    expected = processor.apply_chat_template(
        conversation(TURNS[:count], Image.new("RGB", (96, 96))),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
    )
    assert ids == expected["input_ids"][0].tolist()
    assert [label != IGNORED for label in labels] == expected["assistant_masks"][0].bool().tolist()
    assert all(label in (IGNORED, token) for label, token in zip(labels, ids, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_equal_the_image_processor(monkeypatch, processor, kind):
    fake_glyphs(monkeypatch)
    scene = scene_of(kind, Random(0))
    expected = processor.image_processor(images=[Image.fromarray(scene.image)], return_tensors="pt")["pixel_values"]
    assert torch.equal(pixel_values([scene]), expected)


def test_batches_are_padded_on_the_right(monkeypatch, encoder):
    fake_glyphs(monkeypatch)
    random = Random(1)
    batch = encoder.batch([scene_of(kind, random) for kind in KINDS], 4, random)
    assert batch.input_ids.shape == batch.attention_mask.shape == batch.labels.shape
    assert ((batch.input_ids == encoder.pad) == (batch.attention_mask == 0)).all()
    assert (batch.labels[batch.attention_mask == 0] == IGNORED).all()
    assert all(labels.shape == (len(KINDS), 144) for labels in batch.patches)


@pytest.mark.parametrize("text", ["héllo 你好 😀", "\n\n x\t", 'USER "quoted": 1,234.5', "İstanbul ﷺ \U0001f9a5", ""])
def test_every_text_comes_back(processor, text):
    assert processor.tokenizer.decode(processor.tokenizer.encode(text)) == text


def test_answers_are_one_token_a_word(processor):
    for answer in ANSWERS:
        assert len(processor.tokenizer.encode(f" {answer}")) == len(answer.split())


@pytest.mark.parametrize("text", ["hi", " hi", ":", "?", "1", "\n", "é"])
def test_headers_are_the_same_tokens_whatever_follows(processor, text):
    encode = processor.tokenizer.encode
    assert encode(f"</s>USER: {text}")[:3] == encode("</s>USER:")
    assert encode(f"<learnable> ASSISTANT: {text}")[:3] == encode("<learnable> ASSISTANT:")
