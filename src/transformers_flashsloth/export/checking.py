"""Answers of an export against those of the model that it was made of."""

import json
from collections.abc import Callable
from importlib.resources import files

import torch
from PIL import Image
from transformers import ProcessorMixin

from ..checkpoints.opening import InputError
from ..exported.onnx_flashsloth import OnnxFlashSloth
from ..model.modeling_flashsloth import FlashSlothForConditionalGeneration

EXAMPLES = files("transformers_flashsloth") / "examples"
NEW_TOKENS = 8
# Share of the prompts whose tokens have to be PyTorch's. Weights of few bits change some answers of any model; a model
# that was not trained answers by differences that any rounding turns over.
LEAST_EQUAL = {"fp32": 1.0, "fp16": 0.9, "uint8": 0.8, "q4": 0.6}


def conversations() -> list[list[dict]]:
    """The shipped examples; some without image, with two images, and with an earlier turn."""
    examples = json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))
    images = [{"type": "image", "image": Image.open(EXAMPLES / example["image"])} for example in examples]
    questions = [{"type": "text", "text": example["question"]} for example in examples]
    asked = [[_says("user", image, question)] for image, question in zip(images, questions, strict=True)]
    alone = [[_says("user", question)] for question in questions[:2]]
    double = [[_says("user", images[0], images[1], questions[0])]]
    answer = {"type": "text", "text": examples[0]["answer"]}
    later = [[*asked[0], _says("assistant", answer), _says("user", questions[2])],
             [*asked[0], _says("assistant", answer), _says("user", images[2], questions[2])]]  # fmt: skip
    return [*asked, *alone, *double, *later]


def _says(role: str, *content: dict) -> dict:
    return {"role": role, "content": list(content)}


@torch.no_grad()
def check_answers(
    model: FlashSlothForConditionalGeneration,
    exported: OnnxFlashSloth,
    processor: ProcessorMixin,
    precision: str,
    say: Callable[[str], None] = lambda text: None,
) -> float:
    """
    Holds greedy tokens of the export against the model's, in base and, where the context has room, in high definition,
    and returns the share of prompts that have the same.

    Raises:
        InputError: if it is below `LEAST_EQUAL`.
    """
    equal = count = 0
    for image_hd in (False, True):
        for messages in conversations():
            inputs = processor.apply_chat_template(
                messages,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"image_hd": image_hd},
            )
            too_long = inputs["input_ids"].shape[1] + NEW_TOKENS > model.config.text_config.max_position_embeddings
            if too_long or (image_hd and "pixel_values" not in inputs):
                continue
            options = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
            count += 1
            equal += torch.equal(model.generate(**inputs, **options), exported.generate(**inputs, **options))
    say(f"{equal} of {count} answers equal PyTorch's")
    if not count:
        raise InputError("no example fits into the model's context, so nothing shows that the export is right")
    if equal / count < LEAST_EQUAL[precision]:
        raise InputError(
            f"only {equal} of {count} answers in {precision} equal those of the model, where at least "
            f"{LEAST_EQUAL[precision]:.0%} must: export it in a wider precision"
        )
    return equal / count
