"""
A user's script, for type checkers: it is checked and never run. What is wrong in it is marked, and a mark without a
mistake is one itself (`warn_unused_ignores`), so that types which say nothing are noticed.
"""

from pathlib import Path

import torch
from PIL import Image
from typing_extensions import assert_type

from transformers_flashsloth import (
    FlashSlothConfig,
    FlashSlothForConditionalGeneration,
    FlashSlothImageProcessor,
    FlashSlothModel,
    FlashSlothProcessor,
    FlashSlothVideoProcessor,
    from_backbones,
)
from transformers_flashsloth.asking.conversation import Conversation
from transformers_flashsloth.asking.drawing import draw_explanation


def loaded(checkpoint: str | Path) -> tuple[FlashSlothForConditionalGeneration, FlashSlothProcessor]:
    processor = FlashSlothProcessor.from_pretrained(checkpoint, local_files_only=True)
    model = FlashSlothForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.bfloat16, device_map="cpu")
    assert_type(FlashSlothModel.from_pretrained(checkpoint), FlashSlothModel)
    assert_type(model.cuda(0), FlashSlothForConditionalGeneration)
    return model.to("cpu").eval(), processor


def answer(model: FlashSlothForConditionalGeneration, processor: FlashSlothProcessor, picture: Image.Image) -> str:
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "What is this?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = model.generate(**inputs.to(model.device), max_new_tokens=20)
    text: str = processor.decode(output[0], skip_special_tokens=True)
    return text


def loss(model: FlashSlothForConditionalGeneration, ids: torch.LongTensor, pixels: torch.Tensor) -> torch.Tensor | None:
    outputs = model(input_ids=ids, pixel_values=pixels, labels=ids)
    found: torch.Tensor | None = outputs.loss
    return found


def inputs_of(processor: FlashSlothProcessor, pictures: list[Image.Image]) -> torch.Tensor:
    batch = processor(images=pictures, text=["USER: <image>"], padding=True, image_hd=True, return_tensors="pt")
    processor(images=pictures[0], text="USER: <image>", pooling_window=9)
    pixels: torch.Tensor = batch["pixel_values"]
    return pixels


def views(picture: Image.Image) -> torch.Tensor:
    hd = FlashSlothImageProcessor(image_hd=True, do_exif_transpose=False)
    assert_type(FlashSlothImageProcessor.from_pretrained("checkpoint"), FlashSlothImageProcessor)
    FlashSlothVideoProcessor(num_frames=4, frame_limit=20)
    FlashSlothImageProcessor(image_hq=True)  # type: ignore[call-arg]
    hd(picture, image_hd="yes")  # type: ignore[arg-type]
    pixels: torch.Tensor = hd("cat.jpg", image_hd=False, return_tensors="pt")["pixel_values"]
    return pixels


def explained(model: FlashSlothForConditionalGeneration, ids: torch.LongTensor, picture: Image.Image) -> Image.Image:
    explanation = model.explain(ids, views(picture))
    assert_type(explanation.query_attention, torch.Tensor | None)
    model.explain(ids)  # type: ignore[call-arg]
    model.explain(ids, picture)  # type: ignore[arg-type]
    return draw_explanation(picture, explanation)


def sizes(model: FlashSlothForConditionalGeneration) -> int:
    config = model.config
    assert_type(config, FlashSlothConfig)
    assert_type(config.patch_grid, tuple[int, int])
    assert_type(config.windows, dict[int, tuple[int, int]])
    assert_type(config.num_query_tokens, int)
    assert_type(config.placeholder_ids, tuple[int, ...])
    width: int = config.get_text_config().hidden_size
    return width + config.tokens_per_view + config.pooling  # type: ignore[operator]


def configured() -> FlashSlothConfig:
    FlashSlothConfig(num_query_tokens="nine")  # type: ignore[arg-type]
    FlashSlothConfig(number_of_queries=9)  # type: ignore[call-arg]
    return FlashSlothConfig(text_config={"model_type": "phi"}, pooling_window=[3, 9], embq_layer=[4, 7])


def built() -> tuple[FlashSlothForConditionalGeneration, FlashSlothProcessor]:
    from_backbones("decoder")  # type: ignore[call-arg]
    return from_backbones("decoder", "tower", image_hd=True, pooling_window=4)


def asked(path: str, picture: Image.Image, paths: list[str]) -> str:
    conversation = Conversation(paths)
    conversation.recall("What is this?", "a fox", [picture])
    conversation.ask("What is this?", stream=True)  # type: ignore[call-arg]
    for piece in conversation.stream("And this?", [picture]):
        assert_type(piece, str)
    Conversation(path)  # type: ignore[arg-type]
    return Conversation([path], load_in="8bit", visual_tokens=9).ask("What is this?")
