"""`flashsloth convert`."""

import argparse
import sys
from pathlib import Path

from ..checkpoints.opening import input_errors
from ..checkpoints.options import DTYPES
from ..publishing.command import add_options
from ..publishing.figures import read_figures
from ..publishing.push import push_to_hub
from .convert import convert as convert_checkpoint


def convert(arguments: list[str], prog: str) -> int:
    """Converts a checkpoint, and uploads it if asked to."""
    parser = _parser(prog)
    options = parser.parse_args(arguments)
    if options.push_to_hub and options.to_authors_format:
        parser.error("--push-to-hub uploads this package's format: leave --to-authors-format out")
    with input_errors():
        if options.results is not None:
            read_figures(options.results)  # what is wrong with it is said before anything is converted
        summary = convert_checkpoint(
            options.source,
            options.destination,
            to_authors_format=options.to_authors_format,
            dtype=options.dtype,
            max_shard_size=options.max_shard_size,
            trust_pickles=options.trust_pickles,
            verify=options.verify,
        )
        sys.stdout.write(f"{summary}\n")
        if options.push_to_hub:
            url = push_to_hub(
                options.destination,
                options.push_to_hub,
                private=options.private,
                scores=options.scores,
                results=options.results,
            )
            sys.stdout.write(f"Uploaded it to {url}.\n")
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Converts a checkpoint from the authors' format to this package's, or back. One tensor at a time "
        "is in memory, and no accelerator is needed. DST appears when it is whole and was read back; an interrupted "
        "run leaves nothing there.",
    )
    parser.add_argument("source", metavar="SRC", help="directory or Hub id, such as Tongbo/FlashSloth-3.2B")
    parser.add_argument("destination", metavar="DST", type=Path, help="directory that does not exist yet")
    parser.add_argument("--to-authors-format", action="store_true", help="from this package's format to the authors'")
    parser.add_argument("--dtype", choices=DTYPES, help="number type of DST (default: that of SRC)")
    parser.add_argument("--max-shard-size", default="5GB", help="largest file of weights (default: %(default)s)")
    parser.add_argument("--trust-pickles", action="store_true", help="read pickled weights, as weights only")
    parser.add_argument(
        "--verify", action=argparse.BooleanOptionalAction, default=True, help="read DST back (default: yes)"
    )
    parser.add_argument("--push-to-hub", metavar="REPO", help="then upload DST to this repository, such as me/name")
    add_options(parser)
    return parser
