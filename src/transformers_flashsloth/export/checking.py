"""Answers of an export against those of the model that it was made of."""

import json
from collections.abc import Callable, Iterator
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
    Holds greedy tokens of the export against the model's: in its first window in base and, where the context has room,
    in high definition, and in each further window about images in base. Returns the least share of a window's prompts
    that have the same.

    Raises:
        InputError: if it is below `LEAST_EQUAL`.
    """
    shares = []
    for number, (tokens, window) in enumerate(exported.windows.items()):
        options = {"pooling_window": list(window)}
        kinds = [{"image_hd": True}, {"image_hd": False}] if number == 0 else [{"image_hd": False}]
        equal = [
            _answers_alike(model, exported, inputs)
            for kind in kinds
            for inputs in _prompts(model, processor, options | kind)
            if "pixel_values" in inputs or (number == 0 and not kind["image_hd"])
        ]
        say(f"with {tokens} visual tokens a view {sum(equal)} of {len(equal)} answers equal PyTorch's")
        if not equal:
            raise InputError("no example fits into the model's context, so nothing shows that the export is right")
        shares.append(sum(equal) / len(equal))
        if shares[-1] < LEAST_EQUAL[precision]:
            raise InputError(
                f"only {sum(equal)} of {len(equal)} answers in {precision}, with {tokens} visual tokens a view, equal "
                f"those of the model, where at least {LEAST_EQUAL[precision]:.0%} must: export it in a wider precision"
            )
    return min(shares)


def _prompts(model: FlashSlothForConditionalGeneration, processor: ProcessorMixin, options: dict) -> Iterator[dict]:
    """The conversations as the model takes them; without those that its context has no room for."""
    for messages in conversations():
        inputs = processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=options,
        )
        if inputs["input_ids"].shape[1] + NEW_TOKENS <= model.config.text_config.max_position_embeddings:
            yield inputs


def _answers_alike(model: FlashSlothForConditionalGeneration, exported: OnnxFlashSloth, inputs: dict) -> bool:
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    return torch.equal(model.generate(**inputs, **options), exported.generate(**inputs, **options))
