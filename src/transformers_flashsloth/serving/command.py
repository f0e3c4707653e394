"""`flashsloth serve`."""

import argparse
from pathlib import Path

from transformers.utils.import_utils import is_serve_available

from ..checkpoints.opening import InputError
from ..checkpoints.options import loading_options, not_negative, positive
from .with_vllm import serve_with_vllm


def serve(arguments: list[str], prog: str) -> int:
    """Answers OpenAI's chat completions over HTTP, until interrupted."""
    options = _parser(prog).parse_args(arguments)
    if options.engine == "vllm":
        return serve_with_vllm(options)
    if not is_serve_available():
        raise InputError('serving needs more packages: pip install "transformers-flashsloth[serve]"')
    from .server import serve_checkpoint

    serve_checkpoint(
        options.model,
        host=options.host,
        port=options.port,
        directory=options.allow_files,
        private_urls=options.private_urls,
        feature_cache_mb=options.feature_cache_mb,
        image_hd=options.hd,
        visual_tokens=options.visual_tokens,
        device=options.device,
        dtype=options.dtype,
    )
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        parents=[loading_options()],
        description="Answers OpenAI's chat completions over HTTP, with the server of transformers.",
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="PATH_OR_HUB_ID",
        help="checkpoint, and its name to clients (default: the small one in the package, as 'flashsloth')",
    )
    parser.add_argument(
        "--engine",
        choices=("transformers", "vllm"),
        default="transformers",
        help="what answers: transformers, one request after another, or vLLM, many at once (default: %(default)s)",
    )
    parser.add_argument("--host", default="localhost", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000")
    parser.add_argument(
        "--allow-files", type=Path, metavar="DIR", help="directory whose images clients may name (default: none)"
    )
    parser.add_argument(
        "--private-urls",
        action=argparse.BooleanOptionalAction,
        help="whether image URLs may lead to this machine and its network (default: if only this machine can ask)",
    )
    parser.add_argument(
        "--visual-tokens",
        type=positive,
        metavar="N",
        help="tokens that a view of an image becomes where a request does not say (default: as the model says)",
    )
    parser.add_argument(
        "--feature-cache-mb",
        type=not_negative,
        metavar="MB",
        help="most megabytes of encoded images that are kept for later requests; 0 for none (default: 512)",
    )
    return parser
