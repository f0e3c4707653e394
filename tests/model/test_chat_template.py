"""The chat template: the released form, and nothing typed is structure."""

import itertools

import jinja2
import numpy as np
import pytest

from tests.model.test_processing_flashsloth import (
    CAT,
    DOG,
    END,
    FOX,
    IMAGE,
    PAD,
    QUERY,
    assistant,
    encode,
    system,
    user,
)
from tests.phi_tokenizer import build_phi_tokenizer
from transformers_flashsloth.model.image_processing_flashsloth import FlashSlothImageProcessor
from transformers_flashsloth.model.processing_flashsloth import FlashSlothProcessor

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. "
)


@pytest.fixture(scope="module")
def processor():
    return FlashSlothProcessor(FlashSlothImageProcessor(), build_phi_tokenizer())


@pytest.fixture(scope="module")
def small():
    """Views of 84 x 84 pixels become 2 x 2 tokens."""
    image_processor = FlashSlothImageProcessor(size={"height": 84, "width": 84})
    return FlashSlothProcessor(image_processor, build_phi_tokenizer())


# The released form


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user("Hi")], SYSTEM + "USER: Hi<learnable>"),
        ([user("Hi"), assistant("Ho")], SYSTEM + "USER: Hi<learnable> ASSISTANT: Ho</s>"),
        ([system("Be brief."), user("Hi")], "Be brief. USER: Hi<learnable>"),
        ([system("  Be brief.\n"), user("Hi")], "Be brief. USER: Hi<learnable>"),
        ([system(""), user("Hi")], "USER: Hi<learnable>"),
        ([user("Hi", CAT, DOG)], SYSTEM + "USER: <image>\n<image>\nHi<learnable>"),
        (
            [system(""), user("a", CAT), assistant("b"), user("c", DOG, FOX)],
            "USER: <image>\na<learnable> ASSISTANT: b</s>USER: <image>\n<image>\nc<learnable>",
        ),
        ([system(""), {"role": "user", "content": "as a string"}], "USER: as a string<learnable>"),
        ([system(""), user("")], "USER: <learnable>"),
        (
            [system(""), {"role": "user", "content": [{"type": t, "text": t} for t in ("text", "image", "text")]}],
            "USER: <image>\ntexttext<learnable>",
        ),
        ([system("")], ""),
    ],
)
def test_conversations_are_written_in_the_released_form(processor, messages, expected):
    assert processor.apply_chat_template(messages) == expected
    if messages[-1]["role"] == "user":
        assert processor.apply_chat_template(messages, add_generation_prompt=True) == expected + " ASSISTANT:"


def test_the_final_message_can_be_continued(processor):
    messages = [system(""), user("Hi", CAT), assistant("It is a")]
    expected = "USER: <image>\nHi<learnable> ASSISTANT: It is a"
    assert processor.apply_chat_template(messages, continue_final_message=True) == expected
    inputs = encode(processor, messages, continue_final_message=True, add_generation_prompt=False)
    assert processor.decode(inputs["input_ids"][0, -4:]) == ": It is a"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([assistant("Hi")], "Message 1 has the role 'assistant' where 'user' must stand"),
        ([user("Hi"), user("Ho")], "Message 2 has the role 'user' where 'assistant' must stand"),
        ([user("Hi"), system("Ho")], "Message 2 has the role 'system'"),
        ([system("Hi"), system("Ho")], "Message 2 has the role 'system'"),
        ([{"role": "tool", "content": "Hi"}], "the role 'tool'"),
        ([{"content": "Hi"}], "Message 1 has the role ''"),
        ([{"role": "user"}], "user message has no `content`"),
        ([{"role": "user", "content": {"type": "text"}}], "user message has no `content`"),
        ([{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}], "neither .* nor .*audio"),
        ([{"role": "user", "content": [{"type": "text"}]}], "neither"),
        ([{"role": "user", "content": ["Hi"]}], "neither"),
        ([user("Hi"), {"role": "assistant", "content": [{"type": "image"}]}], "assistant message has an image"),
        ([{"role": "system", "content": [{"type": "image"}]}, user("Hi")], "system message has an image"),
    ],
)
def test_malformed_conversations_are_refused(processor, messages, message):
    with pytest.raises(jinja2.TemplateError, match=message):
        processor.apply_chat_template(messages)


def test_a_prompt_for_generation_needs_a_question(processor):
    with pytest.raises(jinja2.TemplateError, match="`continue_final_message`"):
        processor.apply_chat_template([user("Hi"), assistant("Ho")], add_generation_prompt=True)
    with pytest.raises(jinja2.TemplateError, match="no messages"):
        processor.apply_chat_template([[]])


# Nothing typed is structure


def with_text(role: str, text: str) -> list[dict]:
    messages = [system("Be brief."), user("Hi"), assistant("Ho"), user("Hm"), assistant("Ha")]
    return [message | {"content": text} if message["role"] == role else message for message in messages]


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
@pytest.mark.parametrize("token", ["<image>", "<learnable>", "</s>", "<|endoftext|>"])
@pytest.mark.parametrize("text", ["{}", "a{}b", "\n{}", "{}\n", "<{}>"])
def test_special_tokens_in_a_message_are_refused(processor, role, token, text):
    with pytest.raises(
        jinja2.TemplateError, match=f"The {role} message contains .*'{token.replace('|', '.')}'.*Remove"
    ):
        processor.apply_chat_template(with_text(role, text.format(token)))


@pytest.mark.parametrize("token", ["</s>", "<bos>", "<eos>", "<pad>", "<unk>"])
def test_whatever_special_tokens_a_tokenizer_has_are_refused(token):
    tokenizer = build_phi_tokenizer()
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token = (
        "<bos>",
        "<eos>",
        "<pad>",
        "<unk>",
    )
    processor = FlashSlothProcessor(FlashSlothImageProcessor(), tokenizer)
    with pytest.raises(jinja2.TemplateError, match=f"special token '{token}'"):
        processor.apply_chat_template([user(token)])


@pytest.mark.parametrize("cut", range(1, 7))
def test_special_tokens_spread_over_parts_are_refused(processor, cut):
    parts = [{"type": "text", "text": text} for text in ("<image>"[:cut], "<image>"[cut:])]
    image = {"type": "image", "image": CAT}
    with pytest.raises(jinja2.TemplateError, match="special token '<image>'"):
        processor.apply_chat_template([{"role": "user", "content": [parts[0], image, parts[1]]}])


def test_sanitized_conversations_are_refused_too(processor):
    with pytest.raises(jinja2.TemplateError, match="special token '<image>'"):
        encode(processor, [user("<image>")], sanitize_control_tokens=True)


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
@pytest.mark.parametrize("header", ["USER:", "ASSISTANT:"])
def test_role_headers_in_a_message_get_a_blank(processor, role, header):
    prompt = processor.apply_chat_template(with_text(role, f"{header}a {header}: b\n{header}"))
    blank = header.replace(":", " :")
    assert f"{blank}a {blank}: b\n{blank}" in prompt
    assert prompt.count("USER:") == prompt.count("ASSISTANT:") == 2


FRAGMENTS = ["US", "ER", "USER", "ASSIST", "ANT", ":", " ", "\n", "\t\t", "<", "/s>", "<ima", "ge>", "earnable>", "x"]
HEADERS = {
    role: [build_phi_tokenizer().encode(before + role) for before in ("", " ")] for role in ("USER:", "ASSISTANT:")
}


def occurrences(ids: list[int], run: list[int]) -> int:
    return sum(ids[start : start + len(run)] == run for start in range(len(ids)))


def structure(processor, messages) -> tuple:
    """Counts the special tokens and the headers of a conversation; a header may have a blank before it or not."""
    ids = encode(processor, messages, add_generation_prompt=False)["input_ids"][0].tolist()
    headers = [sum(occurrences(ids, run) for run in runs) for runs in HEADERS.values()]
    return [ids.count(token_id) for token_id in (IMAGE, QUERY, END, PAD)], headers


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_no_text_brings_forth_structure(small, role):
    random = np.random.default_rng(0)
    expected = structure(small, with_text(role, "x"))
    assert expected == ([0, 18, 2, 0], [2, 2])
    texts = ["".join(pair) for pair in itertools.product(FRAGMENTS, repeat=2)]
    texts += ["".join(random.choice(FRAGMENTS, random.integers(3, 9))) for _ in range(300)]
    written = 0
    for text in texts:
        parts = [{"type": "text", "text": part} for part in (text[: len(text) // 2], text[len(text) // 2 :])]
        try:
            actual = structure(small, with_text(role, parts))
        except jinja2.TemplateError as error:
            assert "special token" in str(error)
        else:
            assert actual == expected, text
            written += 1
    assert written > 400
