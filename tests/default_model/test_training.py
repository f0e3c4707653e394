"""The default model's training: it runs, goes on where it stopped, ends on time and moves every parameter."""

import time
from pathlib import Path

import pytest
import torch
from torch import nn

from conversion.default_model import optimisation, pretrain_vision, train
from conversion.default_model.optimisation import Clock, Optimisers, made_ahead
from tests.default_model.fakes import fake_glyphs

CPU = torch.device("cpu")


@pytest.fixture
def stepwise(monkeypatch):
    """A clock that counts one minute a look instead of seconds, and batches of two."""
    fake_glyphs(monkeypatch)
    ticks = iter(range(0, 10**6, 60))
    monkeypatch.setattr(optimisation.time, "monotonic", lambda: float(next(ticks)))
    monkeypatch.setattr(pretrain_vision, "BATCH_SIZE", 2)
    monkeypatch.setattr(train, "BATCH_SIZE", 2)


def test_the_vision_tower_resumes(stepwise, tmp_path):
    first = pretrain_vision.pretrain_vision(tmp_path / "vision.pt", 20, 0, CPU)
    assert first["step"] > 0 and first["elapsed"] >= 20 * 60
    again = pretrain_vision.pretrain_vision(tmp_path / "vision.pt", 20, 0, CPU)
    assert again["step"] == first["step"], "the time was up"
    longer = pretrain_vision.pretrain_vision(tmp_path / "vision.pt", 40, 0, CPU)
    assert longer["step"] > first["step"]
    moved = [not torch.equal(longer["tower"][name], first["tower"][name]) for name in first["tower"]]
    assert sum(moved) > 0.9 * len(moved)


def test_every_parameter_learns_from_the_answers(stepwise):
    pytest.importorskip("easy_vqa")
    torch.manual_seed(0)
    tokenizer = train.load_tokenizer(train.DEFAULT_CHECKPOINT)
    model = train.build_model(tokenizer, CPU)
    heads = train.DenseHeads(model.config.vision_config.hidden_size)
    random = train.Random(0)
    encoder = train.RowEncoder(tokenizer, model.config.tokens_per_view, model.config.num_query_tokens)
    batch = encoder.batch(train.Pictures().draw(4, random), 3, random)
    losses = train.losses_of(model, heads, batch)

    whole = model(batch.input_ids, batch.pixel_values, batch.attention_mask, labels=batch.labels).loss
    torch.testing.assert_close(losses["answers"], whole)
    sum(losses.values()).backward()
    # Key biases shift all scores of a query alike, which a softmax does not see.
    still = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert all(name.endswith(("k_proj.bias", "score_proj.bias")) for name in still), still


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
