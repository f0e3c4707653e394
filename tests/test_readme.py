"""Runs what README.md tells a reader to run, as it stands there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]


def commands(*beginning: str) -> list[str]:
    return [command for command in COMMANDS if command.startswith(beginning)]


def run(command: list[str], stdin: str = "") -> str:
    done = subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def flashsloth(*arguments: str, stdin: str = "") -> str:
    return run([sys.executable, "-m", "transformers_flashsloth", *arguments], stdin)


def test_every_command_is_tested():
    tested = commands("make ", ".venv/bin/flashsloth ", ".venv/bin/python -m conversion.", ".venv/bin/pip install ")
    assert sorted(tested) == sorted(COMMANDS)
    assert len(blocks("python")) == 1


@pytest.mark.parametrize("command", commands("make "))
def test_make_knows_the_target(command):
    # They make virtual environments, and one of them runs this test.
    run([*shlex.split(command), "--dry-run"])


def test_demo_prints_what_the_readme_shows():
    (shown,) = [block for block in blocks("text") if block.startswith("image:")]
    image, question, answer = re.fullmatch(r"image: +(.+)\nquestion: +(.+)\nanswer: +(.+)\n", shown).groups()

    recipe = run(["make", "demo", "--dry-run", "--always-make"])

    assert f'flashsloth ask "{image}" "{question}"' in recipe
    assert flashsloth("ask", image, question) == answer


@pytest.mark.parametrize("command", commands(".venv/bin/flashsloth ask"))
def test_ask_answers(command):
    assert len(flashsloth(*shlex.split(command)[1:]).splitlines()) == 1


@pytest.mark.parametrize("command", commands(".venv/bin/flashsloth chat"))
def test_chat_answers_each_line(command):
    answers = flashsloth(*shlex.split(command)[1:], stdin="What color is the triangle?\nWhat shape is red?\n")
    assert len(answers.splitlines()) == 2


def test_python_answers():
    assert re.fullmatch(r"\[' \w.*'\]", run([sys.executable, "-c", blocks("python")[0]]))


@pytest.mark.parametrize("command", commands(".venv/bin/python -m conversion."))
def test_conversion_knows_the_options(command):
    # Each runs for minutes or hours.
    module = shlex.split(command)[1:3]
    usage = run([sys.executable, *module, "--help"])
    assert set(re.findall(r"--[\w-]+", command)) <= set(re.findall(r"--[\w-]+", usage))


@pytest.mark.parametrize("command", commands(".venv/bin/pip install "))
def test_extras_exist(command):
    (extra,) = re.findall(r"\[([\w-]+)\]", command)
    assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", README))
def test_linked_files_exist(target):
    assert (ROOT / target).is_file()
