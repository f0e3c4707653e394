"""Training rows of the default model are what the processor makes of the same conversation."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from conversion.default_model.dense import pixel_values
from conversion.default_model.questions import Turn, questions_about
from conversion.default_model.rows import IGNORED, RowEncoder, _answer_weights
from conversion.default_model.scene import Scene
from conversion.default_model.scenes import KINDS, scene_of
from conversion.default_model.tokenizer import ANSWERS
from conversion.default_model.train import DEFAULT_CHECKPOINT
from conversion.default_model.vocabulary import CORNERS, PLACES
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
    return RowEncoder(processor.tokenizer, processor.num_query_tokens)


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
    ids, labels = encoder.conversation(TURNS[:count], tokens=16)
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


def test_a_caption_stands_between_image_and_queries(encoder):
    ids, labels = encoder.caption("A cat.", tokens=4)
    said, newline = encoder.pieces("A cat."), encoder.pieces("\n")
    assert ids == [*encoder.image * 4, *said, *encoder.queries, *newline]
    assert labels == [*[IGNORED] * 4, *said, *[IGNORED] * len(encoder.queries), *newline]


def _length(encoder: RowEncoder, turn: Turn) -> int:
    """Labels of an answer and its end."""
    return len(encoder.pieces(f" {turn.answer}")) + 1


def scenes_of_all_kinds(random: Random) -> list[Scene]:
    return [scene_of(kind, random) for kind in KINDS]


def test_batches_are_padded_on_the_right(monkeypatch, encoder):
    fake_glyphs(monkeypatch)
    random = Random(1)
    patches = torch.randn(len(KINDS), 144, 8)
    for batch in (
        encoder.questions(scenes_of_all_kinds(random), patches, 4, 16, random),
        encoder.captions(scenes_of_all_kinds(random), patches, 16, random),
    ):
        assert batch.input_ids.shape == batch.attention_mask.shape == batch.labels.shape == batch.weights.shape
        assert ((batch.input_ids == encoder.pad) == (batch.attention_mask == 0)).all()
        assert (batch.labels[batch.attention_mask == 0] == IGNORED).all()
        assert ((batch.weights > 0) == (batch.labels != IGNORED)).all()
        assert torch.equal(batch.patches, patches)


def test_captions_leave_out_what_nobody_knows(monkeypatch, encoder):
    fake_glyphs(monkeypatch)
    random = Random(1)
    unknown = Scene("any", np.zeros((1, 1, 3)), [], None)
    patches = torch.randn(2, 144, 8)
    batch = encoder.captions([unknown, scene_of("single", random)], patches, 16, random)
    assert len(batch.input_ids) == 1 and torch.equal(batch.patches, patches[1:])


def test_each_token_of_a_long_answer_counts_less():
    labels = torch.tensor([[IGNORED, 5, 5, 5, 5, IGNORED, 7], [7, IGNORED, 5, 5, IGNORED, IGNORED, IGNORED]])
    weights = _answer_weights(labels)
    half, less = 0.5, 0.5**0.5
    expected = [[0, half, half, half, half, 0, 1], [1, 0, less, less, 0, 0, 0]]
    torch.testing.assert_close(weights, torch.tensor(expected))
    twice = _answer_weights(labels, [[1, 1], [1, 2]])
    torch.testing.assert_close(twice, torch.tensor(expected) * torch.tensor([[1.0] * 7, [1, 1, 2, 2, 1, 1, 1]]))


def test_answers_of_a_family_can_count_more(monkeypatch, encoder):
    fake_glyphs(monkeypatch)
    scenes, patches = [scene_of("counting", Random(seed)) for seed in range(4)], torch.randn(4, 144, 8)
    once = encoder.questions(scenes, patches, 6, 16, Random(3))
    twice = encoder.questions(scenes, patches, 6, 16, Random(3), worth={"count": 2.0})
    assert torch.equal(once.labels, twice.labels)
    random = Random(3)
    turns = [encoder.turns(scene, 6, random) for scene in scenes]
    is_count = [[turn.family == "count" for turn in row] for row in turns]
    assert any(map(any, is_count)) and not all(map(all, is_count))
    for row, families in enumerate(is_count):
        ratios = (twice.weights[row] / once.weights[row])[once.labels[row] != IGNORED]
        expected = []
        for turn, counts in zip(turns[row], families, strict=True):
            expected += [2.0 if counts else 1.0] * _length(encoder, turn)
        assert ratios.tolist() == expected


def test_a_description_comes_last(monkeypatch, encoder):
    fake_glyphs(monkeypatch)
    for seed in range(20):
        families = [turn.family for turn in encoder.turns(scene_of("corners", Random(seed)), 9, Random(seed))]
        assert families.index("describe") == len(families) - 1


def test_numbers_can_be_asked_for_more_often_and_in_capitals(monkeypatch):
    fake_glyphs(monkeypatch)
    scenes = scenes_of_all_kinds(Random(0)) * 5
    for number, scene in enumerate(scenes):
        families = {turn.family for turn in questions_about(scene, Random(number))}
        (turn,) = RowEncoder.turns(scene, 1, Random(number), counts_first=1.0)
        assert (turn.family == "count") == ("count" in families)
        plain, loud = (RowEncoder.turns(scene, 6, Random(number), capitals=share) for share in (0.0, 1.0))
        assert [replace(turn, question=turn.question.upper()) for turn in plain] == loud
        assert all(turn.question.isupper() for turn in loud)
    some = [RowEncoder.turns(scene, 6, Random(0), counts_first=1.0, capitals=0.5) for scene in scenes]
    assert 0.3 < sum(turn.question.isupper() for turns in some for turn in turns) / sum(map(len, some)) < 0.7
    assert any(turns[0].family != "count" for turns in some if any(turn.family == "count" for turn in turns))


@pytest.mark.parametrize("text", ["héllo 你好 😀", "\n\n x\t", 'USER "quoted": 1,234.5', "İstanbul ﷺ \U0001f9a5", ""])
def test_every_text_comes_back(processor, text):
    assert processor.tokenizer.decode(processor.tokenizer.encode(text)) == text


def test_answers_are_one_token_a_word(processor):
    # The weights that ship were trained before places other than corners had a name.
    for answer in set(ANSWERS) - (set(PLACES) - set(CORNERS)):
        assert len(processor.tokenizer.encode(f" {answer}")) == len(answer.split())


@pytest.mark.parametrize("text", ["hi", " hi", ":", "?", "1", "\n", "é"])
def test_headers_are_the_same_tokens_whatever_follows(processor, text):
    encode = processor.tokenizer.encode
    assert encode(f"</s>USER: {text}")[:3] == encode("</s>USER:")
    assert encode(f"<learnable> ASSISTANT: {text}")[:3] == encode("<learnable> ASSISTANT:")
