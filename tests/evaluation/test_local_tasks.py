"""`flashsloth eval` on local tasks of the kinds that the paper's benchmarks are of, scored by lmms-eval itself."""

import json
import re
import sys

import pytest

pytest.importorskip("lmms_eval")

from lmms_eval.llm_judge.factory import ProviderFactory

import flashsloth_command
from tests.evaluation.local_tasks import KINDS, SAID, JudgeByRule, write_task
from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT
from transformers_flashsloth.evaluation.answers import Answerer
from transformers_flashsloth.evaluation.paper import PAPER


@pytest.fixture
def scripted(monkeypatch):
    """A model that says to question n what the list says."""
    said = []

    def answer(self, questions, **_):
        texts = [question.messages[-1]["content"] for question in questions]
        asked = [re.search(r"question (\d)\?", str(parts), re.IGNORECASE).group(1) for parts in texts]
        return [said[int(number)] for number in asked]

    monkeypatch.setattr(Answerer, "answer", answer)
    return said


@pytest.fixture
def judged(monkeypatch):
    """No question leaves this machine: answers are judged by a rule."""
    ProviderFactory.register_provider("by-rule", JudgeByRule)
    monkeypatch.setenv("API_TYPE", "by-rule")
    # It holds the judge of whoever imported it first.
    monkeypatch.delitem(sys.modules, "lmms_eval.tasks.mathvista.mathvista_evals", raising=False)


def test_every_benchmark_of_the_paper_has_a_local_task():
    assert set(KINDS) == set(SAID) == {benchmark.task for benchmark in PAPER}
    assert all(set(benchmark.metrics) & set(SAID[benchmark.task][1]) for benchmark in PAPER)


@pytest.mark.usefixtures("judged")
@pytest.mark.parametrize("name", list(KINDS))
def test_each_kind_of_task_is_scored_by_its_own_rules(name, scripted, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    scripted[:], expected = SAID[name]
    task = write_task(tmp_path, name)
    arguments = ["eval", tiny_checkpoint, "--tasks", task, "--include-path", str(tmp_path), "--device", "cpu"]
    assert flashsloth_command.main(arguments) == 0
    found = json.loads((tmp_path / f"evaluation/{task}.json").read_text())["metrics"]
    assert {metric: found[metric] for metric in expected} == pytest.approx(expected, abs=1e-4)


def test_easy_vqa_ships_and_its_first_questions_are_answered_right(tmp_path, monkeypatch):
    """Its first 40 questions; the whole test takes many minutes."""
    pytest.importorskip("easy_vqa")
    monkeypatch.chdir(tmp_path)
    arguments = ["eval", DEFAULT_CHECKPOINT, "--tasks", "easy_vqa", "--limit", "40", "--batch-size", "16"]
    assert flashsloth_command.main([*arguments, "--device", "cpu"]) == 0
    (row,) = json.loads((tmp_path / "evaluation/results.json").read_text())["results"]
    assert (row["metric"], row["value"]) == ("exact_match", 1.0)
