"""Grounding of the default model's training: where a question's answer is read from, and the loss that says so."""

from random import Random

import numpy as np
import pytest
import torch

from conversion.default_model.canvas import IMAGE_SIZE
from conversion.default_model.grounding import (
    ENOUGH,
    MAX_OVERLAP,
    Grounding,
    attention_shares,
    grounding_loss,
    grounding_of,
    overlap,
    overlap_loss,
    recorded_scores,
)
from conversion.default_model.questions import Turn, questions_about
from conversion.default_model.scene import GRID, PATCH_SIZE, Scene, Thing
from conversion.default_model.scenes import KINDS, scene_of
from tests.default_model.fakes import fake_glyphs
from transformers_flashsloth.model.embedded_query import CrossAttention


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
    looked_at, watched, counted, numbers = grounding_of([two_things()] * 2, [turns, turns[:1]])
    assert looked_at.shape == (2, 3, GRID * GRID)
    assert looked_at.sum(-1).tolist() == [[1, 4, GRID * GRID - 4], [1, 0, 0]]
    assert looked_at[0, 0, 0] and not looked_at[0, 2, 0]
    assert not watched.any() and not counted.any() and not numbers.any()


def test_to_count_each_ninth_offers_a_middle_or_the_ground():
    turns = [Turn("", "2", "count", (0, 1)), Turn("", "1", "count", (1,)), Turn("", "0", "count")]
    looked_at, watched, counted, numbers = grounding_of([two_things()], [turns])
    assert numbers.tolist() == [[[1, *[0] * 7, 1], [*[0] * 8, 1], [0] * 9]]
    assert looked_at.sum(-1).tolist() == [[4, 3, GRID * GRID - 4]] and not watched.any()
    cat, dog = [0], [GRID * row - 1 for row in range(GRID - 2, GRID + 1)]
    ground = (GRID // 3) ** 2
    for run, (first, last) in enumerate([(1, 3), (ground - 1, 3), (ground - 1, ground - 3)]):
        assert counted[0, run].sum(-1).tolist() == [first, *[ground] * 7, last]
    assert counted[0, 0, 0].nonzero().flatten().tolist() == cat
    assert counted[0, 1, 8].nonzero().flatten().tolist() == dog
    assert not counted[0, 2, 8, dog].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_ninth_offers_the_middles_that_lie_in_it_and_else_the_ground(kind):
    random = Random(7)
    rows, columns = np.divmod(np.arange(GRID * GRID), GRID)
    ninth_of = rows * 3 // GRID * 3 + columns * 3 // GRID
    for _ in range(40):
        scene = scene_of(kind, random)
        shown, middles = scene.covered() >= 0.3, scene.middles()
        counted = grounding_of([scene], [[Turn("", "", "count", tuple(range(len(scene.things))))]]).counted[0, 0]
        for ninth, offered in enumerate(counted.numpy()):
            assert offered.any() and (ninth_of[offered] == ninth).all()
            inside = middles[ninth_of[middles] == ninth]
            ground = (ninth_of == ninth) & ~shown.any(-1)
            if len(inside):
                assert offered[inside].all()
                steps = [np.maximum(abs(rows - rows[m]), abs(columns - columns[m])) for m in inside]
                assert (np.min(steps, 0)[offered] <= 1).all()
            elif ground.any():
                assert (offered == ground).all()


def test_nothing_is_marked_where_nobody_knows():
    unknown = Scene("any", np.zeros((1, 1, 3)), [], None)
    assert not any(part.any() for part in grounding_of([unknown], [[Turn("", "yes", "easy-vqa")]]))


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
                assert scene.places()[turn.about[0]] == turn.answer
            if turn.family == "count":
                assert len(things) == int(turn.answer)
                numbers = grounding_of([scene], [[turn]]).numbers[0, 0]
                assert numbers.shape == (9,) and numbers.sum() == int(turn.answer)
            if turn.family == "present" and turn.answer == "yes":
                assert things


def looking_at(*patches: int) -> torch.Tensor:
    """Maps of queries, or shares of heads, that look at one patch of four each, (n, 4)."""
    return torch.eye(4)[list(patches)]


def nowhere(*, watched: int = 4, counted: int = 4) -> Grounding:
    """Two runs of which nothing is known."""
    masks = [torch.zeros(1, 2, *part, 4, dtype=torch.bool) for part in ((), (watched,), (counted,))]
    return Grounding(*masks, numbers=torch.zeros(1, 2, 9, dtype=torch.long))


def test_nearly_all_attention_goes_to_what_is_asked_about():
    grounding = nowhere()
    grounding.looked_at[0, 0, 0] = True  # the second run has none
    assert grounding.asked.tolist() == [[True, False]]

    def loss(*patches: int) -> float:
        return grounding_loss(looking_at(*patches)[:, None].expand(1, 2, 4, 5, 4), grounding).item()

    assert loss(0, 0, 0, 0) == 0
    assert loss(0, 0, 1, 2) == pytest.approx(np.log(ENOUGH / 0.5), rel=1e-5)


def test_each_query_watches_its_own_part():
    grounding = nowhere(watched=2)
    grounding.watched[0, 1, 0, 1] = grounding.watched[0, 1, 1, 2] = True
    assert grounding.asked.tolist() == [[False, True]]
    maps = torch.stack([looking_at(3, 3, 3), looking_at(1, 2, 3)])[None]  # (1, R=2, Q=3, 4)
    shares = maps[:, :, :, None].expand(-1, -1, -1, 5, -1)
    assert grounding_loss(shares, grounding).item() == pytest.approx(0.0, abs=1e-6)
    assert grounding_loss(shares[:, :, [1, 0, 2]], grounding) > 10


def test_heads_of_the_last_query_count_a_part_each():
    grounding = nowhere(counted=2)
    grounding.counted[0, 1, 0, 1] = grounding.counted[0, 1, 1, 2] = True
    shares = looking_at(1, 2, 3).expand(1, 2, 2, 3, 4).clone()  # (1, R=2, Q=2, H=3, 4)
    shares[:, 0], shares[:, :, 0] = 0.25, 0.25  # other runs and queries may look anywhere
    assert grounding_loss(shares, grounding).item() == pytest.approx(0.0, abs=1e-6)
    assert grounding_loss(shares[:, :, :, [1, 0, 2]], grounding) > 10
    assert grounding_loss(shares[:, :, [1, 0]], grounding) > 1


@pytest.mark.parametrize("num_queries", [1, 4])
def test_fewer_queries_describe_together_and_count_as_well(num_queries):
    turns = [[Turn("", "2", "count", (0, 1)), Turn("", "a cat and a dog", "describe", (0, 1))]]
    nine, fewer = grounding_of([two_things()], turns), grounding_of([two_things()], turns, num_queries)
    assert (nine.counted == fewer.counted).all() and nine.counted[0, 0].any() and not nine.counted[0, 1].any()
    assert nine.watched.any(-1).sum(-1).tolist() == [[0, 9]] and nine.looked_at.sum(-1).tolist() == [[4, 0]]
    assert fewer.looked_at.sum(-1).tolist() == [[4, 4]] and not fewer.watched.any()
    shares = attention_shares(torch.randn(1, 12, 2 * num_queries, GRID * GRID), runs=2)
    assert grounding_loss(shares, fewer) > 0


def test_shares_are_those_of_each_query_and_head():
    scores = torch.randn(1, 3, 2 * 5, 4)
    shares = attention_shares(scores, runs=2)
    assert shares.shape == (1, 2, 5, 3, 4)
    torch.testing.assert_close(shares.sum(-1), torch.ones(1, 2, 5, 3))
    torch.testing.assert_close(shares[0, 1, 4, 2], scores[0, 2, 9].softmax(-1))


def test_overlap_is_one_for_equal_maps_and_nothing_for_different_ones():
    assert overlap(looking_at(1, 1, 1)).item() == pytest.approx(1)
    assert overlap(looking_at(0, 1, 2)).item() == pytest.approx(0)
    assert overlap(looking_at(1, 1, 2)).item() == pytest.approx(1 / 3)
    maps = torch.stack([looking_at(1, 1, 1), looking_at(0, 1, 2)])[None]
    assert overlap_loss(maps, torch.tensor([[True, False]])).item() == pytest.approx(1 - MAX_OVERLAP)
    assert overlap_loss(maps, torch.tensor([[False, True]])).item() == 0


def test_where_nothing_is_known_nothing_is_lost():
    assert grounding_loss(torch.rand(1, 2, 5, 6, 4).softmax(-1), nowhere()) == 0
    assert overlap_loss(torch.rand(1, 2, 5, 4).softmax(-1), nowhere().asked) == 0


def test_scores_are_recorded_inside_the_block_alone():
    attention = CrossAttention(8, 8, 2)
    states = torch.randn(1, 3, 8)
    with recorded_scores(attention) as scores:
        expected = attention.scores(states, states)
    attention.scores(states, states)
    assert len(scores) == 1 and torch.equal(scores[0], expected)
