"""The packaged model through transformers' own pipeline and Auto classes."""

import base64
import json
from importlib.resources import files
from threading import Thread

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    TextIteratorStreamer,
    pipeline,
)

from transformers_flashsloth import FlashSlothForConditionalGeneration, FlashSlothProcessor
from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT

EXAMPLES = files("transformers_flashsloth") / "examples"
QUESTIONS = json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))


def path_of(example: dict) -> str:
    return str(EXAMPLES / example["image"])


def chat_about(example: dict, **image) -> list[dict]:
    image = image or {"path": path_of(example)}
    content = [{"type": "image", **image}, {"type": "text", "text": example["question"]}]
    return [{"role": "user", "content": content}]


@pytest.fixture(scope="module")
def pipe():
    return pipeline("image-text-to-text", model=DEFAULT_CHECKPOINT, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def expected(pipe) -> list[str]:
    """What the model answers to each example, asked on its own."""
    return [generated(pipe, chat_about(example)) for example in QUESTIONS]


def generated(pipe, chat: list[dict], processor_kwargs: dict | None = None, **options) -> str:
    """The answer by way of the processor and `generate`."""
    inputs = pipe.processor.apply_chat_template(
        chat,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=processor_kwargs or {},
    )
    output = pipe.model.generate(**inputs, **options)
    return pipe.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def answers(pipe, chats: list, **options) -> list[str]:
    return [output[0]["generated_text"].strip() for output in pipe(text=chats, return_full_text=False, **options)]


def test_one_chat(pipe, expected):
    (output,) = pipe(text=chat_about(QUESTIONS[0]))

    *conversation, answer = output["generated_text"]
    assert conversation == chat_about(QUESTIONS[0])
    assert (answer["role"], answer["content"].strip()) == ("assistant", expected[0])


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_batches_of_chats(pipe, expected, batch_size):
    assert answers(pipe, [chat_about(example) for example in QUESTIONS], batch_size=batch_size) == expected


def test_chats_with_two_images_and_one_in_a_batch(pipe, expected):
    # Upstream cannot collate chats with images and chats without.
    chat = chat_about(QUESTIONS[0])
    chat[0]["content"].insert(0, {"type": "image", "path": path_of(QUESTIONS[1])})

    assert answers(pipe, [chat, chat_about(QUESTIONS[3])], batch_size=2) == [generated(pipe, chat), expected[3]]


def test_a_chat_without_images(pipe):
    chat = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}]}]

    assert answers(pipe, [chat]) == [generated(pipe, chat)]


@pytest.mark.parametrize("form", ["path", "url", "image", "base64"])
def test_every_form_of_an_image(pipe, expected, form):
    path = path_of(QUESTIONS[0])
    encoded = base64.b64encode((EXAMPLES / QUESTIONS[0]["image"]).read_bytes()).decode()
    image = {
        "path": path,
        "url": f"data:image/png;base64,{encoded}",
        "image": Image.open(path),
        "base64": encoded,
    }[form]

    assert answers(pipe, [chat_about(QUESTIONS[0], **{form: image})]) == expected[:1]


def test_images_and_prompts(pipe):
    prompts = [f"USER: <image>\n{example['question']}<learnable> ASSISTANT:" for example in QUESTIONS[:2]]
    images = [path_of(example) for example in QUESTIONS[:2]]

    together = pipe(images, text=prompts, return_full_text=False, batch_size=2)

    alone = [pipe(image, text=prompt, return_full_text=False)[0] for image, prompt in zip(images, prompts, strict=True)]
    assert together == alone
    assert all(output["generated_text"].strip() for output in alone)


def test_a_second_turn(pipe):
    question = {"role": "user", "content": [{"type": "text", "text": "What is this?"}]}

    chat = [*pipe(text=chat_about(QUESTIONS[0]))[0]["generated_text"], question]

    assert answers(pipe, [chat]) == [generated(pipe, chat)]


def test_options(pipe):
    chat, options = chat_about(QUESTIONS[3]), {"processor_kwargs": {"image_hd": True}, "max_new_tokens": 4}

    assert answers(pipe, [chat], generate_kwargs={"num_beams": 2}, **options) == [
        generated(pipe, chat, num_beams=2, **options)
    ]


def test_streaming(pipe, expected):
    streamer = TextIteratorStreamer(pipe.processor.tokenizer, skip_prompt=True, timeout=60, skip_special_tokens=True)
    thread = Thread(target=pipe, kwargs={"text": chat_about(QUESTIONS[3]), "generate_kwargs": {"streamer": streamer}})

    thread.start()
    pieces = list(streamer)
    thread.join()

    assert "".join(pieces).strip() == expected[3]
    assert len([piece for piece in pieces if piece.strip()]) == len(expected[3].split())


@pytest.mark.parametrize("auto_class", [AutoModelForImageTextToText, AutoModelForMultimodalLM])
def test_auto_classes(auto_class, pipe, expected):
    model = auto_class.from_pretrained(DEFAULT_CHECKPOINT, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(DEFAULT_CHECKPOINT)

    assert (type(model), type(processor)) == (FlashSlothForConditionalGeneration, FlashSlothProcessor)
    built = pipeline("image-text-to-text", model=model, processor=processor)
    assert answers(built, [chat_about(QUESTIONS[0])]) == expected[:1]
