"""`flashsloth push`, and what `flashsloth convert --push-to-hub` shares with it."""

import argparse
import sys
from pathlib import Path

from ..checkpoints.opening import input_errors
from .card import MODEL_CARD
from .push import push_to_hub


def push(arguments: list[str], prog: str) -> int:
    """Uploads a checkpoint."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Uploads a checkpoint in this package's format: weights, processor, code and a model card, in one "
        "commit. Needs a token with write access (`hf auth login`, or HF_TOKEN). After a broken upload run it again: "
        "files that arrived are not sent twice.",
    )
    parser.add_argument("directory", metavar="DIRECTORY", type=Path, help="checkpoint in this package's format")
    parser.add_argument("repo_id", metavar="REPO", help="such as me/name")
    add_options(parser)
    parser.add_argument("--model-card", type=Path, default=MODEL_CARD, help="Markdown file (default: this project's)")
    options = vars(parser.parse_args(arguments))
    with input_errors():
        url = push_to_hub(options.pop("directory"), options.pop("repo_id"), **options)
    sys.stdout.write(f"Uploaded it to {url}.\n")
    return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what a command that uploads takes."""
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument(
        "--scores", choices=("base", "hd"), help="add the authors' scores to the card, for their weights unchanged"
    )
    parser.add_argument(
        "--results", type=Path, metavar="results.json", help="add the figures that `flashsloth eval` wrote to the card"
    )
