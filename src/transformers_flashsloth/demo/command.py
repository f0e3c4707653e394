"""`flashsloth demo`."""

import argparse
from importlib.util import find_spec

from ..checkpoints.opening import DEFAULT_CHECKPOINT, InputError
from .models import Models


def demo(arguments: list[str], prog: str) -> int:
    """Shows a page to talk to a model on, until interrupted."""
    parser = argparse.ArgumentParser(prog=prog, description="Shows a page to talk to a model on, with Gradio.")
    parser.add_argument(
        "--model",
        action="append",
        metavar="PATH_OR_HUB_ID",
        help="checkpoint; several times for a choice (default: the small one in the package)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    parser.add_argument("--device", help="such as cpu, cuda:1 or mps (default: an accelerator if there is one)")
    options = parser.parse_args(arguments)
    if find_spec("gradio") is None:
        raise InputError('the page needs more packages: pip install "transformers-flashsloth[demo]"')
    from .app import MAX_FILE_SIZE, build_app

    models = Models(options.model or [DEFAULT_CHECKPOINT], device=options.device)
    try:
        build_app(models).launch(server_name=options.host, server_port=options.port, max_file_size=MAX_FILE_SIZE)
    except OSError as error:  # the port is taken, or the address is not this machine's
        raise InputError(error) from error
    return 0
