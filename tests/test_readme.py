"""Runs what README.md tells a reader to run, as it stands there."""

import copy
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, SiglipVisionModel

from tests.chat_tokenizers import build_chat_tokenizer
from tests.tiny_backbones import TEXT, VISION, small
from transformers_flashsloth import FlashSlothForConditionalGeneration, FlashSlothProcessor

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "src/transformers_flashsloth/examples"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]


def commands(*beginnings: str) -> list[str]:
    return [command for command in COMMANDS if command.startswith(beginnings)]


def run(command: list[str], stdin: str = "") -> str:
    done = subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def questions(tmp_path):
    """A table of two questions about pictures that ship with the package."""
    table = tmp_path / "questions.csv"
    table.write_text("image,question,answer\nfox.png,What is this?,fox\nshapes.png,What color is the triangle?,red\n")
    return table


@pytest.fixture
def backbones(tmp_path):
    """Names in the README and directories with tiny models that stand for them."""
    text, vision = tmp_path / "text", tmp_path / "vision"
    sizes = TEXT | {"vocab_size": 300, "max_position_embeddings": 256}
    AutoModelForCausalLM.from_config(small("llama", sizes)).save_pretrained(text)
    build_chat_tokenizer("chatml").save_pretrained(text)
    SiglipVisionModel(small("siglip_vision_model", VISION | {"image_size": 24, "patch_size": 2})).save_pretrained(
        vision
    )
    return {"HuggingFaceTB/SmolLM2-135M-Instruct": text, "google/siglip-base-patch16-384": vision}


@pytest.fixture
def run_here(tmp_path, authors_directory, questions, backbones):
    """Runs a command of the README in this environment, with tiny checkpoints and pictures for those it names."""
    stand_ins = backbones | {
        "adapter": tmp_path / "adapter",
        "images": EXAMPLES,
        "questions.csv": questions,
        "untrained": tmp_path / "untrained",
        "photo.jpg": EXAMPLES / "fox.png",
        "flashsloth-3.2b": tmp_path / "converted",
        "Tongbo/FlashSloth-3.2B": authors_directory,
    }

    def run_here(command: str, stdin: str = "") -> str:
        program, *arguments = (str(stand_ins.get(word, word)) for word in shlex.split(command))
        module = ["-m", "transformers_flashsloth"] if program.endswith("flashsloth") else []
        return run([sys.executable, *module, *arguments], stdin)

    return run_here


def test_every_command_is_tested():
    kinds = ("make ", ".venv/bin/flashsloth ", ".venv/bin/python conversion/", ".venv/bin/python -m ")
    assert set(commands(*kinds, ".venv/bin/pip install ")) == set(COMMANDS)


@pytest.mark.parametrize("command", commands("make "))
def test_make_knows_the_target(command):
    # They make virtual environments, and one of them runs this test.
    run([*shlex.split(command), "--dry-run"])


def test_demo_prints_what_the_readme_shows(run_here):
    (shown,) = [block for block in blocks("text") if block.startswith("image:")]
    image, question, answer = re.fullmatch(r"image: +(.+)\nquestion: +(.+)\nanswer: +(.+)\n", shown).groups()

    ask = f'.venv/bin/flashsloth ask "{image}" "{question}"'

    assert ask in run(["make", "demo", "--dry-run"])
    assert run_here(ask) == answer


@pytest.mark.parametrize("command", commands(".venv/bin/flashsloth ask"))
def test_ask_answers(command, run_here):
    assert len(run_here(command).splitlines()) == 1


@pytest.mark.parametrize("command", commands(".venv/bin/flashsloth chat"))
def test_chat_answers_each_line(command, run_here):
    answers = run_here(command, stdin="What color is the triangle?\nWhat shape is red?\n")
    assert len(answers.splitlines()) == 2


@pytest.mark.parametrize("snippet", blocks("python"))
def test_python_answers(snippet):
    assert re.fullmatch(r"\w+( \w+)?", run([sys.executable, "-c", snippet]))


@pytest.mark.parametrize("command", commands(".venv/bin/python conversion/"))
def test_conversion_runs(command, run_here):
    assert "equal" in run_here(command)


@pytest.mark.parametrize("command", commands(".venv/bin/flashsloth build"))
def test_build_writes_a_model(command, run_here, tmp_path):
    run_here(command)
    assert (tmp_path / "untrained" / "model.safetensors").exists()


@pytest.mark.parametrize("command", commands(".venv/bin/python -m transformers_flashsloth."))
def test_recipes_train(command, run_here, tmp_path):
    pytest.importorskip("trl")
    run_here(f"{command} --max_steps 1 --report_to none --use_cpu")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_python_answers_many(monkeypatch):
    """Each way with its own inputs, as the README says what they are."""
    (snippet,) = [block for block in blocks("py") if "answer_all" in block]
    monkeypatch.chdir(EXAMPLES)
    checkpoint = ROOT / "src/transformers_flashsloth/default_checkpoint"
    processor = FlashSlothProcessor.from_pretrained(checkpoint)
    model = FlashSlothForConditionalGeneration.from_pretrained(checkpoint)
    content = [{"type": "image", "path": "fox.png"}, {"type": "text", "text": "What is this?"}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **options)
    ids = inputs["input_ids"]
    end = int((ids[0] == processor.image_token_id).nonzero()[-1]) + 2
    names = {"model": model, "processor": processor, "inputs": inputs, "prefix": ids[:, :end], "copy": copy}
    found = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **kwargs: found.append(generate(**kwargs)) or found[-1])
    exec(snippet, names)
    assert names["answers"] == ["fox", "yes", "yes"] or names["answers"][0] == "fox"
    by_hand = [processor.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip() for out in found[-2:]]
    assert by_hand == ["fox", "fox"]


@pytest.mark.parametrize("snippet", [block for block in blocks("py") if "SFTTrainer" in block])
def test_python_trains(snippet, questions, tmp_path):
    pytest.importorskip("trl")
    for name, path in {"adapter": tmp_path / "adapter", "images": EXAMPLES, "questions.csv": questions}.items():
        snippet = snippet.replace(f'"{name}"', repr(str(path)))
    run([sys.executable, "-c", snippet.replace("max_length=None", "max_length=None, max_steps=1, use_cpu=True")])
    assert (tmp_path / "adapter" / "checkpoint-1" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("command", commands(".venv/bin/python -m conversion.", ".venv/bin/python -m benchmarks."))
def test_long_commands_know_their_options(command, run_here):
    # Training takes hours, its evaluation and the benchmark minutes.
    module = " ".join(shlex.split(command)[:3])
    assert set(re.findall(r"--[\w-]+", command)) <= set(re.findall(r"--[\w-]+", run_here(f"{module} --help")))


@pytest.mark.parametrize("command", commands(".venv/bin/pip install "))
def test_extras_exist(command):
    (extra,) = re.findall(r"\[([\w-]+)\]", command)
    assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", README))
def test_linked_files_exist(target):
    assert (ROOT / target).is_file()
