"""Lesions take away what they say and give it back; the table has all of it; where a model looks is measured."""

import copy
from contextlib import nullcontext

import pytest
import torch

from conversion.default_model.answering import Answerer
from conversion.default_model.held_out import FAMILIES, held_out
from conversion.default_model.lesion_table import Lesioned, markdown, mean_of_seven
from conversion.default_model.lesions import LESIONS, average_pooling, equal_queries, mean_tokens, zero_tokens
from conversion.default_model.looking import Looking, _windows, looking
from tests.default_model.chats import default_model, default_processor
from tests.default_model.fakes import fake_glyphs


@pytest.fixture
def ask():
    return Answerer(copy.deepcopy(default_model()), default_processor())


@pytest.fixture
def items(monkeypatch):
    fake_glyphs(monkeypatch)
    return held_out("corner", ("google",), 3)


@torch.no_grad()
def logits(ask: Answerer, items, lesion=nullcontext) -> torch.Tensor:
    with lesion() if lesion is nullcontext else lesion(ask.model):
        return ask.model(**ask.inputs(items)).logits[:, -1]


@pytest.mark.parametrize("name", [name for name in LESIONS if name != "nothing"])
def test_a_lesion_changes_the_model_and_gives_it_back(ask, items, name):
    before = logits(ask, items)
    assert not torch.allclose(logits(ask, items, LESIONS[name]), before)
    assert torch.equal(logits(ask, items), before)


@torch.no_grad()
def test_lesions_take_away_what_they_say(ask, items):
    pixels = ask.inputs(items)["pixel_values"]
    tokens = ask.model.get_image_features(pixels).pooler_output
    with mean_tokens(ask.model):
        flat = ask.model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(flat, tokens.mean(1, keepdim=True).expand_as(tokens))
    with zero_tokens(ask.model):
        assert not ask.model.get_image_features(pixels).pooler_output.any()
    projector = ask.model.model.multi_modal_projector
    patches = ask.model.get_image_features(pixels).last_hidden_state
    with average_pooling(ask.model):
        pooled = projector.pooling(patches)
    means = patches.unflatten(1, (4, 3, 4, 3)).mean((2, 4)).flatten(1, 2)
    torch.testing.assert_close(pooled, means)
    with equal_queries(ask.model):
        weight = ask.model.model.query_tokens.weight
        assert torch.equal(weight, weight[:1].expand_as(weight))


def test_where_a_model_looks(ask, items, monkeypatch):
    whole = looking(ask, items)
    assert 0 <= whole.overlap <= 1 and 0 <= whole.kept <= 1 and 0 < whole.covered < 1
    with average_pooling(ask.model):
        averaged = looking(ask, items)
    assert averaged.kept == pytest.approx(averaged.covered, abs=1e-5)
    with equal_queries(ask.model):
        assert looking(ask, items).overlap > whole.overlap


def test_windows_hold_their_own_patches():
    grid = torch.arange(36).view(1, 6, 6)
    windows = _windows(grid, (3, 2))
    assert windows.shape == (6, 6)
    assert windows[1].tolist() == [2, 3, 8, 9, 14, 15]


def test_the_table_has_every_lesion_family_and_number():
    scores = {name: {family: 0.5 for family in FAMILIES} for name in (*LESIONS, "blind")}
    scores["EmbQ"]["count"] = 0.125
    text = markdown(Lesioned(1000, scores, {family: Looking(0.25, float("nan"), 0.5) for family in FAMILIES}))
    assert all(f"| {name} |" in text for name in scores) and all(f" {family} |" in text for family in FAMILIES)
    assert "12.5%" in text and "0.25" in text and "1,000 questions a family" in text
    assert mean_of_seven(scores["EmbQ"]) == pytest.approx((6 * 0.5 + 0.125) / 7)
