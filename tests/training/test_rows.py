"""One row of training data: the conversation it becomes, and every fault by name."""

import copy
import re

import pytest

from tests.training.training_files import llava_rows
from transformers_flashsloth.training.row_files import BadRow
from transformers_flashsloth.training.rows import Source, has_role_header

LLAVA = Source("rows.json", "/images")
TABLE = Source("rows.csv", "/images", ("image", "question", "answer"))
IMAGE = {"type": "image", "text": None}


def text(value: str) -> dict:
    return {"type": "text", "text": value}


def turns(*values: str, roles: tuple[str, ...] = ("human", "gpt")) -> list[dict]:
    return [{"from": roles[n % len(roles)], "value": value} for n, value in enumerate(values)]


def test_images_move_to_the_front_of_their_turn():
    item = {"id": 7, "image": ["a.png", "b.png", "c.png"]}
    item["conversations"] = turns("Is <image>\nlike <image> ?", "No.", "And this?\n<image>", "Yes. ")
    row = LLAVA.row(3, item)
    assert row.fault is None and (row.number, row.id) == (3, "7")
    assert row.images == ["/images/a.png", "/images/b.png", "/images/c.png"]
    assert [(message["role"], message["content"]) for message in row.messages] == [
        ("user", [IMAGE, IMAGE, text("Is \nlike  ?")]),
        ("assistant", [text("No.")]),
        ("user", [IMAGE, text("And this?")]),
        ("assistant", [text("Yes.")]),
    ]


def test_images_without_placeholders_open_the_conversation():
    item = {"image": "a.png", "conversations": turns("Why?", "So.", "And?", "So too.")}
    contents = [message["content"] for message in LLAVA.row(0, item).messages]
    assert contents == [[IMAGE, text("Why?")], [text("So.")], [text("And?")], [text("So too.")]]


def test_text_only_and_system():
    item = {"conversations": turns("Be brief.", "Why?", "So.", roles=("system", "user", "assistant"))}
    row = LLAVA.row(0, item)
    assert row.fault is None and row.images == [] and row.id is None
    assert [message["role"] for message in row.messages] == ["system", "user", "assistant"]


def test_a_row_of_a_table():
    row = TABLE.row(0, {"image": "a.png", "question": " How many? ", "answer": 3})
    assert row.fault is None and row.images == ["/images/a.png"]
    assert [message["content"] for message in row.messages] == [[IMAGE, text("How many?")], [text("3")]]


def broken(**changes) -> dict:
    return copy.deepcopy(llava_rows(1)[0]) | changes


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        (["a"], "no object with fields but a list"),
        (BadRow("the line is bad"), "the line is bad"),
        ({"id": "x", "text": "t"}, "no list `conversations`, only 'id', 'text'"),
        (broken(conversations=None), "its `conversations` is no list but a NoneType"),
        (broken(conversations=[]), "its conversation is empty"),
        (broken(conversations=["hello"]), "turn 1 is not of the form"),
        (broken(conversations=[{"from": "human", "value": 3}]), "turn 1 is not of the form"),
        (broken(conversations=turns("<image>", "b", roles=("human", "bot"))), "turn 2 is from 'bot'"),
        (broken(conversations=turns("a", "b", roles=("gpt", "human"))), "turn 1 is the assistant's where the user's"),
        (broken(conversations=turns("<image>", "b", roles=("human",))), "turn 2 is the user's where the assistant's"),
        (broken(conversations=turns("<image>", "b", "c")), "does not end with an answer"),
        (broken(conversations=turns("<image>a", " \n")), "turn 2, the answer, is empty"),
        (broken(conversations=turns("<image>a", "b", "", "d")), "turn 3, the question, is empty"),
        (broken(conversations=turns("<image><image>", "b")), "1 images but 2 <image>"),
        (broken(image=None), "0 images but 1 <image>"),
        (broken(image=["a.png", "b.png"]), "2 images but 1 <image>"),
        (broken(image=3), "named by a text, not by 3"),
        (broken(image="\ud83d.png"), r"named by a text, not by '\\ud83d.png'"),
        (broken(conversations=turns("<image>", "cut \ud83d")), r"turn 2 holds half a character .*'cut \\ud83d'"),
        (
            broken(conversations=turns("<image>", "see <image>")),
            "turn 2 contains the text of .* <image>",
        ),
        (broken(conversations=turns("<image> <learnable>", "b")), "turn 1 contains .* <learnable>"),
        (broken(conversations=turns("<image>", "b</s>")), "turn 2 contains .* </s>"),
    ],
)
def test_faults(item, problem):
    row = LLAVA.row(5, item)
    assert row.fault is not None and re.search(problem, row.fault.problem), row
    assert (row.fault.file, row.fault.row, row.messages, row.images) == ("rows.json", 5, [], [])


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ({"image": "a.png", "question": "q"}, "no 'answer', only 'image', 'question'"),
        ({"image": "", "question": "q", "answer": "a"}, "its 'image' names no image"),
        ({"image": "a.png", "question": "q", "answer": None}, "its 'answer' is no text but None"),
        ({"image": "a.png", "question": "q", "answer": float("nan")}, "its 'answer' is no text but nan"),
        ({"image": "a.png", "question": "q", "answer": float("-inf")}, "its 'answer' is no text but -inf"),
        ({"image": "a.png", "question": "q", "answer": True}, "its 'answer' is no text but True"),
        ({"image": "a.png", "question": "q", "answer": " "}, "its 'answer', the answer, is empty"),
        ({"image": "a.png", "question": "<image> q", "answer": "a"}, "its 'question' contains .* <image>"),
    ],
)
def test_faults_of_tables(item, problem):
    assert re.search(problem, TABLE.row(0, item).fault.problem)


def test_a_fault_names_file_row_and_id():
    assert str(LLAVA.row(5, broken(image=None)).fault).startswith("rows.json, row 5 (id 'r0'): it has 0 images")
    assert LLAVA.row(5, broken(id="cut \ud83d")).id == "cut ?"
    assert str(LLAVA.row(5, []).fault).startswith("rows.json, row 5: it is no object")


def test_role_headers_are_text():
    row = LLAVA.row(0, {"conversations": turns("USER: hello", "hi")})
    assert row.fault is None and has_role_header(row.messages)
    assert not has_role_header(LLAVA.row(0, {"conversations": turns("user: hello", "hi")}).messages)
