"""`flashsloth train lora`, `stage1` and `stage2`: the recipes, whose flags are TRL's and those of `arguments.py`."""

from importlib import import_module
from importlib.util import find_spec

from ..checkpoints.opening import InputError


def lora(arguments: list[str], prog: str) -> int:
    """Fine-tunes with LoRA."""
    return _run("lora", arguments)


def stage1(arguments: list[str], prog: str) -> int:
    """Trains the release's first stage."""
    return _run("stage1", arguments)


def stage2(arguments: list[str], prog: str) -> int:
    """Trains the release's second stage."""
    return _run("stage2", arguments)


def _run(recipe: str, arguments: list[str]) -> int:
    for package in ("trl", "peft", "datasets", "accelerate"):
        if find_spec(package) is None:
            raise InputError(f'training needs {package}, and Python 3.11: pip install "transformers-flashsloth[train]"')
    run_command = import_module(".arguments", __package__).run_command
    main = import_module(f".{recipe}", __package__).main
    return run_command(lambda: main(arguments))
