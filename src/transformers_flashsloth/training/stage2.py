r"""
Stage 2, instruction: projector, SAP, queries, EmbQ and decoder learn from conversations; the vision tower stays.

Every answer and its `</s>` are trained on. On the release's data, with its schedule (learning rate 2e-5, 128 rows a
step, one epoch), from what stage 1 saved:

    accelerate launch -m transformers_flashsloth train stage2 --model_name_or_path stage1 \
        --llava_json llava_instruct.json --image_folder images --on_error skip --output_dir flashsloth

High definition goes on from there with `--image_hd True`, and `--train_vision_tower` if the tower is to learn too. All
flags of TRL's `SFTConfig` work.
"""

import sys
from collections.abc import Sequence

from trl import SFTTrainer

from ..checkpoints.opening import InputError
from .arguments import STAGE_DEFAULTS, StageArguments, accumulate, parse_arguments, run_command
from .run import build_trainer, load_model, load_processor, run, step_flags
from .splits import load_data

DEFAULTS = STAGE_DEFAULTS | {"learning_rate": 2e-5, "global_batch_size": 128, "output_dir": "stage2"}


def main(arguments: Sequence[str] | None = None) -> SFTTrainer:
    """Trains stage 2 and returns the trainer."""
    script, training, model_args = parse_arguments(StageArguments, DEFAULTS, arguments)
    if model_args.model_name_or_path is None:
        raise InputError("--model_name_or_path must name what stage 1 saved")
    accumulate(script, training)
    record = {"recipe": {"name": "stage 2"}, "training": step_flags(training)}
    processor, config = load_processor(script, model_args)
    train, evaluation = load_data(script, training, processor, config)

    model = load_model(training, model_args)
    model.model.vision_tower.requires_grad_(script.train_vision_tower)
    trainer = build_trainer(
        model,
        script,
        args=training,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=processor,
    )
    return run(trainer, script, model_args, record)


if __name__ == "__main__":
    sys.exit(run_command(main))
