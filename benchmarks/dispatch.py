"""
What is left of FlashSloth's time where kernels take none: `python -m benchmarks.dispatch`.

Every layer of the real model, 32 numbers wide, on one thread: Python and torch's dispatch are all there is, as in eager
mode on a GPU that is faster than the host can feed it. FlashSloth and the floor take turns.
"""

import torch
from transformers import AutoModelForImageTextToText

from transformers_flashsloth import FlashSlothConfig

from .building import build
from .measure import Clock, summary
from .options import common_parser, settings_of
from .ours import Floor, ask_flashsloth, ask_floor
from .presets import flashsloth_config
from .report import markdown_table, publish, with_spread
from .sampling import TokenClock, generate
from .subjects import Subject, photo

HEADER = ["", "prefill, ms", "over the floor", "a decoding step, ms", "over the floor"]
NARROW = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
# 42 pixels are 3 x 3 patches, which one window pools.
IMAGE_SIZE = 42


def main(arguments: list[str] | None = None) -> None:
    parser = common_parser(__doc__, "benchmarks/results/dispatch")
    parser.add_argument("--repeats", type=int, default=100, help="samples (default %(default)s)")
    options = parser.parse_args(arguments)
    settings = settings_of(options)
    torch.set_num_threads(settings.threads or 1)
    result = measure(settings, options.repeats)
    publish(options, "dispatch", result, table(result))


def narrow_config(tiny: bool) -> FlashSlothConfig:
    """The released model's config with all its layers (a tiny one: few), each next to nothing wide."""
    config = flashsloth_config("ours", tiny)
    text = config.text_config.to_dict() | NARROW | {"num_key_value_heads": 2, "vocab_size": 51200}
    vision = config.vision_config.to_dict() | NARROW | {"image_size": IMAGE_SIZE}
    return FlashSlothConfig(
        text_config=text,
        vision_config=vision,
        embq_layer=config.embq_layer,
        embq_hidden_size=32,
        embq_num_heads=2,
    )


@torch.inference_mode()
def measure(settings, repeats: int) -> dict[str, dict]:
    """Seconds of a prefill and of a decoding step of each, and the ratios of neighbouring samples."""
    device, dtype = settings.device, getattr(torch, settings.dtype)
    config = narrow_config(settings.tiny)
    model = build(lambda: AutoModelForImageTextToText.from_config(config, dtype=dtype), device)
    asked = {
        "FlashSloth": ask_flashsloth(model, device, dtype, hd=False),
        "floor": ask_floor(Floor(model), device, dtype, hd=False),
    }
    clock, image = Clock(device), photo()

    def sample(subject: Subject) -> dict[str, float]:
        inputs, tokens = subject.inputs(image), TokenClock(clock, subject.stages)
        clock.wait()
        begin = clock.mark()
        generate(subject, inputs, 1 + settings.new_tokens, tokens)
        step = tokens.step()["wall"]
        return {"prefill": clock.between(begin, tokens.marks[0])["wall"], "step": step}

    for subject in asked.values():
        subject.stages.remove()
        sample(subject)
    rounds = [{name: sample(subject) for name, subject in asked.items()} for _ in range(repeats)]
    return {
        name: {part: summary([found[name][part] for found in rounds]) for part in ("prefill", "step")}
        | {
            f"{part}_over_floor": summary([found[name][part] / found["floor"][part] for found in rounds])
            for part in ("prefill", "step")
        }
        for name in asked
    }


def table(result: dict[str, dict]) -> str:
    rows = []
    for name, found in result.items():
        cells = [name]
        for part in ("prefill", "step"):
            over = "" if name == "floor" else with_spread(found[f"{part}_over_floor"])
            cells += [with_spread(found[part], scale=1000), over]
        rows.append(cells)
    return markdown_table(HEADER, rows)


if __name__ == "__main__":
    main()
