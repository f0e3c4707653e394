"""The options that every benchmark has."""

import argparse
from pathlib import Path

from .worker import Settings


def common_parser(description: str, output: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has; `output` is where results go by default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--threads", type=int, help="of torch; its own choice by default")
    parser.add_argument("--new-tokens", type=int, default=8, help="decoding steps timed (default %(default)s)")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny models: shows that the command runs, measures nothing"
    )
    parser.add_argument("--output", type=Path, default=Path(output), help="directory (default %(default)s)")
    parser.add_argument("--readme", type=Path, help="document whose marked places get the figures")
    return parser


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings that `common_parser`'s options stand for."""
    names = ("device", "dtype", "threads", "new_tokens", "tiny")
    return Settings(**{name: getattr(options, name) for name in names}, compile=getattr(options, "compile", False))
