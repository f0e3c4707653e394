"""An evaluation's figures on their way to the Hub: in a new card, and in one that the directory has."""

import json
import shutil
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from flashsloth_command import main
from transformers_flashsloth import FlashSlothConfig
from transformers_flashsloth.publishing import push
from transformers_flashsloth.publishing.card import make_card
from transformers_flashsloth.publishing.figures import read_card, read_figures

ROW = {"task": "pope", "name": "POPE", "metric": "pope_accuracy", "value": 87.5, "dataset": "lmms-lab/POPE"}


@pytest.fixture
def results(tmp_path):
    file = tmp_path / "results.json"
    rows = [ROW, {"task": "gqa", "name": "GQA", "problem": "no data"}]
    file.write_text(json.dumps({"settings": {"limit": None}, "results": rows}))
    return file


@pytest.fixture
def uploads(monkeypatch) -> list:
    """Directories that would have been uploaded."""
    found = []
    api = SimpleNamespace(
        create_repo=lambda repo_id, **options: SimpleNamespace(repo_id=repo_id),
        upload_folder=lambda folder_path, **options: found.append(folder_path),
    )
    monkeypatch.setattr(push, "HfApi", lambda: api)
    return found


@pytest.mark.parametrize("own_card", [None, "---\nlicense: mit\n---\n# Mine\n"], ids=["a new card", "its own card"])
def test_figures_go_along(own_card, results, uploads, tiny_checkpoint, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, directory)
    if own_card:
        (directory / "README.md").write_text(own_card)

    push.push_to_hub(directory, "me/mine", results=results)

    card = ModelCard.load(uploads[0] / "README.md")
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.metric_value, result.source_name) == ("lmms-lab/POPE", 87.5, "lmms-eval")
    assert card.data.license == ("mit" if own_card else "apache-2.0")
    assert ("# Mine" in card.text) == bool(own_card)


def test_nothing_is_uploaded_with_figures_that_are_none(results, uploads, tiny_checkpoint, tmp_path):
    results.write_text(json.dumps({"settings": {"limit": None}, "results": [{"task": "gqa", "problem": "no data"}]}))
    directory = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, directory)
    with pytest.raises(ValueError, match="has no figure, as every task failed"):
        push.push_to_hub(directory, "me/mine", results=results)
    assert not uploads and not (directory / "README.md").exists()


def test_a_conversion_does_not_begin_without_its_figures(authors_directory, tmp_path, capsys):
    arguments = ["convert", str(authors_directory), str(tmp_path / "ours"), "--push-to-hub", "me/mine"]
    assert main([*arguments, "--results", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err and not (tmp_path / "ours").exists()


def test_what_is_no_record_is_said(tmp_path):
    for text in ("{", '{"settings": {}}', '{"settings": {"limit": null}, "results": 3}'):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(ValueError, match=r"is no results\.json of `flashsloth eval`"):
            read_figures(tmp_path / "results.json")
    assert read_card(tmp_path / "README.md").data.license == "apache-2.0"  # where there is none yet


def test_an_uploaded_card_leads_to_no_file_that_only_this_project_has(tmp_path):
    card = make_card(FlashSlothConfig(), "me/tiny").content
    assert "(docs/" not in card and "(conversion/" not in card
    assert "questions.py" in card and "](https://arxiv.org" in card, "the words stay, and so do other links"
    own = tmp_path / "card.md"
    own.write_text("![A picture of mine](mine.png)")
    assert "](mine.png)" in make_card(FlashSlothConfig(), "me/tiny", text=own).content
