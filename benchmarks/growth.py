"""
How FlashSloth's cost grows: `python -m benchmarks.growth`.

Expected of N images of V views, a text of L positions, B rows: vision, SAP and EmbQ in N x V; the decoder in
B (N V T + L), with the square of it only in attention, which is small at these lengths; memory in N x V and B; new
tokens in their number. Each curve gets a line's slope and the exponent k of growth ~ (x - x0)^k, expected near 1.
"""

from collections.abc import Callable

import torch

from .measure import Clock, FlopCounter, PeakMemory, slope, summary
from .options import common_parser, settings_of
from .ours import TOKENS_AFTER_QUERIES, TOKENS_BEFORE_IMAGE, ask_flashsloth, build_flashsloth
from .report import markdown_table, publish
from .sampling import TokenClock, generate
from .stages import Stages
from .subjects import QUESTION_TOKENS, Subject, photo, text_ids

CURVES = {
    "images": [1, 2, 4, 8, 16],
    "views": [1, 2, 3, 5, 8],
    "question": [16, 64, 256, 1024],
    "rows": [1, 2, 4, 8],
}
NEW_TOKENS = [1, 8, 16, 32, 64]
POINTS = ["", "TFLOP", "TTFT, s", "peak memory, GB", "SAP, % of operations", "EmbQ, % of operations"]
FITS = ["of", "TFLOP each", "exponent", "TTFT, ms each", "exponent", "memory, MB each"]


def main(arguments: list[str] | None = None) -> None:
    parser = common_parser(__doc__, "benchmarks/results/growth")
    parser.add_argument("--repeats", type=int, default=3, help="samples of a point (default %(default)s)")
    parser.add_argument("--points", type=int, default=5, help="points of a curve at most (default %(default)s)")
    options = parser.parse_args(arguments)
    settings = settings_of(options)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    result = measure(settings, options.repeats, options.points)
    publish(options, "growth", result, report(result))


@torch.inference_mode()
def measure(settings, repeats: int, num_points: int) -> dict:
    """For each curve its points, and the fits of time and memory."""
    device, dtype = settings.device, getattr(torch, settings.dtype)
    model = build_flashsloth("ours", device, dtype, settings.tiny)
    subject = ask_flashsloth(model, device, dtype, hd=False)
    subject.stages.remove()
    core = model.model
    stages = Stages({"sap": [core.multi_modal_projector.pooling], "embq": [core.embq]})
    view = subject.inputs(photo())["pixel_values"]  # (1, 1, 3, H, W)
    generate(subject, prompt(subject, view), 1)

    curves = {}
    for name, values in CURVES.items():
        inputs = {value: prompt(subject, view, **{name: value}) for value in values[:num_points]}
        curves[name] = _curve(subject, stages, settings.device, inputs, repeats)
    tokens = TokenClock(Clock(device), subject.stages)
    generate(subject, prompt(subject, view), NEW_TOKENS[:num_points][-1], tokens)
    tokens.clock.wait()
    taken = [tokens.clock.between(tokens.marks[0], tokens.marks[n - 1])["wall"] for n in NEW_TOKENS[:num_points]]
    return {"curves": curves, "new_tokens": {"values": NEW_TOKENS[:num_points], "seconds": taken,
                                             "fit": slope(NEW_TOKENS[:num_points], taken)}}  # fmt: skip


def _curve(subject: Subject, stages: Stages, device: str, inputs: dict[int, dict], repeats: int) -> dict:
    clock, memory = Clock(device), PeakMemory(device)
    flops, shares, seconds, peaks = {}, {}, {value: [] for value in inputs}, {}
    for value, given in inputs.items():
        with FlopCounter() as counter:
            stages.begin(counter.get_total_flops)
            generate(subject, given, 1)
            stages.end()
        parts = stages.totals(lambda start, end: {"flops": end - start})
        flops[value] = counter.get_total_flops()
        shares[value] = {part: found.get("flops", 0) / flops[value] for part, found in parts.items()}
    for _ in range(repeats):
        for value, given in inputs.items():
            memory.reset()
            seconds[value].append(clock.time(_prefill(subject, given))["wall"])
            peaks[value] = max(peaks.get(value, 0), memory.read())
    times = {value: summary(found) for value, found in seconds.items()}
    values = list(inputs)
    return {
        "values": values,
        "flops": list(flops.values()),
        "seconds": list(times.values()),
        "peak_bytes": list(peaks.values()),
        "shares": list(shares.values()),
        "flops_fit": slope(values, [float(found) for found in flops.values()]),
        "fit": slope(values, [found["median"] for found in times.values()]),
        "memory_fit": slope(values, [float(found) for found in peaks.values()]),
    }


def _prefill(subject: Subject, inputs: dict) -> Callable[[], object]:
    return lambda: generate(subject, inputs, 1)


def prompt(
    subject: Subject,
    view: torch.Tensor,
    images: int = 1,
    views: int = 1,
    question: int = QUESTION_TOKENS,
    rows: int = 1,
) -> dict[str, torch.Tensor]:
    """Equal rows with so many images of so many views, `view` `(1, 1, 3, H, W)` each, and one question."""
    config = subject.model.config
    image = [config.image_token_id] * (views * config.tokens_per_view) + text_ids(1)
    ids = text_ids(TOKENS_BEFORE_IMAGE) + images * image + text_ids(question)
    ids += [config.query_token_id] * config.num_query_tokens + text_ids(TOKENS_AFTER_QUERIES)
    return {
        "input_ids": torch.tensor([ids] * rows, device=subject.device),
        "pixel_values": view.expand(rows * images, views, *view.shape[2:]),
    }


def report(result: dict) -> str:
    """A table of points for each curve, and one of the fits."""
    parts, fits = [], []
    for name, curve in result["curves"].items():
        lines = [
            [
                f"{name} {value}",
                f"{flops / 1e12:.3f}",
                f"{time['median']:.3f}",
                f"{peak / 1e9:.2f}",
                *(f"{100 * s:.2f}" for s in share.values()),
            ]
            for value, flops, time, peak, share in zip(
                curve["values"], curve["flops"], curve["seconds"], curve["peak_bytes"], curve["shares"], strict=True
            )
        ]
        parts.append(markdown_table(POINTS, lines))
        flops, time, memory = curve["flops_fit"], curve["fit"], curve["memory_fit"]
        work = [f"{flops['per_unit'] / 1e12:.4f}", f"{flops['exponent']:.2f}"]
        times = [f"{1000 * time['per_unit']:.1f}", f"{time['exponent']:.2f}"]
        fits.append([name, *work, *times, f"{memory['per_unit'] / 1e6:.1f}"])
    fit = result["new_tokens"]["fit"]
    fits.append(["new tokens", "", "", f"{1000 * fit['per_unit']:.1f}", f"{fit['exponent']:.2f}", ""])
    return "\n\n".join([*parts, markdown_table(FITS, fits)])


if __name__ == "__main__":
    main()
