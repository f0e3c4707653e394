"""The default model's evaluation: unseen pictures, a fair blind baseline, a table."""

import numpy as np
import pytest

from conversion.default_model.evaluate import Result, measure, table
from conversion.default_model.held_out import FAMILIES, BlindBaseline, Item, held_out, mean_score
from conversion.default_model.marked import write_between_markers
from conversion.default_model.questions import Turn
from tests.default_model.fakes import fake_glyphs


def test_the_blind_baseline_knows_the_most_common_answer_to_a_question():
    turns = [Turn("Is it red?", "no", "colour")] * 2 + [
        Turn("is it red", "yes", "colour"),
        Turn("Which?", "teal", "colour"),
    ]
    blind = BlindBaseline(turns)
    assert blind.answer(Turn("IS IT RED?", "yes", "colour")) == "no"
    assert blind.answer(Turn("which", "red", "colour")) == "teal"
    assert blind.answer(Turn("Never asked?", "red", "colour")) == "no"


def test_measure_counts_exact_answers():
    items = [Item(np.zeros((1, 1, 3)), Turn("Which?", answer, "colour")) for answer in ("red", "red", "teal", "blue")]
    blind = BlindBaseline([Turn("Which?", "red", "colour")])
    result = measure("colour", items, lambda asked: ["red", "teal", "teal", "blue"], blind)
    assert result == Result("colour", accuracy=0.75, blind=0.5, questions=4)


def test_held_out_questions_are_of_their_family_and_repeatable(monkeypatch):
    fake_glyphs(monkeypatch)
    items = held_out("count", ("google",), 20)
    assert [item.turn for item in items] == [item.turn for item in held_out("count", ("google",), 20)]
    assert all(item.turn.family == "count" and item.turn.answer.isdigit() for item in items)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_questions_about_its_scenes(monkeypatch, family):
    fake_glyphs(monkeypatch)
    for item in held_out(family, ("google",), 10):
        assert item.covered.shape == (144,) and item.covered.any()
        assert (item.turn.family == "describe") == (family == "describe")


def test_a_description_is_judged_by_its_things_and_places():
    truth = Turn("", "A cat in the middle and a red star on the left.", "describe")
    items = [Item(np.zeros((1, 1, 3)), truth)] * 3
    answers = [truth.answer, "A cat in the middle and a red star on the right.", "cat"]
    assert mean_score(answers[:1], items[:1]) == 1
    assert mean_score(answers, items) == pytest.approx((1 + 0.5 + 0) / 3)


def test_results_are_written_between_their_markers_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x begin: command -->\nold\n<!-- x end -->\nb\n")
    write_between_markers(page, "x", "new")
    assert page.read_text() == "a\n<!-- x begin: command -->\nnew\n<!-- x end -->\nb\n"
    with pytest.raises(ValueError, match="0 places between '<!-- y begin"):
        write_between_markers(page, "y", "new")


@pytest.mark.parametrize("markdown", [False, True])
def test_the_table_names_every_number(markdown):
    lines = table([Result("how many", 0.875, 0.25, 1000)], markdown).splitlines()
    assert "blind" in lines[0]
    assert all(part in lines[-1] for part in ("how many", "87.5%", "25.0%", "1,000"))
