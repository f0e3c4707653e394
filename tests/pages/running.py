"""Runs the blocks of a page one after the other, in this process, as a reader would who follows it."""

import contextlib
import io
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from packaging.version import Version

import flashsloth_command
from tests.pages.blocks import ROOT, Block, commands_of

# A step where a reader trains for longer, on a machine that may have no bfloat16.
TRAINING = "--max_steps 1 --report_to none --use_cpu --bf16 False --per_device_train_batch_size 2"
QUICK = {
    "train lora": TRAINING,
    "train stage1": f"{TRAINING} --gradient_accumulation_steps 2",
    "train stage2": f"{TRAINING} --gradient_accumulation_steps 2",
}
QUICK_SCRIPT = "--max_steps 1 --num_pictures 4 --num_held_out 2 --per_device_train_batch_size 4 --num_generations 2"


def run_block(block: Block, names: dict) -> None:
    """
    Runs a block in the current directory; `names` are those of the page's Python so far. Skips the rest of the page
    where it needs packages that are not installed.
    """
    needs_packages(block)
    if block.language == "python":
        exec(compile(block.code, f"line {block.line}", "exec"), names)
        return
    for command in commands_of(block):
        run_command(command)


def needs_packages(block: Block) -> None:
    if re.search(r"flashsloth train|docs/examples/|\b(trl|peft)\b", block.code) and "pip install" not in block.code:
        pytest.importorskip("trl")
    if re.search(r"flashsloth export|OnnxFlashSloth", block.code):
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
        if Version(transformers.__version__).release < (5, 23):
            pytest.skip("transformers' exporter changed in 5.23")


def run_command(command: str) -> str:
    """Runs a command line and returns what it printed."""
    command, stdin = _piped(command)
    words = shlex.split(command)
    program = words[0].removeprefix(".venv/bin/")
    if program == "flashsloth":
        return flashsloth(words[1:], stdin)
    if program == "make":  # which makes virtual environments
        return _process(["make", "--directory", ROOT, "--dry-run", *words[1:]])
    if words[:2] == ["pip", "install"] or words[0].endswith("bin/pip"):
        check_extra(command)
    elif program == "python" and words[1] == "-m":
        check_module(words[2], words[3:])
    elif program == "python":
        options = QUICK_SCRIPT if "grpo" in words[1] else QUICK_SCRIPT.partition(" --num_generations")[0]
        return script(words[1:], options)
    else:
        raise ValueError(f"no test knows how to run {command!r}: mark its block")
    return ""


def flashsloth(arguments: list[str], stdin: str = "") -> str:
    for name, options in QUICK.items():
        if arguments[:2] == name.split():
            arguments = [*arguments, *options.split()]
    with printed() as output, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        assert flashsloth_command.main(arguments) == 0, arguments
    return output.getvalue()


def script(words: list[str], options: str) -> str:
    """A script with its arguments and these options."""
    with printed() as output, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*words, *options.split()])
        patch.syspath_prepend(str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")
    return output.getvalue()


def check_extra(command: str) -> None:
    """`pip install` of the package is with extras that there are."""
    extras = re.findall(r"\[([\w,-]+)\]", command)
    assert extras or re.search(r"install (transformers-flashsloth|\.|-e \.|[\w ]+)$", command), command
    for extra in ",".join(extras).split(",") if extras else []:
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE), extra


def check_module(module: str, arguments: list[str]) -> None:
    """Training and benchmarks take hours or minutes: the module knows the options."""
    with printed() as output, pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setattr(sys, "argv", [module, "--help"])
        runpy.run_module(module, run_name="__main__")
    given = {word for word in arguments if word.startswith("--")}
    assert given <= set(re.findall(r"--[\w-]+", output.getvalue())), module


@contextlib.contextmanager
def printed():
    """What is written to stdout."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        yield output


def _piped(command: str) -> tuple[str, str]:
    """`echo "TEXT" | COMMAND` as the command and its input."""
    match = re.fullmatch(r'echo "([^"]*)" \| (.*)', command)
    return (match[2], f"{match[1]}\n") if match else (command, "")


def _process(command: list) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
