"""The notebooks run, on tiny checkpoints, and are kept without outputs."""

import csv
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from unittest.mock import ANY

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from tests import notebook_process
from tests.pages.conftest import write_backbones
from tests.pages.running import check_extra
from tests.publishing.hub_server import TOKEN, Hub
from transformers_flashsloth import FlashSlothForConditionalGeneration, FlashSlothProcessor, answer_all, from_backbones
from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def run(notebook: str, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, notebook_process.__file__, NOTEBOOKS / notebook],
        capture_output=True,
        text=True,
        cwd=NOTEBOOKS,
        env=os.environ | {name: str(value) for name, value in environment.items()},
    )


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda notebook: notebook.stem)
def test_no_outputs_are_kept(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda notebook: notebook.stem)
def test_the_first_line_installs_the_package(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    line = next(cell["source"][0] for cell in cells if cell["cell_type"] == "code")
    command = line.strip().replace(" -e", "").replace("--quiet ", "").replace('"..[', '"transformers-flashsloth[')
    assert command.startswith("%pip install ") and "transformers-flashsloth" in command
    check_extra(command)


def test_quickstart(capsys):
    notebook_process.main(NOTEBOOKS / "quickstart.ipynb")
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["['blue']", "What color is the triangle? -> blue", "What shape is red? -> circle"]


def test_what_the_compressor_sees(capsys):
    notebook_process.main(NOTEBOOKS / "what_the_compressor_sees.ipynb")
    printed = capsys.readouterr().out
    shares = re.findall(r"^(tiger|panda|frog|owl) +(\d+)% +(\d+)% +(\d+)% +(\d+)%$", printed, re.MULTILINE)
    assert [animal for animal, *_ in shares] == ["tiger", "panda", "frog", "owl"]
    for place, (_, *found) in enumerate(shares):  # each is found in its own quarter
        assert max(map(int, found)) == int(found[place]) and 98 <= sum(map(int, found)) <= 102
    right = dict(re.findall(r"^(.+?)(?:, \d+ visual tokens)?: (\d+) of 10", printed, re.MULTILINE))
    assert int(right["both halves"]) == int(right["windows of 3 x 3"]) >= 9
    assert int(right["visual tokens alone (patches blank)"]) < 9


def test_build_on_another_backbone(tmp_path, capsys, monkeypatch):
    pytest.importorskip("trl", reason="needs the extra `train`")
    text, vision = tmp_path / "text", tmp_path / "vision"
    write_backbones(text, vision)
    for name, value in {"TEXT": text, "VISION": vision, "DESTINATION": tmp_path / "built", "SHORT": 1}.items():
        monkeypatch.setenv(f"FLASHSLOTH_{name}", str(value))
    notebook_process.main(NOTEBOOKS / "build_on_another_backbone.ipynb")
    printed = capsys.readouterr().out
    assert re.search(r"^embedded query module +[1-9][\d,]* parameters$", printed, re.MULTILINE)
    assert re.search(r"^loss: [\d.]+ at first", printed, re.MULTILINE)
    original = from_backbones(str(text), str(vision), pooling_window=4)[0].model
    trained = FlashSlothForConditionalGeneration.from_pretrained(tmp_path / "built").model
    for part in ("vision_tower", "language_model"):
        kept = getattr(original, part).state_dict()
        assert all(tensor.equal(kept[name]) for name, tensor in getattr(trained, part).state_dict().items())


def test_convert_and_push(authors_directory, tmp_path):
    with Hub() as hub:
        process = run(
            "convert_and_push.ipynb",
            FLASHSLOTH_SOURCE=authors_directory,
            FLASHSLOTH_DESTINATION=tmp_path / "ours",
            FLASHSLOTH_REPO="me/sloth",
            HF_ENDPOINT=hub.url,
            HF_HOME=tmp_path / "home",
            HF_TOKEN=TOKEN,
            HF_HUB_DISABLE_XET=1,
        )
        assert process.returncode == 0, process.stderr
        assert hub.repositories["me/sloth"].private
    assert {"ours", "ours-authors"} <= {directory.name for directory in tmp_path.iterdir()}


def test_finetune_lora_trl(tmp_path):
    for module in ("datasets", "peft", "trl", "sklearn"):
        pytest.importorskip(module, reason="needs the extra `train` and scikit-learn")
    process = run("finetune_lora_trl.ipynb", FLASHSLOTH_SHORT=1, FLASHSLOTH_DESTINATION=tmp_path, OMP_NUM_THREADS=1)
    assert process.returncode == 0, process.stderr
    table = [line.split(" | ") for line in process.stdout.splitlines() if line.startswith("| ")]
    assert [row[0] for row in table[2:]] == ["| digits", "| colour of a shape", "| shape of a colour", ANY]
    before = [float(row[1].rstrip("%")) for row in table[2:]]
    assert before[0] < 50 <= before[-1]  # digits are unknown, old tasks are not
    adapter = load_file(tmp_path / "adapter_model.safetensors")
    parts = ("multi_modal_projector", "embq", "language_model")
    for part in parts:
        trained = [tensor.abs().max() for name, tensor in adapter.items() if part in name and "lora_B" in name]
        assert trained and min(trained) > 0
    assert all(any(f".{part}." in name for part in parts) for name in adapter)  # and nothing of the vision tower


def test_evaluate(tmp_path, monkeypatch, capsys):
    """From charts to a card whose figures are those of the adapter, asked here once more."""
    for module in ("datasets", "peft", "trl"):
        pytest.importorskip(module, reason="needs the extra `train`")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for name, value in {"SHORT": 1, "DESTINATION": tmp_path}.items():
        monkeypatch.setenv(f"FLASHSLOTH_{name}", str(value))
    notebook_process.main(NOTEBOOKS / "evaluate.ipynb")
    printed = capsys.readouterr().out
    curve = re.findall(r"^\| (\d+) \| [\d.]+ \| (\d+)% \| (\d+)% \|$", printed, re.MULTILINE)
    assert [step for step, *_ in curve] == ["0", "4", "8"]
    assert re.search(rf"^\| exact match \| {curve[0][1]}% \| {curve[2][1]}% \| 8 \|$", printed, re.MULTILINE)
    assert re.search(rf"^\| ANLS \| {curve[0][2]}% \| {curve[2][2]}% \| 8 \|$", printed, re.MULTILINE)

    rows = list(csv.DictReader((tmp_path / "held_out.csv").open()))
    trained = list(csv.DictReader((tmp_path / "train.csv").open()))
    assert (len(rows), len(trained)) == (8, 64)
    processor = FlashSlothProcessor.from_pretrained(DEFAULT_CHECKPOINT)
    model = FlashSlothForConditionalGeneration.from_pretrained(DEFAULT_CHECKPOINT, dtype="float32")  # as there
    adapted = import_module("peft").PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    asked = [(str(tmp_path / "images" / row["image"]), row["question"]) for row in rows]
    said = answer_all(adapted, processor, asked, do_sample=False, max_new_tokens=8)
    right = sum(answer == row["answer"] for answer, row in zip(said, rows, strict=True))
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert set(figures) == {"exact_match", "anls"} and figures["exact_match"] == round(100 * right / 8, 2) > 0
    assert card.data.model_name == "flashsloth-charts" and f"about {right / 8:.0%}" in card.text
    assert str(tmp_path) not in card.content and "default_checkpoint" not in card.content


def test_a_failing_cell_is_noticed(tmp_path):
    notebook = tmp_path / "bad.ipynb"
    notebook.write_text(json.dumps({"cells": [{"cell_type": "code", "id": "first", "source": ["1 / 0"]}]}))
    process = run(notebook)
    assert process.returncode == 1 and 'File "bad.ipynb, first"' in process.stderr
