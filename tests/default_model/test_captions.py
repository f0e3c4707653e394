"""Captions and descriptions: what they say of a scene is true, and descriptions can be read back."""

from random import Random

import numpy as np
import pytest

from conversion.default_model.captions import caption, described, description, f1
from conversion.default_model.scene import Scene, Thing
from conversion.default_model.scenes import KINDS, scene_of
from conversion.default_model.vocabulary import PLACES, plural
from tests.default_model.fakes import fake_glyphs

THIRD = 32


def scene(**things: tuple[str, str | None]) -> Scene:
    """A scene of things by place ("top_left"): name and colour."""
    owner = np.full((96, 96), -1)
    for index, place in enumerate(things):
        row, column = divmod(list(PLACES).index(place.replace("_", " ")), 3)
        owner[row * THIRD + 10 : row * THIRD + 20, column * THIRD + 10 : column * THIRD + 20] = index
    return Scene("several", np.zeros((1, 1, 3)), [Thing(*thing) for thing in things.values()], owner)


def test_a_description_goes_in_reading_order():
    shown = scene(right=("glasses", None), middle=("star", "red"), top_left=("airplane", None))
    text = "An airplane in the top left corner, a red star in the middle and some glasses on the right."
    assert description(shown) == text
    assert described(text) == {("airplane", "top left"): 1, ("red star", "middle"): 1, ("glasses", "right"): 1}
    assert description(scene(top=("cat", None))) == "A cat at the top."


def test_where_a_place_is_not_clear_there_is_no_description():
    shown = scene(middle=("cat", None))
    shown.owner = np.roll(shown.owner, THIRD // 2, axis=1)  # the middle of the cat lies on the edge of a third
    assert shown.places() == [None] and description(shown) is None
    assert description(Scene("official", np.zeros((1, 1, 3)), [], None)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_description_can_be_read_back(monkeypatch, kind):
    fake_glyphs(monkeypatch)
    for seed in range(60):
        shown = scene_of(kind, Random(seed))
        if text := description(shown):
            said = described(text)
            assert said.total() == len(shown.things)
            assert set(said) == {
                (thing.words, place) for thing, place in zip(shown.things, shown.places(), strict=True)
            }


def test_f1_counts_pairs():
    truth = "A cat at the top and a dog in the middle."
    assert f1(truth, truth) == 1
    assert f1("A cat at the top.", truth) == pytest.approx(2 / 3)
    assert f1("A dog at the top and a cat in the middle.", truth) == 0
    assert f1("cat", truth) == f1("", truth) == 0
    assert f1("A cat at the top, a cat at the top and a dog in the middle.", truth) == pytest.approx(4 / 5)


@pytest.mark.parametrize("kind", KINDS)
def test_captions_name_everything_and_only_true_places(monkeypatch, kind):
    fake_glyphs(monkeypatch)
    for seed in range(60):
        shown = scene_of(kind, Random(seed))
        text = caption(shown, Random(seed))
        assert "\n" not in text
        for thing in shown.things:
            assert thing.name in text.lower() or plural(thing.name) in text.lower()
        true = {(thing.words, place) for thing, place in zip(shown.things, shown.places(), strict=True)}
        assert set(described(text)) <= true


def test_captions_have_many_wordings(monkeypatch):
    fake_glyphs(monkeypatch)
    shown = scene_of("corners", Random(1))
    assert len({caption(shown, Random(seed)) for seed in range(200)}) > 60
