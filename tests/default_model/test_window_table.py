"""Accuracy against visual tokens: each window is really used, EmbQ is really off, the table says both."""

import copy

import pytest

from conversion.default_model import window_table
from conversion.default_model.answering import Answerer
from conversion.default_model.architecture import WINDOWS
from conversion.default_model.held_out import FAMILIES, held_out
from conversion.default_model.window_table import Row, markdown, measure_windows, plot
from tests.default_model.chats import default_model, default_processor
from tests.default_model.fakes import fake_glyphs


@pytest.fixture
def ask():
    return Answerer(copy.deepcopy(default_model()), default_processor())


def test_prompts_have_the_windows_tokens(ask, monkeypatch):
    fake_glyphs(monkeypatch)
    items = held_out("corner", ("google",), 2)
    whole = ask.inputs(items)["input_ids"]
    for window, tokens in ((2, 36), (6, 4), (12, 1)):
        with ask.pooled_in(window):
            assert (ask.inputs(items)["input_ids"] == ask.model.config.image_token_id).sum() == 2 * tokens
    assert ask.inputs(items)["input_ids"].equal(whole)


def test_every_window_is_asked_with_and_without_embq(ask, monkeypatch):
    fake_glyphs(monkeypatch)
    seen = []

    def answer(self, items):
        inputs = self.inputs(items)
        tokens = int((inputs["input_ids"][0] == self.model.config.image_token_id).sum())
        seen.append((tokens, self.model.model.embq is not None))
        return [item.turn.answer if self.model.model.embq is not None else "no" for item in items]

    monkeypatch.setattr(Answerer, "__call__", answer)
    rows = measure_windows(ask, 1)
    assert [(row.tokens, row.embq) for row in rows] == seen[:: len(FAMILIES)]
    assert {row.tokens for row in rows} == {(12 // window) ** 2 for window in WINDOWS}
    assert all(row.mean == 1 for row in rows if row.embq) and any(row.mean < 1 for row in rows if not row.embq)


def test_the_table_says_what_was_measured(tmp_path):
    rows = [
        Row(16, True, True, dict.fromkeys(FAMILIES, 0.75)),
        Row(4, False, False, dict.fromkeys(FAMILIES, 0.5)),
    ]
    lines = markdown(rows, 20).splitlines()
    assert lines[2].startswith("| 16 | on | 75.0% |") and lines[3].startswith("| 4 (untrained) | off | 50.0% |")
    assert lines[-1] == "20 questions a family."
    if plot(rows, tmp_path / "plot.png"):
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_writes_into_a_card(ask, monkeypatch, tmp_path):
    card = tmp_path / "card.md"
    card.write_text("<!-- windows begin -->\nold\n<!-- windows end -->\n")
    rows = [Row(16, True, True, dict.fromkeys(FAMILIES, 1.0))]
    monkeypatch.setattr(Answerer, "of", lambda directory, device: ask)
    monkeypatch.setattr(window_table, "measure_windows", lambda ask, questions: rows)
    monkeypatch.setattr(
        "sys.argv", ["window_table", "--card", str(card), "--plot", str(tmp_path / "plot.png"), "--questions", "7"]
    )
    window_table.main()
    assert "| 16 | on | 100.0% |" in card.read_text() and "7 questions a family." in card.read_text()
