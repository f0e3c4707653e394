# /// script
# dependencies = ["transformers-flashsloth[train]"]
# ///
"""
DPO with images: the small model learns to prefer the name of an outlined shape to what it says of the picture itself.

    python docs/examples/dpo.py --output_dir dpo

Flags are those of TRL's `DPOConfig`; `--num_pictures` and `--num_held_out` say how many pictures are drawn.
"""

import torch
from datasets import Dataset
from outlines import PROMPT, QUESTION, SHAPES, ScriptArguments, accuracy, drawings
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer, TrlParser

from transformers_flashsloth import (
    DEFAULT_CHECKPOINT,
    FlashSlothForConditionalGeneration,
    FlashSlothProcessor,
    answer_all,
)

DEFAULTS = {
    "output_dir": "dpo",
    "learning_rate": 1e-3,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 16,
    "max_length": None,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": not torch.accelerator.is_available(),
    "logging_steps": 5,
    "save_strategy": "no",
    "report_to": "none",
}


def preferences(model, processor, number: int) -> Dataset:
    """Of each picture the shape's name, preferred to the model's answer or, where that is right, to another shape."""
    pictures = drawings("train", number)
    answers = answer_all(model, processor, [(image, QUESTION) for image, _ in pictures], batch_size=32)
    rows = []
    for (image, shape), answer in zip(pictures, answers, strict=True):
        wrong = answer if answer != shape else SHAPES[SHAPES.index(shape) - 1]
        said = {"chosen": shape, "rejected": wrong}
        turns = {name: [{"role": "assistant", "content": text}] for name, text in said.items()}
        rows.append({"prompt": PROMPT, "images": [image]} | turns)
    return Dataset.from_list(rows)


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, DPOConfig))
    parser.set_defaults_with_config(**DEFAULTS)
    script, training = parser.parse_args_and_config()

    processor = FlashSlothProcessor.from_pretrained(DEFAULT_CHECKPOINT)
    model = FlashSlothForConditionalGeneration.from_pretrained(DEFAULT_CHECKPOINT, dtype=torch.float32)
    held_out = drawings("held out", script.num_held_out)
    print(f"before: {accuracy(model, processor, held_out):.1%}")

    trainer = DPOTrainer(
        model,
        args=training,
        train_dataset=preferences(model, processor, script.num_pictures),
        processing_class=processor,
        peft_config=LoraConfig(r=16, lora_alpha=32),
    )
    trainer.train()
    trainer.save_model()
    print(f"after: {accuracy(trainer.model.eval(), processor, held_out):.1%}")
