"""The notebooks run, on tiny checkpoints, and are kept without outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import ANY

import pytest
from safetensors.torch import load_file

from tests import notebook_process
from tests.publishing.hub_server import TOKEN, Hub

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


@pytest.mark.slow
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


def test_a_failing_cell_is_noticed(tmp_path):
    notebook = tmp_path / "bad.ipynb"
    notebook.write_text(json.dumps({"cells": [{"cell_type": "code", "id": "first", "source": ["1 / 0"]}]}))
    process = run(notebook)
    assert process.returncode == 1 and 'File "bad.ipynb, first"' in process.stderr
