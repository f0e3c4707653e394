r"""
Stage 1, alignment: the projector and SAP learn to show captioned images to the decoder; nothing else changes.

A row is `<image>CAPTION<learnable>\n`, trained on the caption and the newline. On the release's data, LLaVA's 558k
captions, with its schedule (learning rate 1e-3, 256 rows a step, one epoch):

    accelerate launch -m transformers_flashsloth train stage1 --model_name_or_path untrained-flashsloth \
        --llava_json blip_laion_cc_sbu_558k.json --image_folder images --on_error skip --output_dir stage1

All flags of TRL's `SFTConfig` work. `flashsloth build` makes the untrained model.
"""

import json
import sys
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from ..building.decoder_chat import special_texts
from ..checkpoints.opening import InputError
from .arguments import STAGE_DEFAULTS, StageArguments, accumulate, parse_arguments, run_command
from .run import build_trainer, load_model, load_processor, run, step_flags
from .splits import load_data

DEFAULTS = STAGE_DEFAULTS | {"learning_rate": 1e-3, "global_batch_size": 256, "output_dir": "stage1"}

# The instruction of the row ("Describe the image") is left out; what is trained on stands in `generation` blocks.
CHAT_TEMPLATE = """\
{%- set image, query = image_token | default("<image>"), query_token | default("<learnable>") -%}
{%- set caption = messages[-1]["content"][0]["text"] -%}
{%- set images = messages[0]["content"] | selectattr("type", "equalto", "image") | list -%}
{%- if messages | length != 2 or images | length != 1 -%}
    {{- raise_exception("Stage 1 needs rows of one image, one question and one caption") -}}
{%- endif -%}
{%- for token in [image, query] + SPECIAL_TEXTS if token in caption -%}
    {{- raise_exception("The caption contains the text of the special token " ~ token) -}}
{%- endfor -%}
{{- image -}}
{%- generation -%}{{- caption -}}{%- endgeneration -%}
{{- query -}}
{%- generation -%}{{- "\\n" -}}{%- endgeneration -%}
"""

# Held-out images are shown alone, as captions begin right behind them. Nothing of a row teaches where a caption ends.
ASKED = {"chat_template": '{{- image_token | default("<image>") -}}', "answers_end": False}


def caption_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """`CHAT_TEMPLATE`, refusing captions with the text of a special token of this tokenizer."""
    return CHAT_TEMPLATE.replace("SPECIAL_TEXTS", json.dumps(sorted(special_texts(tokenizer)), ensure_ascii=False))


def main(arguments: Sequence[str] | None = None) -> SFTTrainer:
    """Trains stage 1 and returns the trainer."""
    script, training, model_args = parse_arguments(StageArguments, DEFAULTS, arguments)
    if model_args.model_name_or_path is None:
        raise InputError("--model_name_or_path must name the model whose projector is to be trained")
    accumulate(script, training)
    record = {"recipe": {"name": "stage 1"}, "training": step_flags(training)}
    processor, config = load_processor(script, model_args)
    template = caption_template(processor.tokenizer)
    train, evaluation = load_data(script, training, processor, config, chat_template=template)

    model = load_model(training, model_args)
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    model.model.vision_tower.requires_grad_(script.train_vision_tower)
    trainer = build_trainer(
        model,
        script,
        ASKED,
        args=training,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=processor,
        data_collator=DataCollatorForVisionLanguageModeling(
            processor, chat_template=template, assistant_only_loss=True
        ),
    )
    return run(trainer, script, model_args, record)


if __name__ == "__main__":
    sys.exit(run_command(main))
