"""`flashsloth eval`: what is resumed, what fails, and what is written."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

import flashsloth_command
from transformers_flashsloth import FlashSlothConfig
from transformers_flashsloth.evaluation import command, paper, plugin, running
from transformers_flashsloth.evaluation.report import markdown, rows_of, write_into_card
from transformers_flashsloth.evaluation.running import Outcome, run_tasks
from transformers_flashsloth.publishing.card import make_card


class FakeModel:
    rank = 0
    batch_size = 1


@pytest.fixture
def runs(monkeypatch) -> list[str]:
    """Tasks that were run: each gives a figure, `broken` none, and `stopped` is an interruption."""
    run = []

    def fake(model, task, include_path, limit):
        run.append(task)
        if task == "stopped":
            raise KeyboardInterrupt
        if task == "broken":
            return Outcome(task, {}, "OSError: no data")
        metrics = paper.BY_TASK[task].metrics if task in paper.BY_TASK else ("acc",)
        return Outcome(task, dict.fromkeys(metrics, 0.5))

    monkeypatch.setattr(running, "_run", fake)
    monkeypatch.setattr(command, "check_installed", lambda: None)
    monkeypatch.setattr(command, "_open_model", lambda given, options: FakeModel())
    monkeypatch.setattr(command, "version", lambda name: "0.7.3")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    return run


def test_paper_names_fourteen_tasks_of_lmms_eval():
    assert len(paper.tasks_of("paper")) == 14 == len(paper.PUBLISHED_SCORES)
    assert {benchmark.name for benchmark in paper.PAPER} == set(paper.PUBLISHED_SCORES)
    assert paper.tasks_of("pope, paper,mine,pope")[0] == "pope"
    assert len(paper.tasks_of("pope, paper,mine,pope")) == 15


def test_lmms_eval_knows_the_tasks_and_their_metrics():
    pytest.importorskip("lmms_eval")
    from lmms_eval.tasks import TaskManager
    from lmms_eval.utils import load_yaml_config

    manager = TaskManager("ERROR")
    assert set(paper.tasks_of("paper")) <= set(manager.all_tasks)
    for benchmark in paper.PAPER:
        config = load_yaml_config(manager.task_index[benchmark.task]["yaml_path"], mode="simple")
        assert set(benchmark.metrics) <= {entry["metric"] for entry in config["metric_list"]}, benchmark.task


def test_finished_tasks_are_not_run_again_unless_something_else_is_asked(runs, tmp_path):
    tasks = ["one", "broken", "two"]
    said = []
    for _ in range(2):
        outcomes = run_tasks(FakeModel, tasks, {"pretrained": "a"}, tmp_path, say=said.append)
    assert runs == ["one", "broken", "two", "broken"]
    assert [outcome.was_kept for outcome in outcomes] == [True, False, True]
    assert said[:2] == ["[1/3] one ...", "[1/3] one: finished"] and "[1/3] one: finished before" in said
    run_tasks(FakeModel, ["one"], {"pretrained": "a", "image_hd": True}, tmp_path)
    assert runs[-1] == "one" and len(runs) == 5


def test_after_an_interruption_it_goes_on(runs, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_tasks(FakeModel, ["one", "stopped", "two"], {}, tmp_path)
    run_tasks(FakeModel, ["one", "two"], {}, tmp_path)
    assert runs == ["one", "stopped", "two"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.json", "two.json"]


def test_the_release_s_token_limits_are_asked(runs, tmp_path):
    model = FakeModel()
    run_tasks(lambda: model, ["mmmu_val"], {}, tmp_path)
    assert model.options_of_task["mmmu_val"] == {"max_new_tokens": 16, "until": ["</s>"]}
    assert model.options_of_task["gqa"] == {"until": ["</s>"]}


def test_a_failed_task_is_a_failed_command(runs, tiny_checkpoint, tmp_path, capsys):
    arguments = ["eval", tiny_checkpoint, "--tasks", "one,broken", "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert flashsloth_command.main(arguments) == 1
    captured = capsys.readouterr()
    assert "1 of 2 tasks failed: broken; broken: OSError: no data" in captured.err.splitlines()[-1]
    assert "| one | acc | 0.5 |" in captured.out and "| broken | failed: OSError: no data |" in captured.out
    assert len(json.loads((tmp_path / "out/results.json").read_text())["results"]) == 2


def test_judged_tasks_are_refused_without_a_judge(runs, tiny_checkpoint, tmp_path, capsys):
    arguments = ["eval", tiny_checkpoint, "--tasks", "paper", "--output", str(tmp_path), "--device", "cpu"]
    assert flashsloth_command.main(arguments) == 1
    assert "mmvet" not in runs and len(runs) == 12
    assert "OPENAI_API_KEY is not set" in capsys.readouterr().err


def test_our_figures_stand_beside_the_published_ones(runs, tmp_path):
    outcomes = [Outcome("pope", {"pope_accuracy": 0.87}), Outcome("mme", dict.fromkeys(paper.PAPER[1].metrics, 800.0))]
    base, high = (rows_of(outcomes, high_definition) for high_definition in (False, True))
    assert [(row["value"], row["published"], row["difference"]) for row in base] == [
        (87, 86.3, 0.7),
        (1600, 1702, -102),
    ]
    assert [row["published"] for row in high] == [87.2, 1745]
    table = markdown(base, "model", limit=8)
    assert "| POPE | pope_accuracy | 87 | 86.3 | +0.7 |" in table and "The first 8 documents of each task only" in table


def test_a_metric_that_is_not_there_is_a_failure():
    (row,) = rows_of([Outcome("pope", {"other": 1.0})], False)
    assert row["problem"] == "it gave no pope_accuracy"


def test_a_model_card_gets_the_figures_in_place_of_older_ones(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: mit\ntags:\n- mine\n---\n# Mine\n\nText.\n")
    for accuracy in (0.5, 0.75):
        write_into_card(rows_of([Outcome("pope", {"pope_accuracy": accuracy})], False), card, "me/mine")
    write_into_card(rows_of([Outcome("gqa", {"exact_match": 0.6})], False), card, "me/mine")
    read = ModelCard.load(card)
    assert [(r.dataset_name, r.metric_value) for r in read.data.eval_results] == [("POPE", 75.0), ("GQA", 60.0)]
    assert read.data.license == "mit" and read.data.tags == ["mine"] and read.text.strip() == "# Mine\n\nText."


def test_our_figures_in_a_card_are_not_taken_for_the_authors(tmp_path):
    card = tmp_path / "README.md"
    make_card(FlashSlothConfig(), "me/mine", scores="base").save(card)
    write_into_card(rows_of([Outcome("pope", {"pope_accuracy": 0.5})], False), card, "me/mine")
    results = [one for one in ModelCard.load(card).data.eval_results if one.dataset_name == "POPE"]
    found = {one.source_name: one.metric_value for one in results}
    assert found == {"FlashSloth's authors": 86.3, "lmms-eval": 50}


def test_a_card_says_where_documents_are_from(monkeypatch, tmp_path):
    config = {"dataset_path": "lmms-lab/POPE", "dataset_name": None, "test_split": "test"}
    found = {"results": {"pope": {"pope_accuracy,none": 0.5}}, "configs": {"pope": config}}
    harness = {
        "lmms_eval.evaluator": {"simple_evaluate": lambda **options: found},
        "lmms_eval.tasks": {"TaskManager": lambda *args, **options: SimpleNamespace(all_tasks=["pope"])},
    }
    for name, content in harness.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))
    for _ in range(2):  # the second time from the file that is kept
        outcomes = run_tasks(FakeModel, ["pope"], {}, tmp_path)
    assert outcomes[0].was_kept
    write_into_card(rows_of(outcomes, False), tmp_path / "README.md", "mine")
    (result,) = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert (result.dataset_type, result.dataset_split) == ("lmms-lab/POPE", "test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", "8", "--card", "CARD"], "--card takes figures of whole tasks"),
        (["--card", "CARD/none/README.md"], "There is no directory"),
        (["--card", "CARD"], "cannot be read"),
    ],
)
def test_a_card_that_could_not_be_written_is_refused_before_an_evaluation(options, message, runs, tmp_path, capsys):
    card = tmp_path / "README.md"
    card.write_text("---\n: [\n---\n")
    options = [option.replace("CARD", str(card)) for option in options]
    assert flashsloth_command.main(["eval", "anything", "--tasks", "one", *options]) == 2
    assert message in capsys.readouterr().err and not runs


def test_a_new_card_takes_the_figures_that_the_command_wrote(runs, tiny_checkpoint, tmp_path):
    arguments = ["eval", tiny_checkpoint, "--tasks", "one,broken", "--output", str(tmp_path), "--device", "cpu"]
    flashsloth_command.main(arguments)
    card = make_card(tiny_checkpoint, "me/mine", results=tmp_path / "results.json")
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("one", "acc", 0.5)
    flashsloth_command.main([*arguments, "--limit", "3"])
    with pytest.raises(ValueError, match="first 3 documents"):
        make_card(tiny_checkpoint, "me/mine", results=tmp_path / "results.json")
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match=r"no results\.json of `flashsloth eval`"):
        make_card(tiny_checkpoint, "me/mine", results=tmp_path / "results.json")


def test_without_lmms_eval_a_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(plugin, "find_spec", lambda name: None)
    assert flashsloth_command.main(["eval", "anything", "--tasks", "pope"]) == 2
    assert "evaluation needs lmms-eval: pip install 'transformers-flashsloth[eval]'" in capsys.readouterr().err


def test_lmms_eval_is_imported_by_nobody_who_does_not_ask():
    code = "import sys, transformers_flashsloth.evaluation.command; sys.exit('lmms_eval' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--tasks", ","], "--tasks names no task"), (["--tasks", "a", "--include-path", "none"], "no directory 'none'")],
)
def test_bad_arguments_are_refused_before_anything_is_loaded(arguments, message, capsys):
    assert flashsloth_command.main(["eval", "anything", *arguments]) == 2
    assert message in capsys.readouterr().err
