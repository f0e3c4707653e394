"""lmms-eval's own command: one process and two ranks give the same figures; so do batches of 1 and of 16."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")
pytest.importorskip("easy_vqa")

from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT
from transformers_flashsloth.evaluation.running import TASKS

ONE = [sys.executable, "-m"]
TWO = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m"]


def answers_of(directory: Path, launcher: list[str], batch_size: int, *more: str) -> tuple[list[str], dict]:
    """What was answered to 21 documents, in their order, and the results."""
    command = [*launcher, "lmms_eval", "--model", "flashsloth", "--model_args", f"pretrained={DEFAULT_CHECKPOINT}"]
    command += ["--tasks", "easy_vqa", "--include_path", str(TASKS), "--limit", "21", "--device", "cpu"]
    command += ["--batch_size", str(batch_size), "--log_samples", "--output_path", str(directory), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=directory.parent, check=False)
    (results,) = directory.rglob("*_results.json")
    (samples,) = directory.rglob("*_samples_*.jsonl")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    assert done.returncode == 0 and re.search(r"easy_vqa\s*\|", done.stdout), done.stderr[-2000:]
    return [row["filtered_resps"] for row in rows], json.loads(results.read_text())["results"]["easy_vqa"]


@pytest.mark.slow
def test_two_ranks_and_batches_of_16_answer_as_one_by_one(tmp_path):
    alone, figures = answers_of(tmp_path / "one", ONE, 1)
    assert len(alone) == 21 and figures["exact_match,none"] == 1
    assert answers_of(tmp_path / "batches", ONE, 16)[0] == alone
    answers, on_two = answers_of(tmp_path / "two", TWO, 4)
    assert answers == alone and on_two["exact_match,none"] == figures["exact_match,none"]
