"""The default model's training: the tower goes on where it stopped, budgets are kept, the command exports a model."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from conversion.default_model import optimisation, pretrain_vision, train
from conversion.default_model.optimisation import Budget, Clock, Optimisers, learning_rate_factor, made_ahead
from tests.default_model.fakes import fake_easy_vqa, fake_glyphs

CPU = torch.device("cpu")


@pytest.fixture
def stepwise(monkeypatch):
    """A clock that counts one minute a look instead of seconds, and batches of two."""
    fake_glyphs(monkeypatch)
    ticks = iter(range(0, 10**6, 60))
    monkeypatch.setattr(optimisation.time, "monotonic", lambda: float(next(ticks)))
    monkeypatch.setattr(pretrain_vision, "BATCH_SIZE", 2)


def test_the_vision_tower_resumes(stepwise, tmp_path):
    first = pretrain_vision.pretrain_vision(tmp_path / "vision.pt", 20, 0, CPU)
    assert first["step"] > 0 and first["elapsed"] >= 20 * 60
    again = pretrain_vision.pretrain_vision(tmp_path / "vision.pt", 20, 0, CPU)
    assert again["step"] == first["step"], "the time was up"
    longer = pretrain_vision.pretrain_vision(tmp_path / "vision.pt", 40, 0, CPU)
    assert longer["step"] > first["step"]
    moved = [not torch.equal(longer["tower"][name], first["tower"][name]) for name in first["tower"]]
    assert sum(moved) > 0.9 * len(moved)


def test_the_tower_can_begin_with_another(stepwise, tmp_path, monkeypatch):
    start = train.tower_of(train.DEFAULT_CHECKPOINT)
    monkeypatch.setattr(pretrain_vision, "MATRIX_LR", 0.0)
    monkeypatch.setattr(pretrain_vision, "OTHER_LR", 0.0)
    vision = pretrain_vision.pretrain_vision(tmp_path / "vision.pt", 1, 0, CPU, start)
    assert all(torch.equal(vision["tower"][name], value) for name, value in start.items())


def test_the_command_goes_through_every_part(monkeypatch, tmp_path):
    fake_glyphs(monkeypatch)
    fake_easy_vqa(monkeypatch)
    train.load_tokenizer(train.DEFAULT_CHECKPOINT).save_pretrained(tmp_path / "training" / "tokenizer")
    monkeypatch.setattr(pretrain_vision, "BATCH_SIZE", 2)
    monkeypatch.setattr(train, "STAGES", [replace(stage, rows=2) for stage in train.STAGES])
    minutes = dict.fromkeys(train.MINUTES, 1e-4)
    train.train(tmp_path, 0, CPU, minutes, pictures=4)
    checkpoints = {path.name for path in (tmp_path / "training").glob("*.pt")}
    assert checkpoints == {"vision.pt", "alignment.pt", "looking.pt", "instruction.pt", "counting.pt"}
    model = train.AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert model.generation_config.max_new_tokens == train.LONGEST_ANSWER
    vision = torch.load(tmp_path / "training" / "vision.pt")["tower"]
    kept = model.model.vision_tower.state_dict()
    assert all(torch.equal(kept[name], value.bfloat16()) for name, value in vision.items()), "the tower stays frozen"


def test_a_training_can_go_on_from_a_saved_model(monkeypatch, tmp_path):
    """With no minute left, what comes out is what went in, tokenizer included."""
    fake_glyphs(monkeypatch)
    fake_easy_vqa(monkeypatch)
    trained = []
    monkeypatch.setattr(train, "run_stage", lambda stage, *args: trained.append((stage.name, args[4].minutes)))
    minutes = dict.fromkeys(train.MINUTES, 7.0)
    train.train(tmp_path, 0, CPU, minutes, pictures=4, start=train.DEFAULT_CHECKPOINT)
    assert trained == [("alignment", 0.0), ("looking", 0.0), ("instruction", 7.0), ("counting", 7.0)]
    before, after = train.weights_of(train.DEFAULT_CHECKPOINT), train.weights_of(tmp_path)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert train.load_tokenizer(tmp_path).get_vocab() == train.load_tokenizer(train.DEFAULT_CHECKPOINT).get_vocab()


def test_a_budget_is_minutes_or_batches(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    batches = Budget(steps=10)
    assert not batches.spent(9) and batches.spent(10)
    assert batches.factor(7) == learning_rate_factor(0.7)
    minutes = Budget(minutes=2)
    minutes.go_on_from(step=500, elapsed=60)
    assert minutes.factor(500) == learning_rate_factor(0.5) and not minutes.spent(500)
    now[0] += 60
    assert minutes.spent(500)
    assert Budget(minutes=0).spent(0) and Budget(steps=0).spent(0)


def test_the_learning_rate_ends_at_zero(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock(minutes=10, elapsed=60)
    factors = []
    while not clock.finished:
        factors.append(clock.factor)
        now[0] += 6
    assert max(factors) == 1.0 and factors[-1] < 0.01
    assert factors == sorted(factors, reverse=True), "past the warm-up it only falls"
    assert now[0] == pytest.approx(9 * 60)


def test_muon_gets_the_matrices_of_layers_alone():
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 4)]), "lm_head": nn.Linear(4, 8)})
    muon, adamw = Optimisers([model], 1e-3, 1e-3).optimisers
    assert [p.shape for group in muon.param_groups for p in group["params"]] == [(4, 4)]
    assert sum(len(group["params"]) for group in adamw.param_groups) == 3


def test_some_parts_may_learn_more_slowly():
    parts = {"embq": nn.Linear(4, 4), "layers": nn.ModuleList([nn.Linear(4, 4)])}
    optimisers = Optimisers([nn.ModuleDict(parts)], 1e-2, 1e-3, rate_of=lambda name: 0.25 if "embq" in name else 1.0)
    assert len(optimisers.parameters) == 4
    optimisers.step(sum(parameter.sum() for parameter in optimisers.parameters), factor=0.5)
    rates = {
        id(parameter): group["lr"]
        for optimiser in optimisers.optimisers
        for group in optimiser.param_groups
        for parameter in group["params"]
    }
    embq, layer = parts["embq"], parts["layers"][0]
    assert [rates[id(p)] for p in (embq.weight, layer.weight)] == [1.25e-3, 5e-3]
    assert [rates[id(p)] for p in (embq.bias, layer.bias)] == [1.25e-4, 5e-4]


def test_batches_come_in_order():
    batches = made_ahead(lambda index: index * 10, first=3)
    assert [next(batches) for _ in range(3)] == [30, 40, 50]
    batches.close()


def test_an_interrupted_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch):
    path = tmp_path / "state.pt"
    optimisation.save_checkpoint(path, step=1)

    def interrupted(state, target):
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimisation.save_checkpoint(path, step=2)
    assert torch.load(path) == {"step": 1}
