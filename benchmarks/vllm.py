"""
Requests a second and time to first token of vLLM against `generate` and this package's server, in an environment that
has vLLM (`make vllm` makes one): `.venv-vllm/bin/python -m benchmarks.vllm`.

So many requests come at once, each with an image of its own. Every round asks all subjects, one after the other, so
that drift cancels. Rates are of whole answers, times of answers of one token, which wait for no other's later ones.
"""

import argparse
import base64
import sys
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from vllm import __version__ as vllm_version

from .machine import describe
from .measure import summary
from .options import common_parser
from .presets import PRESETS
from .report import markdown_table, publish, with_spread
from .serving_subjects import Generate, Server, ending, write_checkpoint

HEADER = ["subject", "at once", "requests/s", "over one by one", "TTFT, s", "95th percentile", "TTFT, asked again"]
QUESTION, SECOND = "What is in the picture?", "How many things are in the top left corner?"
ONE_BY_ONE, BATCHES, OURS, VLLM = "generate, one by one", "generate, batches", "flashsloth serve", "vLLM"
# Where one request is answered after another, so many show how long each takes.
MOST_IN_LINE = 8
LARGEST_BATCH = 32


def main(arguments: list[str] | None = None) -> None:
    parser = common_parser(__doc__, "benchmarks/results/vllm")
    parser.set_defaults(new_tokens=32)
    parser.add_argument("--model", default="ours-qwen3-0.6b", choices=[*PRESETS], help="sizes (default %(default)s)")
    parser.add_argument("--layers", type=int, help="of the decoder, where memory does not hold all")
    parser.add_argument(
        "--at-once", type=int, nargs="+", default=[1, 8, 30, 100], help="requests (default %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default %(default)s)")
    parser.add_argument("--compile", action="store_true", help="vLLM compiles, as it does by default")
    options = parser.parse_args(arguments)
    options.threads = options.threads or 1
    with TemporaryDirectory() as directory:
        result = measure(options, Path(directory))
    publish(options, f"vllm-{options.model}", result, table(result))


def measure(options: argparse.Namespace, directory: Path) -> dict:
    """`{"machine", "found": {subject: {requests: {"rate", "ttft", "p95", "again"}}}}`."""
    checkpoint = write_checkpoint(directory / "model", options.model, options.dtype, options.tiny, options.layers)
    machine = describe(options.device, options.dtype) | {"threads": options.threads, "vllm": vllm_version}
    images = distinct_images(directory)
    found = {}
    with ending({}) as subjects:
        subjects[ONE_BY_ONE] = subjects[BATCHES] = Generate(checkpoint, options.threads)
        serve = ["flashsloth", "serve", str(checkpoint), "--dtype", options.dtype]
        if options.device != "cpu":
            serve += ["--device", options.device]
        options.output.mkdir(parents=True, exist_ok=True)
        subjects[OURS] = Server(console(serve), options.threads, options.output / "flashsloth-serve.log")
        command = console(["-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)])
        command += ["--dtype", options.dtype, "--max-model-len", "1024"]
        command += [] if options.compile else ["--enforce-eager"]
        subjects[VLLM] = Server(command, options.threads, options.output / "vllm.log")
        for subject in subjects.values():  # warms up
            subject.ask([next(images)(subject)], QUESTION, 2)
        for _ in range(options.repeats):
            for at_once in options.at_once:
                for name, subject in subjects.items():
                    one = found.setdefault(name, {}).setdefault(at_once, {"rate": [], "first": [], "again": []})
                    take_round(one, name, subject, at_once, images, options.new_tokens)
    return {
        "machine": machine,
        "new_tokens": options.new_tokens,
        "model": f"tiny {options.model}" if options.tiny else options.model,
        "layers": options.layers,
        "compile": options.compile,
        "found": summarised(found),
    }


def take_round(found: dict, name: str, subject, at_once: int, images, new_tokens: int) -> None:
    """Adds a round of whole answers, and one of first tokens: about new images, and about the same ones again."""
    number = min(at_once, MOST_IN_LINE) if name in (ONE_BY_ONE, OURS) else at_once
    batch = min(at_once, LARGEST_BATCH) if name == BATCHES else 1

    def new_images() -> list[str]:
        return [next(images)(subject) for _ in range(number)]

    answered = subject.ask(new_images(), QUESTION, new_tokens, batch)
    found["rate"].append(number / answered["all"])
    if number < at_once:
        return
    pictures = new_images()
    found["first"] += subject.ask(pictures, QUESTION, 1, batch)["first"]
    if name in (OURS, VLLM):
        found["again"] += subject.ask(pictures, SECOND, 1)["first"]


def summarised(found: dict) -> dict:
    return {
        name: {
            at_once: {
                "rate": summary(one["rate"]),
                "ttft": summary(one["first"]) if one["first"] else None,
                "p95": float(np.percentile(one["first"], 95)) if one["first"] else None,
                "again": summary(one["again"]) if one["again"] else None,
            }
            for at_once, one in of.items()
        }
        for name, of in found.items()
    }


def distinct_images(directory: Path):
    """Functions that give the next image, as a subject takes it: a path, or a `data:` URI."""
    for number in count():
        pixels = np.random.default_rng(number).integers(0, 255, (24, 24, 3), dtype=np.uint8)
        path = directory / f"{number}.jpg"
        Image.fromarray(pixels).resize((384, 384), Image.Resampling.BICUBIC).save(path, quality=90)
        uri = f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"
        yield lambda subject, path=path, uri=uri: uri if isinstance(subject, Server) else str(path)


def console(command: list[str]) -> list[str]:
    """A command of this environment."""
    module = command[:1] == ["-m"]
    return [sys.executable, *command] if module else [str(Path(sys.executable).with_name(command[0])), *command[1:]]


def table(result: dict) -> str:
    machine, alone = result["machine"], result["found"][ONE_BY_ONE]
    rows = [
        [
            name, str(at_once), with_spread(one["rate"], digits=3),
            f"{one['rate']['median'] / alone[at_once]['rate']['median']:.2f}",
            with_spread(one["ttft"]), "" if one["p95"] is None else f"{one['p95']:.2f}", with_spread(one["again"]),
        ]
        for name, of in result["found"].items() for at_once, one in of.items()
    ]  # fmt: skip
    model = result["model"] + (f" with {result['layers']} layers" if result["layers"] else "")
    kind = "compiled" if result["compile"] else "eager"
    said = (
        f"{model}, random weights, {result['new_tokens']} new tokens, {machine['dtype']}, {machine['threads']} "
        f"threads of {machine['gpu'] or machine['processor']}, vLLM {machine['vllm']} ({kind}), torch "
        f"{machine['torch']}, transformers {machine['transformers']}."
    )
    return f"{said}\n\n{markdown_table(HEADER, rows)}"


if __name__ == "__main__":
    main()
