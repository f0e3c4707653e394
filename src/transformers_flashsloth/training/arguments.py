"""What the recipes ask on the command line beside the flags of TRL: which data, and what to do with broken rows."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers.utils.versions import require_version
from yaml import YAMLError

from ..answering.scoring import METRICS
from ..checkpoints.opening import InputError
from .row_files import TrainingDataError

try:
    require_version("trl>=1.16")  # the first that trains on answers alone where rows have images, on every device
    from trl import ModelConfig, ScriptArguments, SFTConfig, TrlParser
except ImportError as error:
    hint = 'pip install --upgrade "transformers-flashsloth[train]"'
    raise ImportError(f"Training needs trl 1.16 or newer and its companions: {hint}.") from error

# Shared by the recipes. Rows are never cut: one that is longer than `max_length` is a broken row.
DEFAULTS = {
    "max_length": 3072,
    "assistant_only_loss": True,
    "train_sampling_strategy": "group_by_length",
    "length_column_name": "grouping_length",
    "remove_unused_columns": False,  # TRL would drop the lengths before rows are grouped by them
    "logging_first_step": True,
    "report_to": "none",
}
# The release's schedule of both stages.
STAGE_DEFAULTS = {
    "num_train_epochs": 1,
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "warmup_steps": 0.03,  # a part of all steps
    "lr_scheduler_type": "cosine",
}


@dataclass
class DataArguments(ScriptArguments):
    """Which data: a dataset of the Hub or on disk in one of TRL's formats, or files for the package's readers."""

    llava_json: str | None = field(
        default=None, metadata={"help": "LLaVA's JSON or JSONL, instead of `--dataset_name`; with `--image_folder`."}
    )
    csv: str | None = field(
        default=None,
        metadata={"help": "CSV or JSONL with an image, a question and an answer a row; with `--image_folder`."},
    )
    image_folder: str | None = field(default=None, metadata={"help": "What image files are relative to."})
    image_column: str | None = field(default=None, metadata={"help": "Default: image or file_name."})
    question_column: str = field(default="question", metadata={"help": "Column of `--csv`."})
    answer_column: str = field(default="answer", metadata={"help": "Column of `--csv`."})
    on_error: Literal["raise", "skip"] = field(
        default="raise", metadata={"help": "Stop at the first broken row, or leave broken rows out and name them."}
    )
    check_images: bool = field(default=True, metadata={"help": "Decode all images before training."})
    eval_fraction: float = field(
        default=0.0, metadata={"help": "Part of the rows kept for evaluation; for `--llava_json` and `--csv`."}
    )
    eval_answers: str | None = field(
        default=None,
        metadata={
            "help": "Answer held-out questions at every evaluation, and report exact match and ANLS: how many of the "
            "rows kept for evaluation, or a file of rows as `--csv` and `--llava_json` take them, which then is what "
            "is evaluated."
        },
    )
    eval_max_new_tokens: int | None = field(
        default=None,
        metadata={"help": "Longest of these answers in tokens. Default: twice the longest expected one."},
    )
    image_hd: bool | None = field(
        default=None, metadata={"help": "Read images in high definition. Default: as the model says."}
    )
    pooling_windows: list[str] | None = field(
        default=None,
        metadata={"help": "Sides of windows, such as 3,9: one is drawn for each batch. Default: the model's own."},
    )

    def __post_init__(self):
        given = [name for name in ("dataset_name", "llava_json", "csv") if getattr(self, name)]
        if len(given) != 1:
            raise InputError(f"give one of --dataset_name, --llava_json and --csv, not {' and '.join(given) or 'none'}")
        if self.csv and not self.image_folder:
            raise InputError("--csv needs --image_folder, the folder that its images are in")
        if not 0 <= self.eval_fraction < 1:
            raise InputError(f"--eval_fraction must be at least 0 and less than 1, got {self.eval_fraction}")
        self._check_answers()
        if self.pooling_windows:
            sides = [side for item in self.pooling_windows for side in str(item).split(",")]
            if not all(side.strip().isdecimal() for side in sides):
                raise InputError(f"--pooling_windows are sides in patches, such as 3,9, not {','.join(sides)}")
            self.pooling_windows = [int(side) for side in sides]

    @property
    def eval_file(self) -> str | None:
        """The file that `eval_answers` names, if it names one."""
        return None if self.eval_answers is None or self.eval_answers.isdecimal() else self.eval_answers

    @property
    def num_eval_answers(self) -> int | None:
        """The number that `eval_answers` is, if it is one."""
        return None if self.eval_answers is None or self.eval_file else int(self.eval_answers)

    def _check_answers(self) -> None:
        if self.eval_answers is None:
            if self.eval_max_new_tokens is not None:
                raise InputError("--eval_max_new_tokens is the length of answers: say how many with --eval_answers")
            return
        self.eval_answers = str(self.eval_answers)  # a number in a YAML file
        if self.num_eval_answers == 0 or (self.eval_file and not os.path.isfile(self.eval_file)):
            raise InputError(
                f"--eval_answers is a number of held-out rows, at least 1, or a file of rows, not {self.eval_answers!r}"
            )
        if self.eval_file and self.eval_fraction:
            raise InputError(
                "--eval_answers names a file to evaluate on, so --eval_fraction has no rows to keep for it"
            )
        if self.eval_max_new_tokens is not None and self.eval_max_new_tokens < 1:
            raise InputError("--eval_max_new_tokens must be at least 1")


@dataclass
class StageArguments(DataArguments):
    """A stage of the full training: the batch is that of all devices and accumulated steps together."""

    global_batch_size: int = field(
        default=128, metadata={"help": "Rows a step, if --gradient_accumulation_steps does not say otherwise."}
    )
    train_vision_tower: bool = field(default=False, metadata={"help": "Train the vision tower too, as for HD."})


def accumulate(script: StageArguments, training: SFTConfig) -> None:
    """
    Sets the accumulation that makes a step's rows `global_batch_size`, unless one was asked for.

    Raises:
        InputError: if devices and batches a device do not divide it.
    """
    if training.gradient_accumulation_steps > 1:
        return
    at_once = training.per_device_train_batch_size * training.world_size
    if script.global_batch_size % at_once:
        raise InputError(
            f"--global_batch_size {script.global_batch_size} is no multiple of the {at_once} rows of "
            f"{training.world_size} processes with --per_device_train_batch_size {training.per_device_train_batch_size}"
        )
    training.gradient_accumulation_steps = script.global_batch_size // at_once


def has_bfloat16() -> bool:
    """Whether there is an accelerator that computes in bfloat16."""
    return torch.accelerator.is_available() and (not torch.cuda.is_available() or torch.cuda.is_bf16_supported())


def parse_arguments(
    script_class: type[DataArguments], defaults: dict, arguments: Sequence[str] | None
) -> tuple[DataArguments, SFTConfig, ModelConfig]:
    """
    Parses a recipe's command line, or the YAML file that `--config` names; what is not given is as in `defaults`.

    Raises:
        InputError: for arguments that exclude each other.
    """
    parser = TrlParser((script_class, SFTConfig, ModelConfig))
    use_cpu = not torch.accelerator.is_available()
    parser.set_defaults_with_config(
        **{"use_cpu": use_cpu, "dataset_num_proc": os.cpu_count()}
        # TRL's default, `None`, is bfloat16 unless float16 is asked for.
        | {"bf16": None if has_bfloat16() else False}
        | DEFAULTS
        | defaults
    )
    try:
        script, training, model_args = parser.parse_args_and_config(arguments)
    except (ValueError, ImportError, OSError, YAMLError) as error:
        raise InputError(" ".join(str(error).split())) from error
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "global_batch_size"):
        if getattr(script, name, getattr(training, name, 1)) < 1:
            raise InputError(f"--{name} must be at least 1")
    best = (training.metric_for_best_model or "").removeprefix("eval_")
    if script.eval_answers is None and best in [metric.__name__ for metric in METRICS]:
        raise InputError(f"--metric_for_best_model {best} is a figure of answers: ask for them with --eval_answers")
    if model_args.use_peft and isinstance(script, StageArguments):
        raise InputError("--use_peft is for `flashsloth train lora`: a stage trains the model itself, without adapters")
    return script, training, model_args


def run_command(main: Callable[[], object]) -> int:
    """Runs a recipe; what the user gave wrong ends in one sentence and the exit code 2."""
    try:
        main()
    except (InputError, TrainingDataError) as error:
        # A worker of a data loader puts its traceback before the message.
        sys.stderr.write(f"error: {str(error).strip().splitlines()[-1]}\n")
        return 2
    return 0
