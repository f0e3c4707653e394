r"""
LoRA: an adapter for your questions and images.

On a LLaVA file, or a folder of images with a table of questions and answers:

    flashsloth train lora --model_name_or_path flashsloth-3.2b \
        --csv questions.csv --image_folder images --on_error skip \
        --eval_fraction 0.05 --eval_strategy epoch --eval_answers 100 --output_dir adapter

On a dataset of the Hub or on disk in one of TRL's formats (`messages`, or `prompt` and `completion`, with `images`):

    flashsloth train lora --model_name_or_path flashsloth-3.2b \
        --dataset_name HuggingFaceH4/llava-instruct-mix-vsft --train_compressor \
        --lora_r 64 --lora_alpha 128 --output_dir adapter

All flags of TRL's `SFTConfig` and `ModelConfig` work, `--config file.yaml` too; for several GPUs write
`accelerate launch -m transformers_flashsloth` instead of `flashsloth`.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from peft import LoraConfig
from trl import ModelConfig, SFTTrainer, get_peft_config

from ..checkpoints.opening import DEFAULT_CHECKPOINT, InputError
from ..model.adapters_flashsloth import COMPRESSOR_MODULES
from ..model.modeling_flashsloth import FlashSlothForConditionalGeneration
from .arguments import DataArguments, has_bfloat16, parse_arguments, run_command
from .run import build_trainer, load_model, load_processor, run, step_flags
from .splits import load_data

DEFAULTS = {
    "model_name_or_path": DEFAULT_CHECKPOINT,
    "dtype": "bfloat16" if has_bfloat16() else "float32",  # of what is not trained
    "use_peft": True,
    "learning_rate": 2e-4,
    "output_dir": "adapter",
}


@dataclass
class LoraArguments(DataArguments):
    train_compressor: bool = field(
        default=False, metadata={"help": "Train projector, SAP, EmbQ and queries in full, beside the adapter."}
    )


def main(arguments: Sequence[str] | None = None) -> SFTTrainer:
    """Trains an adapter and returns the trainer."""
    script, training, model_args = parse_arguments(LoraArguments, DEFAULTS, arguments)
    record = {"recipe": {"name": "lora"}, "training": step_flags(training)}
    processor, config = load_processor(script, model_args)
    train, evaluation = load_data(script, training, processor, config)
    model = load_model(training, model_args)
    trainer = build_trainer(
        model,
        script,
        args=training,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=processor,
        peft_config=lora_config(model, script, model_args),
    )
    return run(trainer, script, model_args, record)


def lora_config(
    model: FlashSlothForConditionalGeneration, script: LoraArguments, model_args: ModelConfig
) -> LoraConfig:
    """The flags as PEFT's config; targets are the decoder's linears if none are given, never the vision tower."""
    targets = model_args.lora_target_modules
    if targets not in (None, "all-linear"):
        linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
        model_args.lora_target_modules = targets = [targets] if isinstance(targets, str) else targets
        unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in linears)]
        if unknown:
            raise InputError(f"--lora_target_modules: no linear of the model is called {' or '.join(unknown)}")
    config = get_peft_config(model_args)
    if config is None:
        raise InputError("this recipe trains adapters: leave out --use_peft, or train the model itself in stage 2")
    if script.train_compressor:
        config.modules_to_save = [*(config.modules_to_save or []), *COMPRESSOR_MODULES]
    return config


if __name__ == "__main__":
    sys.exit(run_command(main))
