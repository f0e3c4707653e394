"""The `flashsloth` command: its arguments, and how its subcommands end."""

import argparse
import json
import sys
from pathlib import Path
from textwrap import shorten

from huggingface_hub.errors import StrictDataclassError
from transformers.utils.import_utils import is_serve_available

from . import FlashSlothConfig, __version__
from .asking.conversation import DEFAULT_CHECKPOINT, Conversation, InputError

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 1 (the model failed), 2 (bad input) or 130 (interrupted)."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except InputError as error:
        _complain(error)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        _complain(f"{type(error).__name__}: {error}")
        return 1


def ask(options: argparse.Namespace) -> int:
    """Answers one question, and draws what was looked at if asked to."""
    if options.explain and (problem := _cannot_write(options.explain)):
        raise InputError(problem)
    conversation = _start(options)
    _answer(conversation, options.question)
    if options.explain:
        conversation.explain().save(options.explain)
    return 0


def chat(options: argparse.Namespace) -> int:
    """Answers the questions on stdin, one a line. A question that cannot be asked does not end the conversation."""
    conversation = _start(options)
    prompt = "> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    status = 0
    while True:
        try:
            question = input(prompt)
        except EOFError:
            return status
        if not question.strip():
            continue
        try:
            _answer(conversation, question)
        except InputError as error:
            _complain(error)
            status = 2


def build(options: argparse.Namespace) -> int:
    """Writes a new, untrained model of two backbones, with its processor."""
    from .building.checkpoint import build_checkpoint

    choices = dict(options.choices)
    if options.gguf_file:
        choices["text_options"] = {"gguf_file": options.gguf_file}
    try:
        model = build_checkpoint(
            options.output,
            options.text,
            options.vision,
            dtype=options.dtype,
            image_hd=options.hd,
            seed=options.seed,
            **choices,
        )
    except (OSError, ValueError, StrictDataclassError) as error:
        raise InputError(error.__cause__ if isinstance(error, StrictDataclassError) else error) from error
    sys.stdout.write(f"Wrote a new FlashSloth of {model.num_parameters():,} parameters to {options.output}.\n")
    return 0


def serve(options: argparse.Namespace) -> int:
    """Answers OpenAI's chat completions over HTTP, until interrupted."""
    if not is_serve_available():
        raise InputError('serving needs more packages: pip install "transformers-flashsloth[serve]"')
    from .serving.server import serve_checkpoint

    serve_checkpoint(
        options.model,
        host=options.host,
        port=options.port,
        directory=options.allow_files,
        private_urls=options.private_urls,
        image_hd=options.hd,
        device=options.device,
        dtype=options.dtype,
    )
    return 0


def _cannot_write(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"there is no directory {str(path.parent)!r} for the explanation"
    if path.suffix.lower() not in PICTURES:
        return f"an explanation is written as {', '.join(PICTURES)}, not as {path.name!r}"
    return None


def _start(options: argparse.Namespace) -> Conversation:
    return Conversation(
        options.images,
        checkpoint=options.model,
        image_hd=options.hd,
        num_frames=options.frames,
        max_new_tokens=options.max_new_tokens,
        device=options.device,
        dtype=options.dtype,
    )


def _answer(conversation: Conversation, question: str) -> None:
    stream = sys.stdout.isatty()
    answer = conversation.ask(question, stream=stream)
    if not stream:
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def _complain(error: object) -> None:
    sys.stderr.write(f"flashsloth: error: {shorten(str(error), width=400, placeholder=' ...')}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flashsloth", description="Ask FlashSloth about images and videos.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    loading = argparse.ArgumentParser(add_help=False)
    loading.add_argument(
        "--hd", action="store_true", default=None, help="read images in high definition (default: as the model says)"
    )
    loading.add_argument("--device", help="such as cpu, cuda:1 or mps (default: an accelerator if there is one)")
    loading.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="number type of the weights (default: float32 on a CPU, the checkpoint's elsewhere)",
    )

    shared = argparse.ArgumentParser(add_help=False, parents=[loading])
    shared.add_argument("images", nargs="+", metavar="IMAGE", help="file or URL of an image or video")
    shared.add_argument(
        "--frames",
        type=_positive,
        metavar="N",
        help="most frames of a video that are read (default: as the model says)",
    )
    shared.add_argument(
        "--model",
        default=DEFAULT_CHECKPOINT,
        metavar="PATH_OR_HUB_ID",
        help="checkpoint (default: the small one in the package)",
    )
    shared.add_argument(
        "--max-new-tokens", type=_positive, metavar="N", help="longest answer (default: as the model says, or 256)"
    )

    parser_ask = commands.add_parser("ask", parents=[shared], help="answer one question about images and videos")
    parser_ask.add_argument("question", metavar="QUESTION")
    parser_ask.add_argument("--explain", type=Path, metavar="OUT.png", help="draw what the model looked at")
    parser_ask.set_defaults(run=ask)

    parser_chat = commands.add_parser("chat", parents=[shared], help="answer the questions on stdin, one a line")
    parser_chat.set_defaults(run=chat)

    parser_build = commands.add_parser("build", help="make a new, untrained model of a decoder and a vision tower")
    parser_build.add_argument("text", metavar="TEXT", help="decoder with its tokenizer: directory or Hub id")
    parser_build.add_argument("vision", metavar="VISION", help="vision tower: directory or Hub id")
    parser_build.add_argument("--output", type=Path, required=True, metavar="DIR", help="does not exist yet")
    parser_build.add_argument("--hd", action="store_true", help="read images in high definition")
    parser_build.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    parser_build.add_argument("--seed", type=int, default=0, help="of the new parts (default: %(default)s)")
    parser_build.add_argument("--gguf-file", metavar="FILE", help="read the decoder of this file in TEXT")
    parser_build.add_argument(
        "--set",
        dest="choices",
        action=_Choice,
        default={},
        metavar="NAME=VALUE",
        help="a field of the config, such as pooling_window=2 or embq_layer=[4,8]; can be repeated",
    )
    parser_build.set_defaults(run=build)

    parser_serve = commands.add_parser(
        "serve", parents=[loading], help="answer OpenAI's chat completions over HTTP, with the server of transformers"
    )
    parser_serve.add_argument(
        "model",
        nargs="?",
        metavar="PATH_OR_HUB_ID",
        help="checkpoint, and its name to clients (default: the small one in the package, as 'flashsloth')",
    )
    parser_serve.add_argument("--host", default="localhost", help="address to listen on (default: this machine only)")
    parser_serve.add_argument("--port", type=int, default=8000, help="default: 8000")
    parser_serve.add_argument(
        "--allow-files", type=Path, metavar="DIR", help="directory whose images clients may name (default: none)"
    )
    parser_serve.add_argument(
        "--private-urls",
        action=argparse.BooleanOptionalAction,
        help="whether image URLs may lead to this machine and its network (default: if only this machine can ask)",
    )
    parser_serve.set_defaults(run=serve)
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


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
