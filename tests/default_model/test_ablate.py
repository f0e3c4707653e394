"""The ablation: variants that differ in what they say, runs that are kept, intervals paired by seed."""

import json
import os
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from conversion.default_model import ablate, train
from conversion.default_model.ablate import STAGES_NOW, Ablation, run_all
from conversion.default_model.ablation_report import CLAIMS, Run, claims, interval, table
from conversion.default_model.answering import Answerer
from conversion.default_model.features import fingerprint
from conversion.default_model.held_out import FAMILIES, held_out
from conversion.default_model.stages import ALIGNMENT, INSTRUCTION, LOOKING
from conversion.default_model.variants import TINY, VARIANTS, Size, see_as
from tests.default_model.fakes import fake_easy_vqa, fake_glyphs

CPU = torch.device("cpu")
PAGE_RESULTS = Path(ablate.__file__).with_name("ablations")
TOKENIZER = train.load_tokenizer(train.DEFAULT_CHECKPOINT)


@pytest.fixture
def ablation(monkeypatch, tmp_path) -> Ablation:
    fake_glyphs(monkeypatch)
    fake_easy_vqa(monkeypatch)
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    return Ablation(tmp_path, TINY, CPU)


def built(name: str):
    return train.build_model(TOKENIZER, CPU, **VARIANTS[name].choices)


@pytest.mark.parametrize(
    ("name", "tokens", "queries", "learned_weights"),
    [
        ("full", 16, 9, True),
        ("average", 16, 9, False),
        ("unpooled", 144, 9, False),
        ("without-embq", 16, 0, True),
        ("neither", 16, 0, False),
        ("one-query", 16, 1, True),
        ("pooled-embq", 16, 9, True),
        ("unaligned", 16, 9, True),
        ("ungrounded", 16, 9, True),
    ],
)
def test_variants_differ_as_they_say(name, tokens, queries, learned_weights):
    model = built(name)
    assert model.config.tokens_per_view == tokens
    assert model.config.num_query_tokens == queries and (model.model.embq is None) == (queries == 0)
    assert any("score_proj" in part for part, _ in model.named_parameters()) == learned_weights
    inputs = Answerer(model, train.processor(model.config, TOKENIZER)).inputs(held_out("colour", (), 1))
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == tokens


def test_every_variant_is_in_the_test():
    assert len(VARIANTS) == 9


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_trains_and_answers(ablation, name):
    run = ablation.run(name, seed=0)
    assert set(run.scores) == set(FAMILIES) and run.operations > 1e6
    assert run.visual_tokens == (144 if name == "unpooled" else 16)


def test_a_finished_run_is_kept(ablation, monkeypatch):
    first = ablation.run("neither", seed=1)
    monkeypatch.setattr(ablate, "run_stage", None)  # would fail
    assert ablation.run("neither", seed=1) == first
    assert [path.name for path in ablation.results.iterdir()] == ["neither-1.json"]
    assert not (ablation.output / "neither-1").exists(), "its checkpoints are of no use any more"


def test_runs_of_another_size_are_refused(ablation):
    ablation.run("neither", seed=1)
    ablation.size = replace(TINY, instruction=3)
    with pytest.raises(ValueError, match=r"on 32 pictures, 2 alignment.* and this is .*3 instruction.*choose other"):
        ablation.run("neither", seed=1)


def test_runs_of_another_tower_or_other_stages_are_refused(ablation, monkeypatch):
    ablation.run("neither", seed=1)
    with monkeypatch.context() as patched:
        patched.setattr(ablate, "STAGES_NOW", "0123456789ab")
        with pytest.raises(ValueError, match=r"another stages .* than there is now \(0123456789ab\).*its own commit"):
            ablation.run("neither", seed=1)
    tower = {name: value + 1 for name, value in ablation.tower.items()}
    monkeypatch.setattr(ablate, "tower_of", lambda checkpoint: tower)
    with pytest.raises(ValueError, match=r"another vision tower .* cannot be compared"):
        Ablation(ablation.output, TINY, CPU).run("neither", seed=1)


def test_the_results_of_the_page_are_of_what_ships():
    tower = fingerprint(train.tower_of(train.DEFAULT_CHECKPOINT))
    results = [Run(**json.loads(path.read_text())) for path in PAGE_RESULTS.glob("*.json")]
    assert len(results) >= 2
    for run in results:
        assert (run.size, run.tower, run.stages) == (asdict(Size()), tower, STAGES_NOW), run.variant


def test_every_variant_learns_from_as_many_rows(ablation):
    """Instruction gets the rows of a stage that is left out: alignment of one variant, looking where nothing looks."""
    ablation.size = Size(alignment=10, looking=4, instruction=7)
    stages = {name: ablation._stages(variant) for name, variant in VARIANTS.items()}
    assert len({sum(stage.rows * steps for stage, steps in own) for own in stages.values()}) == 1
    names = {name: [stage.name for stage, _ in own] for name, own in stages.items()}
    assert names["full"] == [ALIGNMENT.name, LOOKING.name, INSTRUCTION.name]
    assert names["unaligned"] == [LOOKING.name, INSTRUCTION.name]
    for name, variant in VARIANTS.items():
        looks = variant.choices.get("num_query_tokens") != 0 and name != "ungrounded"
        assert (LOOKING.name in names[name]) == looks


def test_one_variant_is_not_told_where_to_look(ablation):
    losses = {
        name: {loss for stage, _ in ablation._stages(variant) for loss in stage.losses}
        for name, variant in VARIANTS.items()
    }
    assert losses.pop("ungrounded") == {"answers", "overlap"}
    assert all("grounding" in of_variant for of_variant in losses.values())


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_trains_on_the_tokens_that_it_answers_with(ablation, name):
    for stage, _ in ablation._stages(VARIANTS[name]):
        assert max(stage.windows, key=stage.windows.get) == built(name).config.window[0]


@torch.no_grad()
def test_pooled_queries_read_what_pooling_leaves():
    model = built("pooled-embq").eval()
    pixels = torch.randn(2, 1, 3, 96, 96)
    patches = model.get_image_features(pixels).last_hidden_state
    see_as(model, VARIANTS["pooled-embq"])
    seen = model.get_image_features(pixels)
    assert torch.equal(seen.last_hidden_state, model.model.multi_modal_projector.pooling(patches))
    assert seen.pooler_output.shape == (2, 16, 160)


class Prepared:
    """Stands for an ablation in processes that the test's own fakes do not reach."""

    def __init__(self, directory: Path):
        self.directory = directory

    def prepare(self, seed: int) -> None:
        (self.directory / str(seed)).write_text("")

    def kept(self, name: str, seed: int) -> Run | None:
        path = self.directory / f"{name}-{seed}"
        return Run(**json.loads(path.read_text())) if path.exists() else None

    def run(self, name: str, seed: int) -> None:
        if not (self.directory / str(seed)).exists():
            raise ValueError(f"seed {seed} has no features")
        if name == "broken":
            raise ValueError("the run failed")
        run = Run(name, seed, {}, torch.get_num_threads(), os.getpid(), {}, "", "")
        (self.directory / f"{name}-{seed}").write_text(json.dumps(run._asdict()))


def test_processes_share_runs_and_threads(tmp_path):
    plan = [(name, seed) for seed in (0, 1) for name in ("full", "average")]
    runs = run_all(partial(Prepared, tmp_path), plan, processes=2)
    assert [(run.variant, run.seed) for run in runs] == plan
    assert {run.visual_tokens for run in runs} == {max(1, torch.get_num_threads() // 2)}
    assert os.getpid() not in {run.operations for run in runs}
    (tmp_path / "0").unlink()  # nothing of seed 0 is missing: its features are not computed again
    with pytest.raises(ValueError, match="the run failed"):
        run_all(partial(Prepared, tmp_path), [*plan, ("broken", 1)], processes=2)
    assert not (tmp_path / "0").exists()


def test_intervals_are_students():
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.303 / 3**0.5))
    assert interval([5.0, 5.0]) == (5.0, 0.0)


def scored(variant: str, seed: int, score: float) -> Run:
    """A run with one score in all families."""
    return Run(variant, seed, dict.fromkeys(FAMILIES, score), 16, 2_000_000, {}, "", "")


def test_the_table_pairs_runs_by_seed():
    # Seeds differ by ten points, the variants by two in each: the paired interval is narrow.
    runs = [scored("full", seed, 0.5 + seed / 10) for seed in range(3)]
    runs += [scored("average", seed, 0.48 + seed / 10) for seed in (2, 0, 1)]
    lines = table(runs, {"full": "whole", "average": "mean"}, Size()).splitlines()
    assert lines[2].startswith("| whole | 3 | 16 | 2 | 60.0 ± 24.8 |  |")
    assert lines[3].startswith("| mean | 3 | 16 | 2 | 58.0 ± 24.8 | -2.0 ± 0.0 |")
    assert lines[-1].startswith("400 batches of alignment, 100 of looking, 600 of instruction")


def test_claims_are_differences_paired_by_seed():
    runs = [scored("full", seed, 0.5 + seed / 10) for seed in range(3)]
    runs += [scored("average", seed, 0.48 + seed / 10) for seed in (2, 0, 1)] + [scored("unpooled", 1, 0.65)]
    assert claims(runs).splitlines()[2:] == [
        "| SAP over averages, EmbQ reading as well | 3 | +2.0 ± 0.0 |",
        "| the whole over no pooling | 1 | -5.0 |",
    ]
    assert claims(runs[:3]) == ""
    assert {name for _, *pair in CLAIMS for name in pair} <= set(VARIANTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--seeds", "1"], "one run has no interval"), (["--tiny", "--page", "x.md"], "--tiny gives no figures")],
)
def test_what_would_mean_nothing_is_refused(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.setattr(sys, "argv", ["ablate", "--output", str(tmp_path), *arguments])
    with pytest.raises(SystemExit):
        ablate.main()
    assert message in capsys.readouterr().err


def test_the_command_writes_its_table(ablation, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["x", "--output", str(ablation.output), "--tiny", "--seeds", "2", "--variants", "neither"]
    )
    ablate.main()
    text = (ablation.output / "table.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert VARIANTS["full"].title in text and VARIANTS["neither"].title in text
    assert json.loads((ablation.results / "full-1.json").read_text())["seed"] == 1


def test_the_table_of_what_has_finished_so_far(ablation, monkeypatch, capsys):
    arguments = ["x", "--output", str(ablation.output), "--tiny", "--kept"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit):
        ablate.main()
    assert "a run of the whole model is needed" in capsys.readouterr().err
    for name, seed in (("full", 0), ("full", 1), ("neither", 0), ("neither", 1), ("average", 0), ("neither", 2)):
        run = Run(name, seed, dict.fromkeys(FAMILIES, 0.5), 16, 2_000_000, asdict(TINY), ablation.behind, STAGES_NOW)
        ablation.results.mkdir(exist_ok=True)
        (ablation.results / f"{name}-{seed}.json").write_text(json.dumps(run._asdict()))
    monkeypatch.setattr(ablate, "run_stage", None)  # would fail
    ablate.main()
    text = (ablation.output / "table.md").read_text()
    assert f"| {VARIANTS['full'].title} | 2 |" in text and f"| {VARIANTS['neither'].title} | 2 |" in text
    assert f"| {VARIANTS['average'].title} | 1 | 16 | 2 | 50.0 | +0.0 |" in text, "one run has no interval"
