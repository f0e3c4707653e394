"""The checkpoint and the examples that ship with the package: small, complete, and right."""

import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from conversion.default_model.examples import EXAMPLES, Glyph
from conversion.default_model.train import DEFAULT_CHECKPOINT
from transformers_flashsloth import FlashSlothForConditionalGeneration, FlashSlothProcessor

EXAMPLE_DIRECTORY = DEFAULT_CHECKPOINT.with_name("examples")
ENTRIES = json.loads((EXAMPLE_DIRECTORY / "examples.json").read_text())


@pytest.fixture(scope="module")
def processor() -> FlashSlothProcessor:
    return AutoProcessor.from_pretrained(DEFAULT_CHECKPOINT)


@pytest.fixture(scope="module")
def model() -> FlashSlothForConditionalGeneration:
    return AutoModelForImageTextToText.from_pretrained(DEFAULT_CHECKPOINT).eval()


def ask(model, processor, images: list[Image.Image], questions: list[str]) -> list[str]:
    conversations = [
        [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
        for image, question in zip(images, questions, strict=True)
    ]
    inputs = processor.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )
    generated = model.generate(**inputs, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(generated, skip_special_tokens=True)]


def test_it_is_small_and_in_bfloat16():
    assert sum(path.stat().st_size for path in DEFAULT_CHECKPOINT.iterdir()) < 25e6
    with safe_open(DEFAULT_CHECKPOINT / "model.safetensors", "pt") as weights:
        tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert 2e6 < sum(tensor.numel() for tensor in tensors.values()) < 12e6
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_it_loads_where_the_package_is_installed_but_not_imported(tmp_path):
    code = """if True:
        import sys
        from transformers import AutoModelForImageTextToText, AutoProcessor
        part = {"model": AutoModelForImageTextToText, "processor": AutoProcessor}[sys.argv[1]]
        sys.stdout.write(type(part.from_pretrained(sys.argv[2], trust_remote_code=True)).__name__)"""
    for part, name in (("model", "FlashSlothForConditionalGeneration"), ("processor", "FlashSlothProcessor")):
        command = [sys.executable, "-c", code, part, str(DEFAULT_CHECKPOINT)]
        environment = os.environ | {"HF_HOME": str(tmp_path)}
        process = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert process.stdout == name, process.stderr


def test_its_parts_fit_together(model, processor):
    config = model.config
    assert config.image_token_id == processor.image_token_id
    assert config.query_token_id == processor.query_token_id
    assert config.num_query_tokens == processor.num_query_tokens
    assert config.user_prefix_ids == processor.tokenizer.encode("</s>USER:")
    assert len(processor.tokenizer) == config.text_config.vocab_size
    generation = GenerationConfig.from_pretrained(DEFAULT_CHECKPOINT)
    assert generation.eos_token_id == processor.tokenizer.convert_tokens_to_ids("</s>")
    assert generation.pad_token_id == processor.tokenizer.pad_token_id


def test_it_answers_every_example(model, processor):
    images = [Image.open(EXAMPLE_DIRECTORY / entry["image"]) for entry in ENTRIES]
    answers = ask(model, processor, images, [entry["question"] for entry in ENTRIES])
    assert answers == [entry["answer"] for entry in ENTRIES]


def test_it_looks_at_the_picture(model, processor):
    """The same question gets another answer about another picture."""
    colours = ["red", "blue", "green", "yellow"]
    images = []
    for colour in ((255, 0, 0), (0, 0, 255), (0, 128, 0), (255, 255, 0)):
        image = Image.new("RGB", (200, 200), "white")
        image.paste(colour, (60, 60, 140, 140))
        images.append(image)
    assert ask(model, processor, images, ["What color is the square?"] * 4) == colours


def test_a_conversation_answers_each_of_its_questions(model, processor):
    image = Image.open(EXAMPLE_DIRECTORY / "shapes.png")
    turns = [
        ("What color is the triangle?", "blue"),
        ("What is the red shape?", "circle"),
        ("How many shapes are there?", "3"),
    ]
    messages = []
    for question, answer in turns:
        parts = [{"type": "text", "text": question}]
        messages.append({"role": "user", "content": parts if messages else [{"type": "image", "image": image}, *parts]})
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        generated = model.generate(**inputs, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert processor.decode(generated, skip_special_tokens=True).strip() == answer
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})


def test_examples_are_as_their_source_says():
    assert len(ENTRIES) == 10
    for example, entry in zip(EXAMPLES, ENTRIES, strict=True):
        assert (entry["image"], entry["question"], entry["answer"]) == (example.file, example.question, example.answer)
        for thing in example.things:
            assert thing.credit in entry["credit"]
        path = EXAMPLE_DIRECTORY / entry["image"]
        assert path.stat().st_size <= 20_000
        assert min(Image.open(path).size) >= 128 and max(Image.open(path).size) <= 256
    assert {thing.style for example in EXAMPLES for thing in example.things if isinstance(thing, Glyph)} == {
        "google",
        "twitter",
    }
