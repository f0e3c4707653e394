"""A user's script, for type checkers: it is checked, and never run."""

import torch
from PIL import Image

from transformers_flashsloth import (
    FlashSlothConfig,
    FlashSlothForConditionalGeneration,
    FlashSlothImageProcessor,
    FlashSlothProcessor,
    from_backbones,
)
from transformers_flashsloth.asking.conversation import Conversation
from transformers_flashsloth.asking.drawing import draw_explanation


def answer(checkpoint: str, picture: Image.Image, question: str) -> str:
    processor = FlashSlothProcessor.from_pretrained(checkpoint)
    model = FlashSlothForConditionalGeneration.from_pretrained(checkpoint)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = model.generate(**inputs, max_new_tokens=20)
    text: str = processor.decode(output[0], skip_special_tokens=True)
    return text


def loss(model: FlashSlothForConditionalGeneration, ids: torch.LongTensor, pixels: torch.Tensor) -> torch.Tensor | None:
    outputs = model(input_ids=ids, pixel_values=pixels, labels=ids)
    found: torch.Tensor | None = outputs.loss
    return found


def explained(model: FlashSlothForConditionalGeneration, ids: torch.LongTensor, picture: Image.Image) -> Image.Image:
    pixels: torch.Tensor = FlashSlothImageProcessor()(picture, return_tensors="pt")["pixel_values"]
    explanation = model.explain(ids, pixels)
    weights: torch.Tensor | None = explanation.pooling_weights
    assert weights is not None
    return draw_explanation(picture, explanation)


def sizes(config: FlashSlothConfig) -> int:
    rows, columns = config.patch_grid
    tokens: dict[int, tuple[int, int]] = config.windows
    return rows * columns + len(tokens) + config.tokens_per_view + config.num_query_tokens


def built() -> tuple[FlashSlothForConditionalGeneration, FlashSlothProcessor]:
    return from_backbones("decoder", "tower", image_hd=True, pooling_window=4)


def asked(path: str) -> str:
    return Conversation([path], load_in="8bit", visual_tokens=9).ask("What is this?")
