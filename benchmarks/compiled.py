"""
FlashSloth under `torch.compile` beside the floor in eager mode: `python -m benchmarks.compiled`.

The floor, FlashSloth, and both compiled and with a static cache take turns in one process, on one set of weights. Each
ratio is to the floor's sample of the same round. On CUDA transformers decodes a static cache in CUDA graphs.
"""

from functools import partial

import torch
from transformers import AutoModelForImageTextToText

from .building import share
from .measure import Clock, summary
from .options import common_parser, settings_of
from .ours import Floor, ask_flashsloth, ask_floor, build_flashsloth
from .report import markdown_table, publish, with_spread
from .sampling import TokenClock, generate
from .subjects import Subject, photo

FLOOR = "floor"
HEADER = ["", "TTFT, s", "TTFT / floor", "decode, tokens/s", "decode / floor", "compiling, s"]


def main(arguments: list[str] | None = None) -> None:
    parser = common_parser(__doc__, "benchmarks/results/compiled")
    parser.add_argument("--repeats", type=int, default=7, help="samples (default %(default)s)")
    parser.add_argument("--hd", action="store_true", help="five views an image instead of one")
    options = parser.parse_args(arguments)
    settings = settings_of(options)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    result = measure(settings, options.repeats, options.hd)
    name = f"compiled{'-hd' * options.hd}"
    publish(options, name, result, table(result))


def subjects(settings, hd: bool) -> dict[str, Subject]:
    """The four that are measured; all share the weights of the first."""
    device, dtype = settings.device, getattr(torch, settings.dtype)
    model = build_flashsloth("ours", device, dtype, settings.tiny)
    with torch.device("meta"):
        twin = AutoModelForImageTextToText.from_config(model.config, dtype=dtype)
    twin, floor, floor_twin = share(twin, model), Floor(model), Floor(model)
    ask_ours, ask_parts = (partial(ask, device=device, dtype=dtype, hd=hd) for ask in (ask_flashsloth, ask_floor))
    found = {
        FLOOR: ask_parts(floor),
        "FlashSloth": ask_ours(model),
        "floor, compiled": ask_parts(floor_twin),
        "FlashSloth, compiled": ask_ours(twin),
    }
    for subject in found.values():
        subject.stages.remove()
    twin.compile()
    floor_twin.decoder.compile()
    floor_twin.visual_tokens = torch.compile(floor_twin.visual_tokens)
    return found


@torch.inference_mode()
def measure(settings, repeats: int, hd: bool) -> dict[str, dict]:
    """Seconds to the first token and of a decoding step of each, with the ratios to the floor's."""
    clock, image, asked = Clock(settings.device), photo(), subjects(settings, hd)

    def sample(name: str) -> dict[str, float]:
        subject = asked[name]
        tokens = TokenClock(clock, subject.stages)
        clock.wait()
        begin = clock.mark()
        static = name.endswith("compiled")
        generate(subject, subject.inputs(image), 1 + settings.new_tokens, tokens, static=static)
        step = tokens.step()["wall"]
        return {"ttft": clock.between(begin, tokens.marks[0])["wall"], "decode": step}

    # Twice, as a graph that met a second length may be compiled anew.
    warm_up = {name: [clock.time(lambda name=name: sample(name))["wall"] for _ in range(2)] for name in asked}
    rounds = [{name: sample(name) for name in asked} for _ in range(repeats)]
    return {
        name: {
            "ttft": summary([found[name]["ttft"] for found in rounds]),
            "rate": summary([1 / found[name]["decode"] for found in rounds]),
            "ttft_over_floor": summary([found[name]["ttft"] / found[FLOOR]["ttft"] for found in rounds]),
            "decode_over_floor": summary([found[FLOOR]["decode"] / found[name]["decode"] for found in rounds]),
            "warm_up_seconds": sum(warm_up[name]),
        }
        for name in asked
    }


def table(result: dict[str, dict]) -> str:
    lines = []
    for name, found in result.items():
        ratios = [with_spread(found[ratio], digits=3) for ratio in ("ttft_over_floor", "decode_over_floor")]
        ttft_over_floor, decode_over_floor = ratios if name != FLOOR else ("", "")
        compiling = f"{found['warm_up_seconds']:.0f}" if name.endswith("compiled") else ""
        lines.append([
            name, with_spread(found["ttft"]), ttft_over_floor, with_spread(found["rate"]), decode_over_floor, compiling
        ])  # fmt: skip
    return markdown_table(HEADER, lines)


if __name__ == "__main__":
    main()
