"""`flashsloth build`."""

import argparse
import json
import sys
from pathlib import Path

from ..checkpoints.opening import input_errors
from ..checkpoints.options import DTYPES
from ..model.configuration_flashsloth import FlashSlothConfig
from .checkpoint import build_checkpoint


def build(arguments: list[str], prog: str) -> int:
    """Writes a new, untrained model of two backbones, with its processor."""
    options = _parser(prog).parse_args(arguments)
    choices = dict(options.choices)
    if options.gguf_file:
        choices["text_options"] = {"gguf_file": options.gguf_file}
    with input_errors():
        model = build_checkpoint(
            options.output,
            options.text,
            options.vision,
            dtype=options.dtype,
            image_hd=options.hd,
            seed=options.seed,
            **choices,
        )
    sys.stdout.write(f"Wrote a new FlashSloth of {model.num_parameters():,} parameters to {options.output}.\n")
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description="Makes a new, untrained model of a decoder and a vision tower, which keep their weights."
    )
    parser.add_argument("text", metavar="TEXT", help="decoder with its tokenizer: directory or Hub id")
    parser.add_argument("vision", metavar="VISION", help="vision tower: directory or Hub id")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="does not exist yet")
    parser.add_argument("--hd", action="store_true", help="read images in high definition")
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of the new parts (default: %(default)s)")
    parser.add_argument("--gguf-file", metavar="FILE", help="read the decoder of this file in TEXT")
    parser.add_argument(
        "--set",
        dest="choices",
        action=_Choice,
        default={},
        metavar="NAME=VALUE",
        help="a field of the config, such as pooling_window=2 or embq_layer=[4,8]; can be repeated",
    )
    return parser


class _Choice(argparse.Action):
    """Collects `NAME=VALUE`, the value as JSON or else as text."""

    def __call__(self, parser, namespace, argument, option_string=None):
        name, equals, text = argument.partition("=")
        if not equals or name not in FlashSlothConfig.__dataclass_fields__:
            parser.error(f"{option_string} {argument}: expected NAME=VALUE with a field of FlashSlothConfig")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        setattr(namespace, self.dest, getattr(namespace, self.dest) | {name: value})
