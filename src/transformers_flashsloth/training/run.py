"""What the recipes share around TRL's trainer: the model, loaded and checked; start, resumption and end."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from datasets import Dataset
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import find_adapter_config_file
from trl import ModelConfig, SFTConfig, SFTTrainer, get_quantization_config

from ..checkpoints.opening import InputError
from ..model.configuration_flashsloth import FlashSlothConfig
from ..model.modeling_flashsloth import FlashSlothForConditionalGeneration
from ..model.processing_flashsloth import FlashSlothProcessor
from .answering_trainer import AnsweringTrainer, Asking
from .arguments import DataArguments
from .held_out import HeldOut
from .row_files import TrainingDataError
from .windows import draw_windows

RECORD = "recipe.json"
# What a run's steps depend on; the data and model flags count too.
STEP_FLAGS = [
    "seed data_seed max_length learning_rate lr_scheduler_type warmup_steps weight_decay optim max_grad_norm",
    "num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps world_size",
    "train_sampling_strategy bf16 fp16 loss_type assistant_only_loss completion_only_loss",
]
# Flags of ours that change no step.
LOOKING_ON = ("eval_answers", "eval_max_new_tokens")
# The parts of the model, by how the names of their parameters begin (those of wrappers left out).
PARTS = {
    "vision tower": "model.vision_tower.",
    "SAP": "model.multi_modal_projector.pooling.",
    "projector": "model.multi_modal_projector.",
    "queries": "model.query_tokens.",
    "EmbQ": "model.embq.",
    "decoder": "model.language_model.",
    "head": "lm_head.",
}


def load_processor(script: DataArguments, model_args: ModelConfig) -> tuple[FlashSlothProcessor, FlashSlothConfig]:
    """Loads what rows are measured with. Raises InputError if it cannot be used."""
    path, revision = model_args.model_name_or_path, model_args.model_revision
    try:
        if find_adapter_config_file(path, revision=revision):
            raise InputError(f"{path!r} is an adapter: train its model, or merge the two first (`merge_and_unload`)")
        processor = FlashSlothProcessor.from_pretrained(path, revision=revision)
        config = FlashSlothConfig.from_pretrained(path, revision=revision)
    except (OSError, ValueError) as error:
        raise InputError(f"the model {path!r} cannot be loaded: {' '.join(str(error).split())}") from error
    if script.image_hd is not None:
        processor.image_processor.image_hd = script.image_hd
    return processor, config


def load_model(training: SFTConfig, model_args: ModelConfig) -> FlashSlothForConditionalGeneration:
    """Loads the model. Raises InputError if it cannot be used or weights are missing."""
    path = model_args.model_name_or_path
    options = {
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
    }
    if (quantization := get_quantization_config(model_args)) is not None:
        options |= {"quantization_config": quantization, "device_map": {"": training.device}}
    try:
        model, loading = FlashSlothForConditionalGeneration.from_pretrained(
            path, output_loading_info=True, **options | (training.model_init_kwargs or {})
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise InputError(f"the model {path!r} cannot be loaded: {' '.join(str(error).split())}") from error
    if missing := sorted(loading["missing_keys"]):
        raise InputError(f"the model {path!r} lacks {len(missing)} weights, such as {missing[0]!r}")
    training.model_init_kwargs = None
    return model


def build_trainer(
    model: FlashSlothForConditionalGeneration, script: DataArguments, asked: dict | None = None, **parts
) -> SFTTrainer:
    """
    TRL's trainer, or the one that answers questions if that is asked for, with the fields of [`Asking`] in `asked`.
    Raises InputError for flags that TRL, PEFT, or what the training is reported to, refuse.
    """
    with _refusals():
        if script.eval_answers is None:
            return SFTTrainer(model, **parts)
        rows = HeldOut(parts["eval_dataset"], script.num_eval_answers)
        return AnsweringTrainer(model, asking=Asking(rows, script.eval_max_new_tokens, **asked or {}), **parts)


def run(trainer: SFTTrainer, script: DataArguments, model_args: ModelConfig, record: dict) -> SFTTrainer:
    """
    Says what is trained, trains, resuming if asked to, and saves the model and its processor.

    Raises:
        InputError: if the checkpoint to resume from is missing or of a run with other flags; and for flags that are
            refused before the first step.
    """
    training, say = trainer.args, trainer.accelerator.print
    if script.pooling_windows:
        draw_windows(trainer, script.pooling_windows)
    train = trainer.train_dataset
    rows = len(train) if isinstance(train, Dataset) else train.num_shards
    flags = {name: value for name, value in asdict(script).items() if name not in LOOKING_ON}
    record = record | {"script": flags, "model": asdict(model_args), "data": {"rows or shards": rows}}
    record = json.loads(json.dumps(record, default=str))
    checkpoint = _checkpoint_to_resume(training, record)
    keeper = _KeepRecord(record)
    trainer.add_callback(keeper)
    say(f"{'part':<14}{'trained':>16}{'of':>16}")
    for part, (trained, total) in count_parameters(trainer.model).items():
        say(f"{part:<14}{trained:>16,}{total:>16,}")
    with _refusals(unless=lambda: keeper.has_begun):
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(training.output_dir)
    say(f"The model is in {training.output_dir}.")
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)
    trainer.end()
    return trainer


def step_flags(training: SFTConfig) -> dict:
    """The flags that a run's steps depend on, to be recorded before anything changes them."""
    return {name: getattr(training, name) for line in STEP_FLAGS for name in line.split()}


def count_parameters(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """How many parameters of each part of the model are trained, and how many there are, adapters included."""
    trained, total = Counter(), Counter()
    for name, parameter in model.named_parameters():
        if ".original_module." in name:
            continue  # PEFT trains a copy of it
        name = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
        part = next((part for part, prefix in PARTS.items() if name.startswith(prefix)), "other")
        # A quantised weight holds several numbers in one.
        size = getattr(parameter, "ds_numel", parameter.numel())
        total[part] += size
        trained[part] += size if parameter.requires_grad else 0
    return {part: (trained[part], total[part]) for part in [*PARTS, "other"] if total[part]}


@contextmanager
def _refusals(unless: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Makes one sentence of what is refused, `unless` the first step is behind us: then flags are not to blame."""
    try:
        yield
    except TrainingDataError:
        raise
    except (ValueError, TypeError, ImportError, RuntimeError, OSError) as error:
        if unless():
            raise
        raise InputError(" ".join(str(error).split())) from error


class _KeepRecord(TrainerCallback):
    """Puts the flags of the run beside every checkpoint."""

    def __init__(self, record: dict):
        self.record = record
        self.has_begun = False

    def on_step_begin(self, args, state, control, **kwargs):
        self.has_begun = True

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            directory = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (directory / RECORD).write_text(json.dumps(self.record, indent=2), encoding="utf-8")


def _checkpoint_to_resume(training: SFTConfig, record: dict) -> str | None:
    asked = training.resume_from_checkpoint
    if not asked or str(asked).lower() == "false":
        return None
    file = Path(asked) / RECORD
    if str(asked).lower() == "true":
        # The record is written last: without it, the run ended while the checkpoint was being saved.
        whole = Path(training.output_dir).glob(f"checkpoint-[0-9]*/{RECORD}")
        file = max(whole, key=lambda file: int(file.parent.name[11:]), default=Path(training.output_dir) / RECORD)
    if not file.is_file():
        raise InputError(f"there is nothing of this recipe to resume from: {str(file)!r} is missing")
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{str(file)!r} is damaged ({error}): resume from an earlier checkpoint") from error
    changed = [
        f"{name} was {earlier[group].get(name)!r} and is {record[group].get(name)!r}"
        for group in record
        for name in sorted({*earlier[group], *record[group]})
        if earlier[group].get(name) != record[group].get(name)
    ]
    if changed:
        raise InputError(
            f"{str(file.parent)!r} is of a run with other flags: {'; '.join(changed)}; resume with the same ones, or "
            "begin a new run with another --output_dir"
        )
    state = TrainerState.load_from_json(str(file.with_name(TRAINER_STATE_NAME)))
    if state.global_step >= state.max_steps:  # the trainer would take one step more
        raise InputError(f"there is nothing left to train: {str(file.parent)!r} is the last step of its run")
    return str(file.parent)
