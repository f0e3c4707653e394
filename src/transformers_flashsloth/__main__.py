"""The `flashsloth` command: its arguments, and how its subcommands end."""

import argparse
import sys
from textwrap import shorten

from . import __version__
from .conversation import DEFAULT_CHECKPOINT, Conversation, InputError


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
    """Answers one question."""
    conversation = _start(options)
    _answer(conversation, options.question)
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


def _start(options: argparse.Namespace) -> Conversation:
    return Conversation(
        options.images,
        checkpoint=options.model,
        image_hd=options.hd,
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
    parser = argparse.ArgumentParser(prog="flashsloth", description="Ask FlashSloth about images.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("images", nargs="+", metavar="IMAGE", help="file or URL")
    shared.add_argument(
        "--model",
        default=DEFAULT_CHECKPOINT,
        metavar="PATH_OR_HUB_ID",
        help="checkpoint (default: the small one in the package)",
    )
    shared.add_argument(
        "--hd", action="store_true", default=None, help="read images in high definition (default: as the model says)"
    )
    shared.add_argument(
        "--max-new-tokens", type=_positive, metavar="N", help="longest answer (default: as the model says, or 256)"
    )
    shared.add_argument("--device", help="such as cpu, cuda:1 or mps (default: an accelerator if there is one)")
    shared.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="number type of the weights (default: float32 on a CPU, the checkpoint's elsewhere)",
    )

    parser_ask = commands.add_parser("ask", parents=[shared], help="answer one question about images")
    parser_ask.add_argument("question", metavar="QUESTION")
    parser_ask.set_defaults(run=ask)

    parser_chat = commands.add_parser("chat", parents=[shared], help="answer the questions on stdin, one a line")
    parser_chat.set_defaults(run=chat)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
