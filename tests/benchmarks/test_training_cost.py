import gc
import json
import weakref

import pytest
import torch

from benchmarks import training_cost
from benchmarks.training_cost import ALL_PATCHES, OURS


def options(*arguments: str):
    return training_cost.parser().parse_args(["--tiny", "--dtype", "float32", "--steps", "2", *arguments])


@pytest.fixture(scope="module")
def steps():
    steps = training_cost.Steps(options())
    steps.choose("full")
    return steps


def test_smoke(tmp_path, capsys):
    pytest.importorskip("peft", reason="needs the extra `train`")
    output = tmp_path / "cost.json"
    training_cost.main(["--tiny", "--dtype", "float32", "--steps", "2", "--checkpointing", "--output", str(output)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == [OURS, ALL_PATCHES, "**share**"]
    models = json.loads(output.read_text())["variants"]["lora"]
    assert [models[name]["positions"] for name in (OURS, ALL_PATCHES)] == [128 + 81 + 9, 128 + 729]
    for row in models.values():
        assert len(row["seconds"]) == len(row["peak_bytes"]) == 2 and min(row["seconds"]) > 0
    share = training_cost.share_of(models)
    assert share["flops"] < 0.5 and share["kept_bytes"] < 0.5


def test_what_is_kept_for_backward_is_counted_and_let_go():
    weight, made = torch.nn.Parameter(torch.ones(8, 8)), []

    def call() -> None:
        product = weight @ torch.ones(8, 4)
        made.append(weakref.ref(torch.tanh(product)))

    # Of the product its right side is kept, of tanh its result; the weight is a parameter.
    assert training_cost.kept_for_backward(call) == 2 * 8 * 4 * 4
    gc.collect()
    assert made[0]() is None


def test_both_share_tower_and_decoder(steps):
    ours, other = (dict(steps.models[name].named_parameters()) for name in (OURS, ALL_PATCHES))
    own = {name for name, parameter in other.items() if not any(parameter is p for p in ours.values())}
    assert own == {f"projector.{index}.{part}" for index in (0, 2) for part in ("weight", "bias")}


def test_every_patch_reaches_the_decoder(steps):
    model, batch = steps.models[ALL_PATCHES].eval(), dict(steps.batches[ALL_PATCHES])
    with torch.no_grad():
        before = model(**batch)
        batch["pixel_values"] = batch["pixel_values"].clone()
        batch["pixel_values"][..., -30:-6, -30:-6] = 0  # the patch in the last corner; 384 is 27 x 14 and 6 pixels
        assert model(**batch) != before
    model.train()


def test_full_training_leaves_the_tower_alone(steps):
    for model in steps.models.values():
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert frozen == {name for name, _ in model.named_parameters() if "vision_tower" in name} != set()
        assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_text_must_have_room_for_a_question(steps):
    with pytest.raises(ValueError, match="must be more than 64, got 60"):
        training_cost.batch_of(steps.models[OURS], OURS, rows=1, text_tokens=60)


def test_lora_trains_adapters_and_what_is_neither_decoder_nor_tower():
    pytest.importorskip("peft", reason="needs the extra `train`")
    steps = training_cost.Steps(options())
    steps.choose("lora")
    trained = {
        name: {key for key, parameter in model.named_parameters() if parameter.requires_grad}
        for name, model in steps.models.items()
    }
    of_decoder = {name: {key for key in keys if "language_model" in key} for name, keys in trained.items()}
    assert all("lora_" in key for keys in of_decoder.values() for key in keys)
    assert len(of_decoder[OURS]) == len(of_decoder[ALL_PATCHES]) == 3 * 6 * 2
    assert {key.split(".")[0] for key in trained[ALL_PATCHES] - of_decoder[ALL_PATCHES]} == {"projector"}
    parts = {key.split(".")[1] for key in trained[OURS] - of_decoder[OURS]}
    assert parts == {"multi_modal_projector", "query_tokens", "embq"}
