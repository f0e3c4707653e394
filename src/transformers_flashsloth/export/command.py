"""`flashsloth export`."""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import transformers
from packaging.version import Version

from ..checkpoints.opening import DEFAULT_CHECKPOINT, InputError, input_errors, local_directory
from ..checkpoints.options import positive
from .precisions import PRECISIONS

NEEDED = ("onnx", "onnxscript", "onnxruntime")
# Of transformers, whose exporter changed then.
OLDEST = (5, 23)


def export(arguments: list[str], prog: str) -> int:
    """Writes a checkpoint as ONNX graphs, and compares their answers with the model's."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Writes a checkpoint as ONNX graphs, which answer without PyTorch's model."
    )
    parser.add_argument("output", type=Path, metavar="DIR", help="does not exist yet")
    parser.add_argument(
        "--model", default=DEFAULT_CHECKPOINT, metavar="PATH_OR_HUB_ID", help="(default: the one in the package)"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="(default: %(default)s)")
    parser.add_argument(
        "--visual-tokens",
        type=positive,
        metavar="N",
        help="the only number of tokens of a view that the export shall know (default: the model's own and, where its "
        "config lists `pooling_windows`, those of each, of which every question then chooses one)",
    )
    options = parser.parse_args(arguments)
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise InputError(f"exporting needs {', '.join(missing)}: pip install 'transformers-flashsloth[export]'")
    if Version(transformers.__version__).release < OLDEST:
        raise InputError(f"exporting needs transformers {OLDEST[0]}.{OLDEST[1]} or later: pip install -U transformers")
    from .writing import export_checkpoint

    with input_errors():
        manifest = export_checkpoint(
            local_directory(options.model),
            options.output,
            precision=options.precision,
            visual_tokens=options.visual_tokens,
            say=lambda text: sys.stderr.write(f"{text}\n"),
        )
    size = sum((options.output / name).stat().st_size for name in manifest["files"])
    numbers = ", ".join(str(one["visual_tokens"]) for one in manifest["windows"])
    sys.stdout.write(
        f"Wrote {size / 1e6:.1f} MB of graphs in {manifest['precision']} to {options.output}, for {numbers} visual "
        "tokens a view.\n"
    )
    return 0
