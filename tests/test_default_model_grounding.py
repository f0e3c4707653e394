"""Grounding of the default model's training: where a question's answer is read from, and the loss that says so."""

from random import Random

import numpy as np
import pytest
import torch

from conversion.default_model.canvas import IMAGE_SIZE
from conversion.default_model.grounding import grounding_loss, grounding_targets, recorded_scores
from conversion.default_model.questions import Turn, questions_about
from conversion.default_model.scenes import GRID, KINDS, PATCH_SIZE, Scene, Thing, scene_of
from tests.default_model_fakes import fake_glyphs
from transformers_flashsloth.embedded_query import CrossAttention


@pytest.fixture(autouse=True)
def glyphs(monkeypatch):
    fake_glyphs(monkeypatch)


def two_things() -> Scene:
    """A cat on the first patch, a dog on the three patches of the last column's end."""
    owner = np.full((IMAGE_SIZE, IMAGE_SIZE), -1)
    owner[:PATCH_SIZE, :PATCH_SIZE] = 0
    owner[-3 * PATCH_SIZE :, -PATCH_SIZE:] = 1
    return Scene("any", np.zeros((1, 1, 3)), [Thing("cat"), Thing("dog")], owner)


def test_all_queries_look_at_what_is_asked_about():
    turns = [Turn("", "cat", "corner", (0,)), Turn("", "yes", "present", (0, 1)), Turn("", "no", "present")]
    targets = grounding_targets([two_things()] * 2, [turns, turns[:1]])
    assert targets.shape == (2, 3, 9, GRID * GRID)
    assert (targets == targets[:, :, :1]).all(), "the same for every query"
    assert targets[:, :, 0].sum(-1).tolist() == [[1, 4, GRID * GRID - 4], [1, 0, 0]]
    assert targets[0, 0, 0, 0] and not targets[0, 2, 0, 0]


def test_to_count_each_query_looks_at_its_part_of_the_picture():
    turns = [Turn("", "2", "count", (0, 1)), Turn("", "1", "count", (1,)), Turn("", "0", "count")]
    targets = grounding_targets([two_things()], [turns])[0]  # (R, Q, 144)
    background = GRID * GRID - 4
    assert targets[0].sum(-1).tolist() == [1, *[background] * 7, 3]
    assert targets[1].sum(-1).tolist() == [*[background] * 8, 3]
    assert targets[2].sum(-1).tolist() == [background] * 9
    found = (targets & ~targets[2]).any(-1).sum(-1)
    assert found.tolist() == [int(turn.answer) for turn in turns]


def test_nothing_is_marked_where_nobody_knows():
    unknown = Scene("any", np.zeros((1, 1, 3)), [], None)
    assert not grounding_targets([unknown], [[Turn("", "yes", "easy-vqa")]]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_read_from_what_they_name(kind):
    random = Random(5)
    for _ in range(40):
        scene = scene_of(kind, random)
        for turn in questions_about(scene, random):
            things = [scene.things[index] for index in turn.about]
            if turn.family in ("name", "corner", "shape", "colour") and turn.answer != "nothing":
                assert turn.answer in (things[0].name, things[0].colour)
            if turn.family == "where":
                assert things[0].corner == turn.answer
            if turn.family == "count":
                assert len(things) == int(turn.answer)
            if turn.family == "present" and turn.answer == "yes":
                assert things


def test_the_loss_is_the_attention_missed():
    targets = torch.zeros(1, 2, 5, 4, dtype=torch.bool)
    targets[0, 0, :, :2] = True  # the second run has none
    even = torch.zeros(1, 3, 2 * 5, 4)
    assert grounding_loss(even, targets) == pytest.approx(np.log(2), rel=1e-5)
    focused = even.clone()
    focused[..., 0] = 50.0
    assert grounding_loss(focused, targets) < 1e-5


def test_scores_are_recorded_inside_the_block_alone():
    attention = CrossAttention(8, 8, 2)
    states = torch.randn(1, 3, 8)
    with recorded_scores(attention) as scores:
        expected = attention.scores(states, states)
    attention.scores(states, states)
    assert len(scores) == 1 and torch.equal(scores[0], expected)
