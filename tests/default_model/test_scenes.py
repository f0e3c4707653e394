"""Scenes and questions of the default model's training: drawn as they say, asked about truly."""

from random import Random

import numpy as np
import pytest

from conversion.default_model import wordings
from conversion.default_model.canvas import IMAGE_SIZE, shape_mask
from conversion.default_model.questions import questions_about, restyled
from conversion.default_model.scene import COLOUR_LABELS, GRID, LABELS, PATCH_SIZE, UNLABELLED, Scene, Thing
from conversion.default_model.scenes import KINDS, scene_of
from conversion.default_model.vocabulary import COLOURS, CORNERS, EMOJI, SHAPES, plural, with_article
from tests.default_model.fakes import fake_glyphs


@pytest.fixture(autouse=True)
def glyphs(monkeypatch):
    fake_glyphs(monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_random_state_draws_the_same_scene(kind):
    first, second = scene_of(kind, Random(3)), scene_of(kind, Random(3))
    assert np.array_equal(first.image, second.image) and first.things == second.things
    assert first.image.shape == (IMAGE_SIZE, IMAGE_SIZE, 3) and first.image.dtype == np.uint8


@pytest.mark.parametrize("kind", KINDS)
def test_every_thing_is_visible_and_labelled(kind):
    for seed in range(30):
        scene = scene_of(kind, Random(seed))
        names, colours, centres = scene.patch_labels()
        assert names.shape == colours.shape == centres.shape == (GRID * GRID,)
        assert centres.sum() == len(scene.things)
        assert {LABELS[name] for name in names if name > 0} <= {thing.name for thing in scene.things}
        assert {COLOUR_LABELS[colour] for colour in colours if colour > 0} <= {thing.colour for thing in scene.things}
        for index in range(len(scene.things)):
            assert (scene.owner == index).sum() > PATCH_SIZE**2 / 2


def test_patches_hardly_touched_are_unlabelled_and_so_are_colours_of_emoji():
    owner = np.full((IMAGE_SIZE, IMAGE_SIZE), -1)
    owner[:PATCH_SIZE, : PATCH_SIZE + 1] = 0
    labels = Scene("single", np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3)), [Thing("cat")], owner).patch_labels()
    assert labels.names[:3].tolist() == [LABELS.index("cat"), UNLABELLED, 0]
    assert labels.colours[:3].tolist() == [UNLABELLED, UNLABELLED, 0]
    assert labels.centres[:3].tolist() == [1, 0, 0]


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_fill_their_box_and_differ(shape):
    mask = shape_mask(shape, 48, 48, 0)
    assert mask.shape == (48, 48) and mask.max() > 0.9
    assert mask[:6].max() > 0.3 and mask[-6:].max() > 0.3
    others = [shape_mask(other, 48, 48, 0) for other in SHAPES if other not in (shape, "rectangle", "square")]
    assert all(np.abs(mask - other).mean() > 0.05 for other in others)


def test_things_in_corners_lie_in_their_quarter():
    for seed in range(50):
        scene = scene_of("corners", Random(seed))
        for index, thing in enumerate(scene.things):
            rows, columns = np.nonzero(scene.owner == index)
            vertical = "bottom" if rows.mean() >= IMAGE_SIZE / 2 else "top"
            horizontal = "right" if columns.mean() >= IMAGE_SIZE / 2 else "left"
            assert thing.corner == f"{vertical} {horizontal}"


def asked_about(scene: Scene) -> dict[str, str]:
    """Every question that 200 tries ask about a scene, in lower case without its mark, and the answer."""
    turns = [turn for seed in range(200) for turn in questions_about(scene, Random(seed))]
    answers = {turn.question.lower().rstrip("?."): turn.answer for turn in turns}
    assert all(answers[turn.question.lower().rstrip("?.")] == turn.answer for turn in turns), "one truth a question"
    return answers


def test_answers_about_shapes_are_true():
    things = [Thing("circle", "red"), Thing("circle", "blue"), Thing("star", "red"), Thing("heart", "green")]
    answers = asked_about(Scene("shapes", np.zeros((1, 1, 3)), things, None))
    assert answers["what color is the star"] == answers["what is the colour of the star"] == "red"
    assert answers["what shape is the green thing"] == "heart"
    assert {answer for question, answer in answers.items() if "a blue circle" in question} == {"yes"}
    assert {answer for question, answer in answers.items() if "a green circle" in question} == {"no"}
    assert {answer for question, answer in answers.items() if "a red shape" in question} == {"yes"}
    assert answers["how many shapes are there"] == "4"
    assert "what color is the circle" not in answers, "two circles, two colours"
    assert "what shape is the red thing" not in answers


def test_answers_about_emoji_are_true():
    things = [Thing("cat", None, "top left"), Thing("dog", None, "bottom right"), Thing("bus", None, "top right")]
    answers = asked_about(Scene("corners", np.zeros((1, 1, 3)), things, None))
    assert answers["what is in the top left corner"] == "cat"
    assert answers["what is in the bottom left corner"] == "nothing"
    assert answers["where is the dog"] == "bottom right"
    assert answers["is there a bus"] == "yes"

    answers = asked_about(Scene("counting", np.zeros((1, 1, 3)), [Thing("cat")] * 3 + [Thing("dog")], None))
    assert answers["how many cats are there"] == "3"
    assert answers["how many things are there"] == "4"

    answers = asked_about(Scene("single", np.zeros((1, 1, 3)), [Thing("apple")], None))
    assert answers["what is this"] == answers["name the emoji"] == "apple"
    assert answers["is this an apple"] == "yes"


def test_easy_vqa_answers_are_true():
    answers = asked_about(Scene("easy-vqa", np.zeros((1, 1, 3)), [Thing("circle", "teal")], None))
    assert answers["what shape is present"] == "circle"
    assert answers["what is the color of the circle"] == "teal"
    assert answers["is there not a teal shape"] == answers["is no circle present"] == "no"
    assert answers["does the image not contain a red shape"] == answers["is a circle present"] == "yes"


def test_easy_vqa_wordings_are_the_official_ones():
    easy_vqa = pytest.importorskip("easy_vqa")
    official = set(easy_vqa.get_train_questions()[0])
    for thing in ("circle", "teal shape"):
        for wording in wordings.EASY_VQA_PRESENT + wordings.EASY_VQA_ABSENT:
            assert wording.format(thing=thing) in official
    assert {wording.format(shape="shape") for wording in wordings.EASY_VQA_COLOUR} <= official
    assert set(wordings.EASY_VQA_SHAPE) <= official


def test_people_type_as_they_like():
    styles = {restyled("Is it a cat?", Random(seed)) for seed in range(100)}
    assert styles == {"Is it a cat?", "is it a cat?", "is it a cat", "IS IT A CAT?", "Is it a cat"}


def test_grammar():
    assert [plural(name) for name in ("cat", "bus", "cherries", "fish")] == ["cats", "buses", "cherries", "fish"]
    assert [with_article(name) for name in ("cat", "apple", "unicorn", "scissors")] == [
        "a cat",
        "an apple",
        "a unicorn",
        "scissors",
    ]


def test_names_are_many_and_mean_one_thing():
    assert len(EMOJI) >= 100
    names = [*EMOJI, *SHAPES, *COLOURS, *CORNERS]
    assert len(set(names)) == len(names)
