"""The shipped default model, and conversations about the packaged examples, for tests of what it generates."""

import json
from functools import cache
from importlib.resources import files

import torch

from transformers_flashsloth import FlashSlothForConditionalGeneration, FlashSlothProcessor
from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT

EXAMPLES = files("transformers_flashsloth") / "examples"
QUESTIONS = json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))


@cache
def default_model(dtype: torch.dtype = torch.float32) -> FlashSlothForConditionalGeneration:
    """Shared by all tests: copy it before you change it."""
    return FlashSlothForConditionalGeneration.from_pretrained(DEFAULT_CHECKPOINT, dtype=dtype).eval()


@cache
def default_processor() -> FlashSlothProcessor:
    return FlashSlothProcessor.from_pretrained(DEFAULT_CHECKPOINT)


def image_of(example: int) -> str:
    return str(EXAMPLES / QUESTIONS[example]["image"])


def ask(*examples: int, question: str | None = None) -> dict:
    """A user turn that shows the images of examples and asks (by default what the first of them asks)."""
    images = [{"type": "image", "path": image_of(example)} for example in examples]
    return {
        "role": "user",
        "content": [*images, {"type": "text", "text": question or QUESTIONS[examples[0]]["question"]}],
    }


def answer(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def encode(*chats: list[dict], **processor_kwargs) -> dict[str, torch.Tensor]:
    """Model inputs of conversations, padded to one length."""
    return dict(
        default_processor().apply_chat_template(
            list(chats),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True} | processor_kwargs,
        )
    )


def new_tokens(inputs: dict[str, torch.Tensor], sequences: torch.Tensor) -> list[list[int]]:
    """What was generated behind the prompts."""
    return sequences[:, inputs["input_ids"].shape[1] :].tolist()
