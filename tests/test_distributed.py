"""Two processes compute what one computes, on the engines of transformers and TRL."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import distributed_process as worker
from transformers_flashsloth import FlashSlothForConditionalGeneration

ROOT = Path(__file__).parent.parent


TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def launch(part: str, checkpoint: str, out: Path, options: list[str] = TWO) -> None:
    process = subprocess.run(
        [sys.executable, *options, worker.__file__, part, checkpoint, out],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 0, process.stderr


def reports(out: Path, case: str) -> list[dict]:
    """What both ranks found."""
    return [torch.load(out / f"{case}.{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def native(tiny_checkpoint, tmp_path_factory) -> Path:
    """Directory of what two processes made with transformers alone."""
    out = tmp_path_factory.mktemp("native")
    launch("native", tiny_checkpoint, out)
    return out


@pytest.fixture(scope="module")
def alone(tiny_checkpoint) -> dict:
    """The same training in one process, both batches in each step."""
    model, pair = worker.load(tiny_checkpoint), worker.batches(tiny_checkpoint)
    losses = worker.train(model, [pair] * worker.STEPS)
    return {"model": model, "losses": losses, "evaluated": [worker.evaluate(model, batch) for batch in pair]}


class TestFullySharded:
    @pytest.mark.parametrize("case", worker.CHECKPOINTING)
    def test_losses_of_a_rank_with_images_and_one_without(self, native, alone, case):
        ranks = reports(native, case)
        for step, losses in enumerate(alone["losses"]):
            found = [ranks[(step + i) % 2]["losses"][step][0] for i in range(2)]
            assert found == pytest.approx(losses, abs=1e-5)
        assert alone["losses"][-1][0] < alone["losses"][0][0] - 0.1

    @pytest.mark.parametrize("case", worker.CHECKPOINTING)
    def test_trained_parameters(self, native, alone, case):
        found = FlashSlothForConditionalGeneration.from_pretrained(native / case).state_dict()
        expected = alone["model"].state_dict()
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)

    def test_evaluation_of_a_rank_with_images_and_one_without(self, native, alone):
        assert [rank["evaluated"] for rank in reports(native, "plain")] == pytest.approx(alone["evaluated"], abs=1e-5)

    def test_a_rank_holds_half(self, native, alone):
        whole = alone["model"].num_parameters()
        layers = [f"model.language_model.layers.{index}" for index in range(2)]
        for rank in reports(native, "plain"):
            assert rank["local"] < 0.51 * whole
            assert set(layers) < set(rank["wrapped"])


@pytest.fixture(scope="module")
def expected(tiny_checkpoint) -> dict:
    """What one process finds where two share the decoder."""
    return worker.tensor_parallel_report(worker.load(tiny_checkpoint), tiny_checkpoint)


class TestTensorParallel:
    def test_logits_and_tokens(self, native, expected):
        for rank in reports(native, "tensor parallel"):
            for found, logits in zip(rank["logits"], expected["logits"], strict=True):
                torch.testing.assert_close(found, logits, rtol=0, atol=1e-5)
            assert torch.equal(rank["tokens"], expected["tokens"])

    def test_gradients_of_what_is_not_split(self, native, expected):
        for rank in reports(native, "tensor parallel"):
            for name, gradient in expected["gradients"].items():
                torch.testing.assert_close(rank["gradients"][name], gradient, rtol=1e-4, atol=1e-7, msg=name)

    def test_the_decoder_is_split(self, native, expected):
        for rank in reports(native, "tensor parallel"):
            split = {name for name, shape in expected["shards"].items() if rank["shards"][name] != shape}
            assert all(name.startswith("language_model.") for name in split)
            assert {f"language_model.layers.1.{name}.weight" for name in ("self_attn.q_proj", "mlp.fc2")} <= split


@pytest.mark.slow
class TestTRL:
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def directories(cls, tiny_checkpoint, tmp_path_factory):
        """What one process and two made with TRL's trainer."""
        for module in ("datasets", "peft", "trl"):
            pytest.importorskip(module, reason="needs the extra `train`")
        cls.one, cls.two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
        launch("trl", tiny_checkpoint, cls.one, options=[])
        launch("trl", tiny_checkpoint, cls.two)

    @pytest.mark.parametrize("case", worker.TRL_CASES)
    def test_losses(self, case):
        expected = torch.load(self.one / f"{case}.0.pt")["losses"]
        for rank in reports(self.two, case):
            assert rank["losses"] == pytest.approx(expected, abs=1e-4)
        assert expected[-1] < expected[0]

    @pytest.mark.parametrize("case", worker.TRL_CASES)
    def test_saved_weights(self, case):
        (file,) = {file.name for file in (self.one / case).glob("*.safetensors")}
        found, expected = load_file(self.two / case / file), load_file(self.one / case / file)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)

    def test_which_models_are_sharded(self):
        for rank in range(2):
            found = {case: reports(self.two, case)[rank] for case in worker.TRL_CASES}
            assert found["sharded"]["sharded"] == found["sharded with LoRA"]["sharded"] > 90
            assert found["replicated"]["sharded"] == 0
            assert found["replicated"]["wrapper"] == "DistributedDataParallel"
