"""Decoders keep their chat templates: images, queries and the rule that finds questions work with each."""

import pytest
import torch

from tests.chat_tokenizers import CHATS, build_chat_tokenizer
from transformers_flashsloth import FlashSlothImageProcessor, FlashSlothProcessor
from transformers_flashsloth.building.decoder_chat import extend_chat_template, user_prefix_ids
from transformers_flashsloth.model.question_spans import question_starts

KINDS = [kind for kind in CHATS if kind != "none"]
IMAGE = {"type": "image", "image": torch.zeros(3, 8, 8)}
CONVERSATION = [
    {"role": "user", "content": [{"type": "text", "text": "What is it?"}, IMAGE]},
    {"role": "assistant", "content": "A fox."},
    {"role": "user", "content": "Why so?"},
]


def processor_of(kind):
    tokenizer = build_chat_tokenizer(kind)
    tokenizer.add_tokens(["<learnable>", "<image>"], special_tokens=True)
    return FlashSlothProcessor(
        FlashSlothImageProcessor(size={"height": 12, "width": 12}),
        tokenizer,
        num_query_tokens=2,
        patch_size=2,
        chat_template=extend_chat_template(tokenizer),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoders_own_text_with_placeholders_in_it(kind):
    processor = processor_of(kind)
    text = processor.apply_chat_template(CONVERSATION, add_generation_prompt=True)
    messages = [
        {"role": "user", "content": "<image>\nWhat is it?<learnable>"},
        {"role": "assistant", "content": "A fox."},
        {"role": "user", "content": "Why so?<learnable>"},
    ]
    assert text == processor.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", ["text", "image", "video"])
def test_queries_wait_for_an_image(kind, first):
    """Text alone is the decoder's own prompt, whatever comes later."""
    processor = processor_of(kind)
    asked = {"role": "user", "content": "Hm?"}
    seen = [] if first == "text" else [IMAGE if first == "image" else {"type": "video", "video": IMAGE["image"][None]}]
    turns = [
        {"role": "user", "content": [*seen, {"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": "So."},
        asked,
        {"role": "assistant", "content": "So."},
        {"role": "user", "content": [IMAGE, {"type": "text", "text": "And it?"}]},
        {"role": "assistant", "content": "So."},
        asked,
    ]
    for end in (1, 3, 5, 7):
        text = processor.apply_chat_template(turns[:end], add_generation_prompt=True)
        runs = [bool(seen), bool(seen), True, True][: (end + 1) // 2]
        assert text.count("<learnable>") == sum(runs)
        if not any(runs):
            alone = [turn | {"content": "Hi"} if i == 0 else turn for i, turn in enumerate(turns[:end])]
            own = processor.tokenizer
            assert text == own.apply_chat_template(alone, add_generation_prompt=True, tokenize=False)
    whole = processor.apply_chat_template(turns)
    begun = processor.apply_chat_template(turns[:3], add_generation_prompt=True)
    assert whole.startswith(begun)  # what is cached stays


@pytest.mark.parametrize("kind", KINDS)
def test_questions_are_found(kind):
    processor = processor_of(kind)
    tokenizer = processor.tokenizer
    inputs = processor.apply_chat_template(
        CONVERSATION, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = inputs["input_ids"]
    prefix = user_prefix_ids(tokenizer, "<image>")
    starts = question_starts(ids == processor.image_token_id, ids, prefix)[0].nonzero().flatten().tolist()
    runs = (ids[0] == processor.query_token_id).nonzero().flatten().tolist()
    assert len(runs) == 4 and len(inputs["pixel_values"]) == 1
    questions = []
    for run in (runs[0], runs[2]):
        questions.append(tokenizer.decode(ids[0, max(start for start in starts if start < run) : run]).strip())
    assert questions == ["What is it?", "Why so?"]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_typed_becomes_structure(kind):
    processor = processor_of(kind)
    structure = [*CHATS[kind][1], "<image>", "<video>", "<learnable>"] + (["[/INST]"] if kind == "marked" else [])
    for token in structure:
        for role in ("user", "assistant"):
            messages = [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": "So."}]
            messages[role == "assistant"]["content"] += f" {token} Ha"
            with pytest.raises(Exception, match="which only the chat template may write"):
                processor.apply_chat_template(messages)


def test_images_stand_in_user_messages():
    processor = processor_of("chatml")
    with pytest.raises(Exception, match="put images and videos into user messages"):
        processor.apply_chat_template([{"role": "system", "content": [IMAGE]}, CONVERSATION[0]])
    with pytest.raises(Exception, match="has a part that is neither"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "audio"}]}])


def test_a_video_is_a_line_for_each_frame():
    processor = processor_of("chatml")
    video = {"type": "video", "video": [torch.zeros(3, 8, 8)] * 2}
    turn = {"role": "user", "content": [video, {"type": "text", "text": "What happens?"}]}
    inputs = processor.apply_chat_template([turn], tokenize=True, return_dict=True, return_tensors="pt")
    image = "<image>" * (inputs["input_ids"] == processor.image_token_id).sum().div(2).int().item()
    assert f"Frame 1: {image}\nFrame 2: {image}\nWhat happens?<learnable>" in processor.decode(inputs["input_ids"][0])
    assert len(inputs["pixel_values"]) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_marked(kind):
    """With the end of the turn, for training on answers alone; by the decoder's template or by ours."""
    processor = processor_of(kind)
    answers = ["A fox.", "user"]
    turns = [*CONVERSATION[:2], {"role": "user", "content": "Who?"}, {"role": "assistant", "content": answers[1]}]
    inputs = processor.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
    )
    marked = processor.tokenizer.decode(inputs["input_ids"][inputs["assistant_masks"].bool()])
    end = CHATS[kind][2]
    assert marked.replace(" ", "") == "".join(answer + end for answer in answers).replace(" ", "")


def test_answers_that_no_token_ends():
    tokenizer = build_chat_tokenizer("marked")
    tokenizer.chat_template = (
        "{% for message in messages %}{{ '[Q] ' ~ message['content'] ~ ' [A]' if message['role'] == 'user' else "
        "' ' ~ message['content'] ~ '\n' }}{% endfor %}"
    )
    extended = extend_chat_template(tokenizer)
    turns = [{"role": role, "content": "Hm"} for role in ("user", "assistant", "user", "assistant")]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    inputs = tokenizer.apply_chat_template(
        turns, chat_template=extended, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert tokenizer.decode(inputs["input_ids"]) == text == "[Q] Hm [A] Hm\n[Q] Hm [A] Hm\n"
    marked = [id for id, mark in zip(inputs["input_ids"], inputs["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(marked) == "HmHm\n"  # the blank is part of the header


def test_templates_that_cannot_be_extended():
    tokenizer = build_chat_tokenizer("none")
    with pytest.raises(ValueError, match="has no chat template"):
        extend_chat_template(tokenizer)
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(ValueError, match="does not write each message once"):
        extend_chat_template(tokenizer)
