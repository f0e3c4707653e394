"""`flashsloth ask` and `flashsloth chat`."""

import argparse
import sys
from itertools import chain
from pathlib import Path

from ..checkpoints.opening import DEFAULT_CHECKPOINT, LOAD_IN, InputError
from ..checkpoints.options import loading_options, positive
from .conversation import Conversation

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def ask(arguments: list[str], prog: str) -> int:
    """Answers questions, and draws what was looked at for a single one if asked to."""
    parser = argparse.ArgumentParser(
        prog=prog,
        parents=[_options()],
        usage=f"{prog} [OPTIONS] IMAGE [IMAGE ...] QUESTION\n"
        f"       {prog} [OPTIONS] IMAGE [IMAGE ...] --question QUESTION [--question QUESTION ...]",
        description="Answers a question about images, or several, each by itself and with an answer a line.",
    )
    parser.add_argument(
        "--question",
        action="append",
        dest="questions",
        metavar="QUESTION",
        help="a question in place of the last argument; for several about the same images, which are read once",
    )
    parser.add_argument("--explain", type=Path, metavar="OUT.png", help="draw what the model looked at")
    options = parser.parse_args(arguments)
    if options.questions is None:
        if len(options.images) < 2:
            parser.error("the following arguments are required: QUESTION")
        options.questions = [options.images.pop()]
    if options.explain and (problem := _cannot_write(options.explain)):
        raise InputError(problem)
    if options.explain and len(options.questions) > 1:
        raise InputError(f"an explanation is of one question, not of {len(options.questions)}: ask them one by one")
    conversation = _start(options)
    if options.explain:
        conversation.check_explains()
    if len(options.questions) > 1:
        sys.stdout.writelines(f"{' '.join(answer.split())}\n" for answer in conversation.ask_each(options.questions))
        return 0
    _answer(conversation, options.questions[0])
    if options.explain:
        conversation.explain().save(options.explain)
    return 0


def chat(arguments: list[str], prog: str) -> int:
    """Answers the questions on stdin, one a line. A question that cannot be asked does not end the conversation."""
    parser = argparse.ArgumentParser(prog=prog, parents=[_options()], description="Answers the questions on stdin.")
    conversation = _start(parser.parse_args(arguments))
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
            sys.stderr.write(f"flashsloth: error: {' '.join(str(error).split())}\n")
            status = 2


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False, parents=[loading_options()])
    options.add_argument("images", nargs="+", metavar="IMAGE", help="file or URL of an image or video")
    options.add_argument(
        "--frames",
        type=positive,
        metavar="N",
        help="most frames of a video that are read (default: as the model says)",
    )
    options.add_argument(
        "--model",
        default=DEFAULT_CHECKPOINT,
        metavar="PATH_OR_HUB_ID",
        help="checkpoint (default: the small one in the package)",
    )
    options.add_argument(
        "--load-in", choices=LOAD_IN, help="load the decoder's layers in so many bits, with bitsandbytes"
    )
    options.add_argument(
        "--visual-tokens",
        type=positive,
        metavar="N",
        help="tokens that a view of an image becomes; fewer are quicker (default: as the model says)",
    )
    options.add_argument(
        "--max-new-tokens", type=positive, metavar="N", help="longest answer (default: as the model says, or 256)"
    )
    return options


def _start(options: argparse.Namespace) -> Conversation:
    return Conversation(
        options.images,
        checkpoint=options.model,
        image_hd=options.hd,
        num_frames=options.frames,
        max_new_tokens=options.max_new_tokens,
        device=options.device,
        dtype=options.dtype,
        load_in=options.load_in,
        visual_tokens=options.visual_tokens,
    )


def _answer(conversation: Conversation, question: str) -> None:
    pieces = conversation.stream(question) if sys.stdout.isatty() else [conversation.ask(question)]
    for piece in chain(pieces, "\n"):
        sys.stdout.write(piece)
        sys.stdout.flush()


def _cannot_write(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"there is no directory {str(path.parent)!r} for the explanation"
    if path.suffix.lower() not in PICTURES:
        return f"an explanation is written as {', '.join(PICTURES)}, not as {path.name!r}"
    return None
