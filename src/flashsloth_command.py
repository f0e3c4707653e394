"""
The `flashsloth` command: a line for each subcommand. What a subcommand does is in its room of the package, and imported
when it runs; this module is outside of the package, whose import takes seconds, so that `flashsloth --help` does not.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from textwrap import shorten

PACKAGE = "transformers_flashsloth"
# Name: module and function, given the arguments and the command's name, and what it does.
COMMANDS = {
    "ask": ("asking.commands:ask", "answer a question about images and videos"),
    "chat": ("asking.commands:chat", "answer the questions on stdin, one a line"),
    "build": ("building.command:build", "make a new, untrained model of a decoder and a vision tower"),
    "convert": ("authors.command:convert", "convert a checkpoint from the authors' format, or back"),
    "demo": ("demo.command:demo", "show a page to talk to a model on"),
    "export": ("export.command:export", "write a checkpoint as ONNX graphs"),
    "push": ("publishing.command:push", "upload a checkpoint to the Hub, with its code and a model card"),
    "train lora": ("training.command:lora", "fine-tune with LoRA on your images, questions and answers"),
    "train stage1": ("training.command:stage1", "train the release's first stage: captions"),
    "train stage2": ("training.command:stage2", "train the release's second stage: instructions"),
    "eval": ("evaluation.command:evaluate", "score a model on tasks of lmms-eval, such as the paper's benchmarks"),
    "serve": ("serving.command:serve", "answer OpenAI's chat completions over HTTP"),
}
LONGEST_ERROR = 400  # characters


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 1 (the model failed), 2 (bad input) or 130 (interrupted)."""
    words = sys.argv[1:] if arguments is None else arguments
    name = next((name for name in COMMANDS if words[: len(name.split())] == name.split()), None)
    if name is None:
        return _without_command(words)
    target, _ = COMMANDS[name]
    module, function = target.split(":")
    return finish(
        lambda: getattr(import_module(f"{PACKAGE}.{module}"), function)(
            words[len(name.split()) :], prog=f"flashsloth {name}"
        )
    )


def finish(run: Callable[[], int]) -> int:
    """Runs a command; what goes wrong ends in one line on stderr and an exit code."""
    try:
        return run()
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        code = getattr(error, "exit_code", 1)  # that of `InputError` is 2
        text = f"{type(error).__name__}: {error}" if code == 1 else str(error)
        sys.stderr.write(f"flashsloth: error: {shorten(text, width=LONGEST_ERROR, placeholder=' ...')}\n")
        return code


def _without_command(words: list[str]) -> int:
    """Help, the version, or what is wrong with a command that there is none of."""
    if words in (["--version"], ["-V"]):
        sys.stdout.write(f"flashsloth {version('transformers-flashsloth')}\n")
        return 0
    if words[:1] in (["--help"], ["-h"]):
        sys.stdout.write(_help(COMMANDS))
        return 0
    family = {name: entry for name, entry in COMMANDS.items() if words and name.split()[0] == words[0]}
    if family and words[1:2] in (["--help"], ["-h"]):
        sys.stdout.write(_help(family))
        return 0
    names = ", ".join(family or COMMANDS)
    reason = f"no command {' '.join(words[: 2 if family else 1])!r}" if words else "a command is missing"
    sys.stderr.write(f"usage: flashsloth COMMAND ...\nflashsloth: error: {reason}; choose one of: {names}\n")
    return 2


def _help(commands: dict[str, tuple[str, str]]) -> str:
    width = max(map(len, commands))
    lines = "".join(f"  {name:<{width}}  {text}\n" for name, (_, text) in commands.items())
    return (
        "usage: flashsloth COMMAND ...\n\n"
        f"FlashSloth, a small multimodal model: ask it about images and videos, train it, serve it.\n\n{lines}\n"
        "flashsloth COMMAND --help says more of a command; flashsloth --version says which version this is.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
