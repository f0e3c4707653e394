"""Talks to the page with Gradio's own client over loopback."""

import importlib.util
import json
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

import flashsloth_command as command
from transformers_flashsloth.asking.conversation import Conversation
from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT, InputError
from transformers_flashsloth.demo.models import DEFAULT_NAME, Models
from transformers_flashsloth.demo.pictures import read_picture

EXAMPLES = Path(str(files("transformers_flashsloth") / "examples"))
QUESTIONS = json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))
ROOT = Path(__file__).parents[2]
FOX, ROCKET = str(EXAMPLES / "fox.png"), str(EXAMPLES / "rocket.png")
needs_gradio = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")


@pytest.fixture(scope="module")
def page(tiny_checkpoint):
    """The address of a page with two models."""
    from transformers_flashsloth.demo.app import MAX_FILE_SIZE, build_app

    app = build_app(Models([DEFAULT_CHECKPOINT, tiny_checkpoint], device="cpu"))
    _, address, _ = app.launch(prevent_thread_lock=True, quiet=True, max_file_size=MAX_FILE_SIZE)
    yield address
    app.close()


@pytest.fixture
def visitor(page):
    return new_visitor(page)


def new_visitor(page):
    from gradio_client import Client

    return Client(page, verbose=False)


def ask(visitor, question, *paths, **options):
    from gradio_client import handle_file

    message = {"text": question, "files": [handle_file(str(path)) for path in paths]}
    return visitor.predict(message, api_name="/chat", **options)


def refused(said) -> str:
    assert said["metadata"]["title"] == "This cannot be asked"
    return said["content"]


def told(*turns, **options) -> list[str]:
    conversation = Conversation([], device="cpu", **options)
    return [conversation.ask(question, list(paths)) for question, *paths in turns]


@needs_gradio
def test_the_examples_are_answered(page):
    for row in QUESTIONS:
        assert ask(new_visitor(page), row["question"], EXAMPLES / row["image"]) == row["answer"]


@needs_gradio
def test_later_turns_keep_their_images_and_bring_new_ones(visitor):
    turns = [("What is this?", FOX), ("What is in the second image?", ROCKET), ("And the first?",)]
    assert [ask(visitor, *turn) for turn in turns] == told(*turns)
    assert len(visitor.predict(api_name="/explain")) == 2


@needs_gradio
def test_an_answer_grows(page, tiny_checkpoint):
    job = new_visitor(page).submit({"text": "What?", "files": []}, name=tiny_checkpoint, api_name="/chat")
    pieces = list(job)
    assert len(pieces) > 1 and all(later.startswith(earlier) for earlier, later in pairwise(pieces))
    assert pieces[-1].rstrip() == told(("What?",), checkpoint=tiny_checkpoint)[0]


@needs_gradio
def test_visitors_choose_model_and_views(visitor, page, tiny_checkpoint):
    said = ask(visitor, "What?", FOX, name=tiny_checkpoint, views="high definition")
    assert said.rstrip() == told(("What?", FOX), checkpoint=tiny_checkpoint, image_hd=True)[0]
    with pytest.raises(Exception, match="not in the list of choices"):
        ask(new_visitor(page), "What?", name="/etc")


@needs_gradio
def test_visitors_do_not_meet(page):
    """20 at once, each with two turns."""

    def visit(row):
        visitor = new_visitor(page)
        first = ask(visitor, row["question"], EXAMPLES / row["image"])
        return first, ask(visitor, "What is this?")

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(visit, QUESTIONS * 2))
    expected = [tuple(told((row["question"], str(EXAMPLES / row["image"])), ("What is this?",))) for row in QUESTIONS]
    assert answers == expected * 2


@needs_gradio
def test_what_cannot_be_asked_ends_in_a_sentence_and_is_forgotten(visitor, tmp_path):
    text, cut = tmp_path / "text.png", tmp_path / "cut.png"
    text.write_text("no image")
    Image.effect_noise((50, 50), 9).save(cut)
    cut.write_bytes(cut.read_bytes()[:200])
    (tmp_path / "notes.txt").write_text("no image")

    assert ask(visitor, "What is this?", FOX) == "fox"
    assert "text.png is no image in PNG" in refused(ask(visitor, "What is this?", text))
    assert "cut.png is damaged" in refused(ask(visitor, "What is this?", ROCKET, cut))
    assert "&lt;image&gt;" in refused(ask(visitor, "What is <image>?", ROCKET))
    assert "empty" in refused(ask(visitor, " ", ROCKET))
    assert "at most 20000" in refused(ask(visitor, "x" * 20_001))
    assert "reads at most" in refused(ask(visitor, "What? " * 2000))
    assert "at most 16 are read" in refused(ask(visitor, "What?", *[ROCKET] * 16))
    with pytest.raises(Exception, match="Invalid file type"):
        ask(visitor, "What is this?", tmp_path / "notes.txt")

    assert ask(visitor, "And what is this?") == told(("What is this?", FOX), ("And what is this?",))[-1]
    assert len(visitor.predict(api_name="/explain")) == 1


@needs_gradio
def test_nothing_to_explain_is_said(visitor):
    with pytest.raises(Exception, match="nothing to explain"):
        visitor.predict(api_name="/explain")
    ask(visitor, "What is this?")
    with pytest.raises(Exception, match="nothing to explain"):
        visitor.predict(api_name="/explain")


@needs_gradio
def test_histories_of_the_page_are_understood():
    from transformers_flashsloth.demo.app import REFUSED, _recalled

    def text(role, words, **more):
        return {"role": role, "content": [{"type": "text", "text": words}], **more}

    picture = {"type": "file", "file": {"path": FOX}}
    history = [
        {"role": "user", "content": [picture, {"type": "text", "text": "What is this?"}], "metadata": None},
        text("assistant", "fox", metadata=None),
        text("user", "never answered"),
        text("user", "What is <image>?"),
        text("assistant", "no", metadata={"title": REFUSED}),
        text("user", "Where?"),
        text("assistant", "here"),
    ]
    messages = _recalled(Conversation([]), history).messages
    texts = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
    assert texts == ["What is this?", "fox", "Where?", "here"]
    assert messages[0]["content"][0]["type"] == "image"


def test_a_model_is_loaded_once(tiny_checkpoint):
    models = Models([DEFAULT_CHECKPOINT, tiny_checkpoint], device="cpu")
    assert models.names == [DEFAULT_NAME, tiny_checkpoint] and list(models.opened) == [DEFAULT_NAME]
    first, second = models.start(tiny_checkpoint), models.start(tiny_checkpoint, image_hd=True)
    assert first.model is second.model and first.lock is second.lock
    assert second.processor_kwargs == {"image_hd": True}
    with pytest.raises(InputError, match="nowhere"):
        Models(["./nowhere"], device="cpu")


@pytest.mark.parametrize("name", ["picture.eps", "picture.tiff"])
def test_formats_that_strangers_may_not_send(name, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / name)
    with pytest.raises(InputError, match=f"{name} is no image in PNG"):
        read_picture(str(tmp_path / name))


def test_images_have_a_largest_size(tmp_path, monkeypatch):
    Image.new("1", (9000, 9000)).save(tmp_path / "large.png")
    with pytest.raises(InputError, match=r"large\.png is too large: an image may have 50000000 pixels"):
        read_picture(str(tmp_path / "large.png"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match=r"large\.png is too large"):
        read_picture(str(tmp_path / "large.png"))


def test_the_command_names_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr("transformers_flashsloth.demo.command.find_spec", lambda name: None)
    assert command.main(["demo"]) == 2
    assert 'pip install "transformers-flashsloth[demo]"' in capsys.readouterr().err


@needs_gradio
def test_the_command_refuses_what_cannot_be_shown(page, capsys):
    taken = page.rstrip("/").rsplit(":", 1)[1]
    assert command.main(["demo", "--port", taken, "--device", "cpu"]) == 2
    assert taken in capsys.readouterr().err
    assert command.main(["demo", "--model", "./nowhere", "--device", "cpu"]) == 2
    assert "./nowhere" in capsys.readouterr().err


@needs_gradio
def test_the_space_starts_as_it_is(monkeypatch):
    import gradio

    header = re.match(r"---\n(.*?)\n---\n", (ROOT / "demo/space/README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    fields = dict(line.split(": ", 1) for line in header.splitlines())
    assert fields["sdk"] == "gradio" and fields["sdk_version"].split(".")[0] == gradio.__version__.split(".")[0]
    assert len(fields["short_description"]) <= 60
    spec = importlib.util.spec_from_file_location("space", ROOT / "demo/space" / fields["app_file"])
    space = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(space)
    assert isinstance(space.demo, gradio.Blocks)


@needs_gradio
def test_the_command_shows_the_page():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = [sys.executable, "-m", "transformers_flashsloth", "demo", "--port", port, "--device", "cpu"]
    # A test that runs in the background is not interrupted, and neither would be what it starts.
    options = {"text": True, "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options) as process:
        try:
            while (line := process.stdout.readline()) and port not in line:
                pass
            assert ask(new_visitor(f"http://127.0.0.1:{port}/"), "What is this?", FOX) == "fox"
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.communicate(timeout=60)  # read to its end, as it says farewell
            finally:
                process.kill()
    assert process.returncode == 0
