"""Grounding of the default model's training: where a question's answer is read from, and the loss that says so."""

from random import Random

import numpy as np
import pytest
import torch

from conversion.default_model.canvas import IMAGE_SIZE
from conversion.default_model.grounding import Grounding, grounding_loss, grounding_of, recorded_scores
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


def test_attention_goes_to_what_is_asked_about():
    turns = [Turn("", "cat", "corner", (0,)), Turn("", "yes", "present", (0, 1)), Turn("", "no", "present")]
    targets, share = grounding_of([two_things()] * 2, [turns, turns[:1]])
    assert targets.shape == (2, 3, GRID * GRID)
    assert targets.sum(-1).tolist() == [[1, 4, GRID * GRID - 4], [1, 0, 0]]
    assert targets[0, 0, 0] and not targets[0, 2, 0]
    assert (share == 1).all()


def test_to_count_a_share_of_it_goes_to_the_middles():
    turns = [Turn("", "2", "count", (0, 1)), Turn("", "1", "count", (1,)), Turn("", "0", "count")]
    targets, share = grounding_of([two_things()], [turns])
    assert targets.nonzero()[:, 1:].tolist() == [[0, 0], [0, GRID * (GRID - 1) - 1], [1, GRID * (GRID - 1) - 1]]
    torch.testing.assert_close(share, torch.tensor([[2 / 6, 1 / 5, 0.0]]))


def test_nothing_is_marked_where_nobody_knows():
    unknown = Scene("any", np.zeros((1, 1, 3)), [], None)
    assert not grounding_of([unknown], [[Turn("", "yes", "easy-vqa")]]).targets.any()


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


def test_the_loss_is_least_at_the_share():
    targets = torch.zeros(1, 2, 4, dtype=torch.bool)
    targets[0, 0, 0] = True  # the second run has none
    losses = {}
    for score in (-1.0, 0.0, 1.0):  # attention to the target of 0.11, 0.25 and 0.48
        scores = torch.zeros(1, 3, 2 * 5, 4)
        scores[..., 0] = score
        losses[score] = [grounding_loss(scores, Grounding(targets, torch.full((1, 2), share))) for share in (1, 0.25)]
    assert losses[0.0][0] == pytest.approx(np.log(4), rel=1e-5)
    assert losses[-1.0][0] > losses[0.0][0] > losses[1.0][0]
    assert losses[0.0][1] < min(losses[-1.0][1], losses[1.0][1])


def test_scores_are_recorded_inside_the_block_alone():
    attention = CrossAttention(8, 8, 2)
    states = torch.randn(1, 3, 8)
    with recorded_scores(attention) as scores:
        expected = attention.scores(states, states)
    attention.scores(states, states)
    assert len(scores) == 1 and torch.equal(scores[0], expected)
