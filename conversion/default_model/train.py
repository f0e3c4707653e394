"""Train the default model: the vision tower first; behind it alignment, looking, instruction and counting.

    python -m conversion.default_model.train --output DIR

Run the same command again after an interruption and it goes on from the last checkpoint. To train a part for longer,
give it more minutes (`--instruction-minutes 600`): it goes on from where it ended. DIR receives the model as
`from_pretrained` reads it, in bfloat16, with tokenizer, processor and chat template. A CPU or a GPU will do.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

import transformers_flashsloth
from transformers_flashsloth import (
    FlashSlothConfig,
    FlashSlothForConditionalGeneration,
    FlashSlothImageProcessor,
    FlashSlothProcessor,
)

from .architecture import attention_for, initialise, model_config
from .canvas import IMAGE_SIZE
from .features import FeatureBank
from .optimisation import Budget
from .pictures import Pictures
from .pretrain_vision import pretrain_vision
from .scene import PATCH_SIZE
from .stages import ALIGNMENT, COUNTING, INSTRUCTION, LOOKING, STAGES, run_stage
from .tokenizer import IMAGE, QUERY, train_tokenizer

DEFAULT_CHECKPOINT = Path(transformers_flashsloth.__file__).with_name("default_checkpoint")
"""Where the trained default lies in the package."""
NUM_PICTURES = 60_000
"""Pictures of the stages; their features take 3.3 GB."""
MINUTES = {"vision": 36.0, ALIGNMENT.name: 16.0, LOOKING.name: 3.5, INSTRUCTION.name: 52.0, COUNTING.name: 54.0}
"""What each part of the training takes; with the features of all pictures, under three hours."""
LEFT_FROM_A_START = (INSTRUCTION.name, COUNTING.name)
LONGEST_ANSWER = 96
"""Tokens; a description of seven things takes 80."""


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved in `directory`, alone or with a model."""
    return PreTrainedTokenizerFast.from_pretrained(directory)


def build_model(
    tokenizer: PreTrainedTokenizerBase, device: torch.device, tower: dict | None = None, **choices: object
) -> FlashSlothForConditionalGeneration:
    """The untrained default behind `tower`, a state dict; `choices` replace fields of its config."""
    model = FlashSlothForConditionalGeneration._from_config(
        model_config(tokenizer, **choices), attn_implementation=attention_for(device)
    )
    initialise(model)
    if tower is not None:
        model.model.vision_tower.load_state_dict(tower)
    return model.to(device).train()


def export(model: FlashSlothForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Write weights in bfloat16, configs, tokenizer, processor and chat template."""
    model = model.to("cpu", torch.bfloat16).eval()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=LONGEST_ANSWER,
    )
    model.save_pretrained(output)
    processor(model.config, tokenizer).save_pretrained(output)


def processor(config: FlashSlothConfig, tokenizer: PreTrainedTokenizerBase) -> FlashSlothProcessor:
    """The processor of a model with this config: one view of 96 pixels."""
    return FlashSlothProcessor(
        image_processor=FlashSlothImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        tokenizer=tokenizer,
        image_token=IMAGE,
        query_token=QUERY,
        num_query_tokens=config.num_query_tokens,
        patch_size=PATCH_SIZE,
        pooling_window=1 if config.pooling == "none" else config.pooling_window,
    )


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All weights of a saved model, in float32."""
    return AutoModelForImageTextToText.from_pretrained(checkpoint).float().state_dict()


def tower_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The vision tower's weights of a saved model."""
    name = "model.vision_tower."
    return {key.removeprefix(name): value for key, value in weights_of(checkpoint).items() if key.startswith(name)}


def train(
    output: Path,
    seed: int,
    device: torch.device,
    minutes: dict[str, float] = MINUTES,
    pictures: int = NUM_PICTURES,
    tower: Path | None = None,
    start: Path | None = None,
) -> None:
    """Tower, the stages behind it and the export; checkpoints are kept in `output`/training.

    With a `start`, a saved model, there is nothing left but instruction and counting.
    """
    kept = output / "training"
    if start:
        tower = start
        minutes = {part: left if part in LEFT_FROM_A_START else 0.0 for part, left in minutes.items()}
    first = tower_of(tower) if tower and not (kept / "vision.pt").exists() else None
    vision = pretrain_vision(kept / "vision.pt", minutes["vision"], seed, device, first)
    if not (kept / "tokenizer").exists():
        (load_tokenizer(start) if start else train_tokenizer(seed)).save_pretrained(kept / "tokenizer")
    tokenizer = load_tokenizer(kept / "tokenizer")
    torch.manual_seed(seed)
    model = build_model(tokenizer, device, vision["tower"])
    if start:
        model.load_state_dict(weights_of(start))
    bank = FeatureBank(kept / "features", Pictures(seed), pictures, model.model.vision_tower)
    bank.fill()
    for stage in STAGES:
        budget = Budget(minutes=minutes[stage.name])
        run_stage(stage, model, bank, tokenizer, kept / f"{stage.name}.pt", budget, seed)
    export(model, tokenizer, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="directory of the model and of the checkpoints")
    for part, minutes in MINUTES.items():
        parser.add_argument(f"--{part}-minutes", type=float, default=minutes, help="over interruptions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=NUM_PICTURES, help="pictures of the stages, 55 kB each")
    parser.add_argument("--tower", type=Path, help="checkpoint whose vision tower to begin with, not a random one")
    parser.add_argument("--start", type=Path, help="checkpoint to go on from: instruction and counting are done")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    minutes = {part: getattr(arguments, f"{part}_minutes") for part in MINUTES}
    device = torch.device(arguments.device)
    train(arguments.output, arguments.seed, device, minutes, arguments.pictures, arguments.tower, arguments.start)
    print(f"The trained model is in {arguments.output}.")


if __name__ == "__main__":
    main()
