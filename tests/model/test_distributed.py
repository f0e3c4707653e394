"""Two processes compute what one computes, on the engines of transformers and TRL."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import transformers_flashsloth
from tests.model import distributed_process as worker
from transformers_flashsloth import FlashSlothForConditionalGeneration

CONFIGS = Path(transformers_flashsloth.__file__).parent / "training/accelerate_configs"


TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def launch(part: str, checkpoint: str, out: Path, options: list[str] = TWO, **environment: str) -> None:
    process = subprocess.run(
        [sys.executable, *options, worker.__file__, part, checkpoint, out],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        timeout=900,  # ranks that wait for one another in vain wait for hours
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
    @pytest.mark.parametrize("case", worker.CASES)
    def test_losses_of_a_rank_with_images_and_one_without(self, native, alone, case):
        ranks = reports(native, case)
        for step, losses in enumerate(alone["losses"]):
            found = [ranks[(step + i) % 2]["losses"][step][0] for i in range(2)]
            assert found == pytest.approx(losses, abs=1e-5)
        assert alone["losses"][-1][0] < alone["losses"][0][0] - 0.1

    @pytest.mark.parametrize("case", worker.CASES)
    def test_trained_parameters(self, native, alone, case):
        found = FlashSlothForConditionalGeneration.from_pretrained(native / case).state_dict()
        expected = alone["model"].state_dict()
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)

    @pytest.mark.parametrize("case", worker.CASES)
    def test_evaluation_of_a_rank_with_images_and_one_without(self, native, alone, case):
        assert [rank["evaluated"] for rank in reports(native, case)] == pytest.approx(alone["evaluated"], abs=1e-5)

    def test_a_rank_holds_half(self, native, alone):
        whole = alone["model"].num_parameters()
        layers = [f"model.language_model.layers.{index}" for index in range(2)]
        for rank in reports(native, "plain"):
            assert rank["local"] < 0.51 * whole
            assert set(layers) < set(rank["wrapped"])
        for rank in reports(native, "all apart"):
            assert {"model.vision_tower.encoder.layers.0", "model.embq", *layers} < set(rank["wrapped"])


@pytest.fixture(scope="module")
def model(tiny_checkpoint) -> FlashSlothForConditionalGeneration:
    return worker.load(tiny_checkpoint)


@pytest.fixture(scope="module")
def expected(tiny_checkpoint) -> dict:
    """What one process finds where two share the decoder."""
    return worker.tensor_parallel_report(worker.load(tiny_checkpoint), tiny_checkpoint)


def test_evaluating_text_alone_runs_a_tower_that_other_ranks_gather(tiny_checkpoint, model, monkeypatch):
    """Under ZeRO-3 as under FSDP2; and only where a prompt begins."""
    calls = []
    handle = model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    text = worker.batches(tiny_checkpoint)[1]
    inputs = {name: text[name] for name in ("input_ids", "attention_mask")}
    expected = model.eval()(**inputs).logits
    assert not calls
    monkeypatch.setattr(model.model.embq.up_proj.weight, "ds_id", 0, raising=False)
    torch.testing.assert_close(model(**inputs).logits, expected)
    assert len(calls) == 1
    model.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert len(calls) == 2
    handle.remove()


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


class TestAccelerate:
    @pytest.fixture(autouse=True)
    def installed(self):
        pytest.importorskip("accelerate", reason="needs the extra `train`")

    @pytest.mark.parametrize("name, kind", [("fsdp2", "FSDP"), ("zero3", "DEEPSPEED")])
    def test_configs_are_understood(self, name, kind):
        from accelerate.commands.config.config_args import load_config_from_file

        config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))  # raises at keys that it does not know
        assert config.distributed_type == kind and config.mixed_precision == "bf16"

    def test_options_are_those_of_the_launcher(self):
        from accelerate.commands.launch import launch_command_parser

        known = {action.dest for action in launch_command_parser()._actions}
        for name in ("fsdp2", "zero3"):
            content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
            assert set(content.get("fsdp_config", {})) | set(content.get("deepspeed_config", {})) <= known

    def test_the_config_shards_each_decoder_layer(self, model):
        content = yaml.safe_load((CONFIGS / "fsdp2.yaml").read_text())["fsdp_config"]
        names = content["fsdp_transformer_layer_cls_to_wrap"].split(",")
        assert self.wrapped(model, names) == {f"model.language_model.layers.{index}" for index in range(2)}

    def test_without_a_config_every_name_is_found(self, model):
        wrapped = self.wrapped(model, None)
        assert {"model.embq", "model.multi_modal_projector", "model.vision_tower.encoder.layers.0"} < wrapped

    def wrapped(self, model, names: list[str] | None) -> set[str]:
        """Names of the modules that accelerate's FSDP2 shards one by one."""
        from accelerate import FullyShardedDataParallelPlugin
        from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=names
        )
        policy = fsdp2_prepare_auto_wrap_policy(plugin, model)
        return {name for name, module in model.named_modules() if policy(module)}

    @pytest.mark.slow
    def test_on_cpus_accelerate_replicates(self, tiny_checkpoint, tmp_path):
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "fsdp2.yaml")]
        launch("accelerate", tiny_checkpoint, tmp_path, [*launcher, "--num_processes", "2"])
        assert reports(tmp_path, "accelerate") == [{"type": "MULTI_CPU", "ranks": 2}] * 2


@pytest.mark.slow
class TestZero3:
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def trained(cls, tiny_checkpoint, tmp_path_factory):
        """What two processes made with DeepSpeed on CPUs."""
        for module in ("accelerate", "deepspeed"):
            pytest.importorskip(module, reason="needs the extra `train`, and DeepSpeed")
        cls.out = tmp_path_factory.mktemp("zero3")
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "zero3.yaml")]
        launcher += ["--num_processes", "2", "--mixed_precision", "no"]
        launch("zero3", tiny_checkpoint, cls.out, launcher, DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")

    @pytest.mark.parametrize("case", worker.ZERO3_CASES)
    def test_losses_of_a_rank_with_images_and_one_without(self, alone, case):
        ranks = reports(self.out, case)
        for step, losses in enumerate(alone["losses"]):
            found = [ranks[(step + i) % 2]["losses"][step][0] for i in range(2)]
            assert found == pytest.approx(losses, abs=1e-5)
        assert [rank["evaluated"] for rank in ranks] == pytest.approx(alone["evaluated"], abs=1e-5)

    @pytest.mark.parametrize("case", worker.ZERO3_CASES)
    def test_trained_parameters(self, alone, case):
        found, expected = torch.load(self.out / case / "pytorch_model.bin"), alone["model"].state_dict()
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)

    def test_a_rank_holds_half(self, alone):
        for rank in reports(self.out, "plain"):
            assert rank["local"] < 0.51 * alone["model"].num_parameters()


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
            assert found["sharded"]["sharded"] == found["sharded with LoRA"]["sharded"] > 80
            assert found["replicated"]["sharded"] == 0
            assert found["replicated"]["wrapper"] == "DistributedDataParallel"
