import io
import os
import re
import subprocess
import sys

import pytest
from PIL import Image

import flashsloth_command as command
from transformers_flashsloth.asking.conversation import Conversation


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "blue.png"
    Image.new("RGB", (20, 10), "blue").save(path)
    return str(path)


@pytest.fixture
def options(tiny_checkpoint):
    return ["--model", tiny_checkpoint, "--max-new-tokens", "5", "--device", "cpu"]


def test_ask_prints_the_answer_alone(image, options, tiny_checkpoint, capsys):
    assert command.main(["ask", image, "What?", *options]) == 0

    answer = Conversation([image], checkpoint=tiny_checkpoint, max_new_tokens=5, device="cpu").ask("What?")
    assert capsys.readouterr() == (f"{answer}\n", "")


def test_ask_takes_several_images_and_every_option(image, options, capsys):
    assert command.main(["ask", image, image, "What?", "--hd", "--dtype", "bfloat16", *options]) == 0

    out, err = capsys.readouterr()
    assert out.strip() and not err


def test_ask_takes_several_questions(image, options, tiny_checkpoint, capsys):
    questions = ["What?", "And where is it?", "What?"]
    words = [word for question in questions for word in ("--question", question)]
    assert command.main(["ask", image, image, *words, *options]) == 0

    answers = [
        Conversation([image, image], checkpoint=tiny_checkpoint, max_new_tokens=5, device="cpu").ask(question)
        for question in questions
    ]
    assert capsys.readouterr() == ("".join(f"{answer}\n" for answer in answers), "")

    assert command.main(["ask", image, "--question", "What?", *options]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--question", "What?", "--question", "What is <image>?"], "question 2 of 2 cannot be asked"),
        (["--question", " ", "--question", "What?"], "question 1 of 2 cannot be asked: the question is empty"),
        (["--question", "What?", "--question", "What? " * 300], "Question 2 of 2 cannot be asked: it takes"),
        (["--question", "What?", "--question", "Where?", "--explain", "out.png"], "of one question, not of 2"),
    ],
)
def test_several_questions_are_answered_all_or_none(words, said, image, options, capsys):
    assert command.main(["ask", image, *words, *options]) == 2
    out, err = capsys.readouterr()
    assert not out and said in err and err.count("\n") == 1


def test_ask_takes_a_video_and_how_many_frames(image, options, tiny_checkpoint, tmp_path, capsys):
    clip = tmp_path / "clip.mp4"  # in truth an animation, which needs no decoder
    frames = [Image.new("RGB", (20, 10), (index * 20, 0, 0)) for index in range(10)]
    frames[0].save(clip, format="PNG", save_all=True, append_images=frames[1:], duration=500)
    assert command.main(["ask", str(clip), "What?", "--frames", "3", *options]) == 0

    conversation = Conversation([str(clip)], checkpoint=tiny_checkpoint, num_frames=3, max_new_tokens=5, device="cpu")
    assert capsys.readouterr() == (f"{conversation.ask('What?')}\n", "")
    assert len(conversation.inputs["pixel_values"]) == 3


def test_ask_draws_what_was_looked_at(image, options, tmp_path, capsys):
    drawn = tmp_path / "explained.png"
    assert command.main(["ask", image, image, "What?", "--explain", str(drawn), *options]) == 0

    assert len(capsys.readouterr().out.splitlines()) == 1
    with Image.open(drawn) as picture:
        assert picture.height > picture.width  # two images, one below the other


@pytest.mark.parametrize("name", ["nowhere/explained.png", "explained.txt"])
def test_an_explanation_that_cannot_be_written_is_refused_first(name, image, options, tmp_path, capsys):
    assert command.main(["ask", image, "What?", "--explain", str(tmp_path / name), *options]) == 2

    out, err = capsys.readouterr()
    assert not out and "explanation" in err


def test_chat_answers_one_question_a_line(image, options, tiny_checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("What?\n\nAnd where?"))

    assert command.main(["chat", image, *options]) == 0

    conversation = Conversation([image], checkpoint=tiny_checkpoint, max_new_tokens=5, device="cpu")
    answers = [conversation.ask(question) for question in ("What?", "And where?")]
    assert capsys.readouterr() == ("".join(f"{answer}\n" for answer in answers), "")


def test_chat_goes_on_after_a_bad_question(image, options, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is <image>?\nWhat?\n"))

    assert command.main(["chat", image, *options]) == 2

    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 and "<image>" in err


def bad_input(name, image, tmp_path):
    text, cut, no_model = tmp_path / "text.png", tmp_path / "cut.png", tmp_path / "no_model"
    text.write_text("no image")
    Image.effect_noise((50, 50), 9).save(cut)
    cut.write_bytes(cut.read_bytes()[:200])
    no_model.mkdir()
    return {
        "missing image": (["missing.png", "What?"], "missing.png"),
        "folder as image": ([str(tmp_path), "What?"], str(tmp_path)),
        "text as image": ([str(text), "What?"], str(text)),
        "cut image": ([image, str(cut), "What?"], str(cut)),
        "empty question": ([image, " "], "empty"),
        "placeholder": ([image, "What is <image>?"], "<image>"),
        "missing directory": ([image, "What?", "--model", "./missing"], "./missing"),
        "empty directory": ([image, "What?", "--model", str(no_model)], str(no_model)),
        "missing on the Hub": ([image, "What?", "--model", "no/such"], "no/such"),
        "unknown device": ([image, "What?", "--device", "abacus"], "abacus"),
        "absent device": ([image, "What?", "--device", "cuda:99"], "cuda:99"),
        "long question": ([image, "What? " * 300], "at most 255"),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "missing image",
        "folder as image",
        "text as image",
        "cut image",
        "empty question",
        "placeholder",
        "missing directory",
        "empty directory",
        "missing on the Hub",
        "unknown device",
        "absent device",
        "long question",
    ],
)
def test_bad_input_ends_in_one_line(name, image, tmp_path, options, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments, named = bad_input(name, image, tmp_path)

    assert command.main(["ask", *options, *arguments]) == 2

    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("flashsloth: error: ") and named in err and err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["ask", "a.png"], ["ask", "a.png", "What?", "--max-new-tokens", "0"]])
def test_wrong_arguments_end_with_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as ending:
        command.main(arguments)

    assert ending.value.code == 2 and "usage: flashsloth" in capsys.readouterr().err


def test_a_failing_model_ends_in_one_line(image, options, capsys, monkeypatch):
    def run_out_of_memory(*args, **kwargs):
        raise RuntimeError("CUDA out of memory.\nTried to allocate 20 GiB.")

    monkeypatch.setattr(Conversation, "_generate", run_out_of_memory)

    assert command.main(["ask", image, "What?", *options]) == 1

    assert capsys.readouterr().err == (
        "flashsloth: error: RuntimeError: CUDA out of memory. Tried to allocate 20 GiB.\n"
    )


def test_an_interruption_is_quiet(image, options, capsys, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Conversation, "_generate", interrupt)

    assert command.main(["ask", image, "What?", *options]) == 130
    assert capsys.readouterr() == ("", "")


def test_an_answer_grows_on_a_terminal(image, options, tiny_checkpoint, monkeypatch):
    writes = []
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(terminal, "write", writes.append)
    monkeypatch.setattr(sys, "stdout", terminal)

    assert command.main(["ask", image, "What?", *options]) == 0

    answer = Conversation([image], checkpoint=tiny_checkpoint, max_new_tokens=5, device="cpu").ask("What?")
    assert "".join(writes).rstrip() == answer
    assert len([text for text in writes if text.strip()]) > 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_process_answers_on_a_terminal(image, options, tiny_checkpoint):
    import pty

    terminal, end = pty.openpty()
    arguments = [sys.executable, "-m", "transformers_flashsloth", "ask", image, "What?", *options]
    with subprocess.Popen(arguments, stdout=end, stderr=subprocess.PIPE, text=True) as process:
        os.close(end)
        answer = b""
        while chunk := _read(terminal):
            answer += chunk
        # torchao, where it is installed, says what it cannot load and what torch will no longer take.
        errors = [line for line in process.stderr if not re.search("torchao|torch/utils/_pytree.py", line)]
    os.close(terminal)

    expected = Conversation([image], checkpoint=tiny_checkpoint, max_new_tokens=5, device="cpu").ask("What?")
    assert (answer.decode().strip(), errors, process.returncode) == (expected, [], 0)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1024)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


HELP = """
import sys
from flashsloth_command import main
code = main(sys.argv[1:])
heavy = {"torch", "transformers", "transformers_flashsloth", "numpy", "PIL"} & sys.modules.keys()
sys.exit(f"imported {heavy}" if heavy else code)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], []])
def test_help_imports_nothing_heavy(arguments):
    process = subprocess.run([sys.executable, "-c", HELP, *arguments], capture_output=True, text=True)
    assert process.returncode == (0 if arguments else 2), process.stderr
    assert (process.stdout or process.stderr).startswith(("usage: flashsloth", "flashsloth 0"))


def test_help_names_every_command_and_each_has_its_own(capsys):
    assert command.main(["--help"]) == 0
    listed = capsys.readouterr().out
    for name in command.COMMANDS:
        assert f"  {name} " in listed
        with pytest.raises(SystemExit) as ending:
            command.main([*name.split(), "--help"])
        assert ending.value.code == 0
        assert f"flashsloth {name}" in " ".join(capsys.readouterr().out.split()) or name.startswith("train")


@pytest.mark.parametrize(
    ("arguments", "said"), [(["aks"], "'aks'"), (["train"], "'train'"), (["train", "lora2"], "'train lora2'")]
)
def test_an_unknown_command_ends_with_those_there_are(arguments, said, capsys):
    assert command.main(arguments) == 2
    err = capsys.readouterr().err
    assert f"no command {said}" in err and "choose one of: " in err and err.startswith("usage: flashsloth")
