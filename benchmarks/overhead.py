"""
What FlashSloth does that is no matrix product: `python -m benchmarks.overhead`.

A profile of one prefill, ours and the floor's: how many operations, which share of the time goes to products,
convolutions and attention, and what takes the rest. Then the operations of a decoding step beside the decoder's alone.
"""

from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from .options import common_parser, settings_of
from .ours import Floor, ask_flashsloth, ask_floor, build_flashsloth
from .report import markdown_table, publish
from .sampling import generate
from .subjects import Subject, photo

PRODUCTS = ("addmm", "::mm", "bmm", "baddbmm", "matmul", "linear", "conv", "attention", "gemm")
HEADER = ["", "operations of a prefill", "products, % of its time", "operations of a decoding step", "most of the rest"]
SHOWN = 4


class Operations(TorchDispatchMode):
    """Counts what torch dispatches, views included, but for calls that find nothing to do and return what they got."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.counts[str(function)] += not (args and result is args[0])
        return result


def main(arguments: list[str] | None = None) -> None:
    parser = common_parser(__doc__, "benchmarks/results/overhead")
    parser.add_argument("--hd", action="store_true", help="five views an image instead of one")
    options = parser.parse_args(arguments)
    settings = settings_of(options)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device, dtype = settings.device, getattr(torch, settings.dtype)
    model = build_flashsloth("ours", device, dtype, settings.tiny)
    subjects = {"ours": ask_flashsloth(model, device, dtype, options.hd)}
    subjects["floor"] = ask_floor(Floor(model), device, dtype, options.hd)
    result = {name: measure(subject) for name, subject in subjects.items()}
    publish(options, "overhead", result, table(result))


@torch.inference_mode()
def operations(subject: Subject, inputs: dict, new_tokens: int) -> Counter:
    """How often each operation runs while so many tokens are generated."""
    with Operations() as counted:
        generate(subject, inputs, new_tokens)
    return counted.counts


@torch.inference_mode()
def measure(subject: Subject) -> dict:
    """Counts of operations, and microseconds of a prefill by operation, those that run longest first."""
    inputs = subject.inputs(photo())
    counts = {tokens: operations(subject, inputs, tokens) for tokens in (1, 2, 3)}
    on_cuda = torch.device(subject.device).type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda
    with profile(activities=activities) as profiled:
        generate(subject, inputs, 1)
    events = profiled.key_averages()
    times = {e.key: e.self_device_time_total if on_cuda else e.self_cpu_time_total for e in events}
    return {
        "prefill_operations": counts[1].total(),
        "step_operations": (counts[3] - counts[2]).total(),
        "microseconds": dict(sorted(times.items(), key=lambda item: -item[1])),
    }


def table(result: dict) -> str:
    rows = []
    for name, found in result.items():
        times, total = found["microseconds"], sum(found["microseconds"].values())
        rest = {key: value for key, value in times.items() if not any(word in key for word in PRODUCTS)}
        share = f"{100 * (1 - sum(rest.values()) / total):.1f}"
        most = ", ".join(f"{key.removeprefix('aten::')} {100 * rest[key] / total:.1f} %" for key in list(rest)[:SHOWN])
        rows.append([name, str(found["prefill_operations"]), share, str(found["step_operations"]), most])
    return markdown_table(HEADER, rows)


if __name__ == "__main__":
    main()
