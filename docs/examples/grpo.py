# /// script
# dependencies = ["transformers-flashsloth[train]"]
# ///
"""
GRPO with images: the small model learns to name outlined shapes from rewards alone, an answer being right or wrong.

    python docs/examples/grpo.py --output_dir grpo

Flags are those of TRL's `GRPOConfig`; `--num_pictures` and `--num_held_out` say how many pictures are drawn.
"""

import torch
from datasets import Dataset
from outlines import PROMPT, ScriptArguments, accuracy, drawings
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer, TrlParser

from transformers_flashsloth import DEFAULT_CHECKPOINT, FlashSlothForConditionalGeneration, FlashSlothProcessor

DEFAULTS = {
    "output_dir": "grpo",
    "learning_rate": 1e-3,
    "max_steps": 40,
    "per_device_train_batch_size": 32,
    "num_generations": 8,
    "max_completion_length": 4,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": not torch.accelerator.is_available(),
    "logging_steps": 5,
    "save_strategy": "no",
    "report_to": "none",
}


def is_right(completions, shape, **kwargs) -> list[float]:
    """1 for the shape's name, 0 for anything else."""
    return [float(turns[0]["content"].strip() == name) for turns, name in zip(completions, shape, strict=True)]


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, GRPOConfig))
    parser.set_defaults_with_config(**DEFAULTS)
    script, training = parser.parse_args_and_config()

    processor = FlashSlothProcessor.from_pretrained(DEFAULT_CHECKPOINT)
    model = FlashSlothForConditionalGeneration.from_pretrained(DEFAULT_CHECKPOINT, dtype=torch.float32)
    held_out = drawings("held out", script.num_held_out)
    print(f"before: {accuracy(model, processor, held_out):.1%}")

    pictures = drawings("train", script.num_pictures)
    rows = [{"prompt": PROMPT, "images": [image], "shape": shape} for image, shape in pictures]
    trainer = GRPOTrainer(
        model,
        is_right,
        args=training,
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
        peft_config=LoraConfig(r=16, lora_alpha=32),
    )
    trainer.train()
    trainer.save_model()
    print(f"after: {accuracy(trainer.model.eval(), processor, held_out):.1%}")
