"""TRL given a path: trainers load models, and the models that they are held against, from any checkpoint of ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl")

from datasets import Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)

from tests.model.tuning import (
    ONE_STEP,
    as_prompt_completion,
    quick_trainers,  # noqa: F401
    ragged_rows,
    state,
    step,
)
from transformers_flashsloth import FlashSlothForConditionalGeneration, FlashSlothProcessor
from transformers_flashsloth.authors.convert import convert
from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT


@pytest.fixture(scope="module")
def checkpoints(authors_directory, tmp_path_factory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("checkpoints")
    convert(str(authors_directory), directory / "converted")
    for part in (FlashSlothForConditionalGeneration, FlashSlothProcessor):
        part.from_pretrained(authors_directory).save_pretrained(directory / "saved")
    others = {kind: str(directory / kind) for kind in ("converted", "saved")}
    return {"shipped": DEFAULT_CHECKPOINT, "authors": str(authors_directory)} | others


def assert_equal_weights(model: torch.nn.Module, path: str) -> None:
    assert type(model) is FlashSlothForConditionalGeneration
    expected = state(FlashSlothForConditionalGeneration.from_pretrained(path, dtype=torch.float32))
    found = state(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", ["shipped", "authors", "converted", "saved"])
def test_the_model_that_is_trained(checkpoints, tmp_path, kind):
    args = SFTConfig(str(tmp_path), **ONE_STEP, per_device_train_batch_size=2, max_length=None)
    trainer = SFTTrainer(checkpoints[kind], args=args, train_dataset=Dataset.from_list(ragged_rows()[:2]))

    assert_equal_weights(trainer.model, checkpoints[kind])
    assert type(trainer.processing_class) is FlashSlothProcessor
    loss, moved = step(trainer)
    assert 0 < loss < 100 and any(change.any() for change in moved.values())


@pytest.mark.parametrize("kind", ["shipped", "authors"])
@pytest.mark.parametrize(
    ("trainer_class", "config_class"),
    [(DPOTrainer, DPOConfig), (KTOTrainer, KTOConfig), (GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)],
    ids=["dpo", "kto", "grpo", "rloo"],
)
def test_reference_models(checkpoints, tmp_path, trainer_class, config_class, kind):
    row = as_prompt_completion(ragged_rows()[0])
    if trainer_class is DPOTrainer:
        row["chosen"] = row["rejected"] = row.pop("completion")
    row["label"] = True
    online = config_class in (GRPOConfig, RLOOConfig)
    options = {"num_generations": 2, "per_device_train_batch_size": 2} if online else {"max_length": None}
    parts = {"reward_funcs": lambda completions, **_: [0.0] * len(completions)} if online else {}
    trainer = trainer_class(
        model=checkpoints[kind],
        args=config_class(str(tmp_path), **ONE_STEP, **options, beta=0.1),
        train_dataset=Dataset.from_list([row] * 2),
        **parts,
    )
    assert trainer.ref_model is not trainer.model
    assert_equal_weights(trainer.accelerator.unwrap_model(trainer.ref_model), checkpoints[kind])
    assert type(trainer.processing_class) is FlashSlothProcessor


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shipped", "saved"])
def test_trl_command_line(tmp_path, kind):
    """`trl sft` relaunches its own script, which imports nothing of ours: the checkpoint brings the code along."""
    checkpoint, data, adapter = (str(tmp_path / name) for name in ("checkpoint", "data", "adapter"))
    if kind == "shipped":
        checkpoint = DEFAULT_CHECKPOINT
    else:
        AutoModelForImageTextToText.from_pretrained(DEFAULT_CHECKPOINT).save_pretrained(checkpoint)
        AutoProcessor.from_pretrained(DEFAULT_CHECKPOINT).save_pretrained(checkpoint)
    Path(data).mkdir()
    Dataset.from_list(ragged_rows()).to_parquet(f"{data}/train.parquet")
    command = [os.path.join(os.path.dirname(sys.executable), "trl"), "sft", "--use_cpu", "--report_to", "none"]
    command += ["--model_name_or_path", checkpoint, "--trust_remote_code", "true", "--dataset_name", data]
    command += ["--output_dir", adapter, "--max_length", "none", "--assistant_only_loss", "true", "--bf16", "false"]
    command += ["--max_steps", "2", "--per_device_train_batch_size", "2", "--use_peft", "--learning_rate", "1e-2"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}

    process = subprocess.run(command, capture_output=True, text=True, env=environment)

    assert process.returncode == 0, process.stderr
    model = AutoModelForImageTextToText.from_pretrained(adapter)
    moved = {name: p for name, p in model.named_parameters() if "lora_B" in name}
    assert len(moved) == 24 and all(".language_model." in name and p.abs().max() > 0 for name, p in moved.items())


def test_a_trl_that_is_too_old_is_said():
    code = """if True:
        from importlib import metadata
        version, metadata.version = metadata.version, lambda name: "1.15.0" if name == "trl" else version(name)
        import transformers_flashsloth.training.arguments"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'Training needs trl 1.16 or newer and its companions: pip install --upgrade "trans' in process.stderr
