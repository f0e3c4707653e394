"""
The decoder in 8 and in 4 bits, weight-only, through transformers' quantisers: `python -m benchmarks.quantised`.

Only the decoder's layers are quantised; vision, projector, EmbQ and language head stay as they are. Where a scheme does
not run on this machine, its row has the library's own error. `--accuracy N` asks the shipped default model N
questions of each family of its test set (`conversion.default_model.evaluate`) with each scheme.
"""

import gc
import tempfile
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, QuantoConfig, TorchAoConfig

from .measure import Clock, summary
from .options import common_parser, settings_of
from .ours import ask_flashsloth, build_flashsloth
from .report import markdown_table, publish, with_spread
from .sampling import TokenClock, generate
from .subjects import photo

PLAIN = "not quantised"
HEADER = [
    "decoder",
    "decode, tokens/s",
    "over not quantised",
    "decoder's bytes over not quantised",
    "accuracy",
    "error",
]
GROUP = 32


def schemes(device: str) -> dict[str, Callable]:
    """Names and makers of transformers' configs; torchao's int4 has another packing on each kind of device."""
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

    if torch.device(device).type == "cpu":
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        int4 = partial(PrototypeInt4WeightOnlyConfig, group_size=GROUP)
    else:
        int4 = partial(Int4WeightOnlyConfig, group_size=GROUP, int4_packing_format="tile_packed_to_4d")
    return {
        "int8, quanto": lambda: QuantoConfig(weights="int8"),
        "int8, torchao": lambda: TorchAoConfig(Int8WeightOnlyConfig()),
        "int4, torchao": lambda: TorchAoConfig(int4()),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = common_parser(__doc__, "benchmarks/results/quantised")
    parser.add_argument("--repeats", type=int, default=5, help="samples (default %(default)s)")
    parser.add_argument("--accuracy", type=int, default=0, help="questions of each family for the shipped default")
    options = parser.parse_args(arguments)
    settings = settings_of(options)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    try:
        makers = schemes(settings.device)
    except ImportError as error:
        raise SystemExit(f"torchao is missing: pip install torchao ({error}).") from error
    result = measure(settings, makers, options.repeats)
    if options.accuracy:
        for name, found in result.items():
            if "error" not in found:
                found["accuracy"] = accuracy(makers.get(name), settings.device, options.accuracy)
    publish(options, "quantised", result, table(result))


@torch.inference_mode()
def measure(settings, makers: dict[str, Callable], repeats: int) -> dict:
    """Speed and bytes of each scheme, each sample next to one of the model that is not quantised."""
    dtype = getattr(torch, settings.dtype)
    plain = build_flashsloth("ours", settings.device, dtype, settings.tiny)
    subject = ask_flashsloth(plain, settings.device, dtype, hd=False)
    inputs, clock = subject.inputs(photo()), Clock(settings.device)
    decoder_bytes = stored_bytes(plain.model.language_model.layers)
    result = {PLAIN: {"bytes_ratio": 1.0, "rate": None}}

    def rate(of) -> float:
        tokens = TokenClock(clock, of.stages)
        generate(of, inputs, 1 + settings.new_tokens, tokens)
        return 1 / tokens.step()["wall"]

    with tempfile.TemporaryDirectory() as directory:
        plain.save_pretrained(directory)
        rates = [rate(subject)]
        for name, make in makers.items():
            try:
                quantised = load(directory, make, settings.device, dtype)
                other = ask_flashsloth(quantised, settings.device, dtype, hd=False)
                rate(other)
                pairs = [(rate(other), rate(subject)) for _ in range(repeats)]
            except (RuntimeError, ImportError, NotImplementedError, ValueError, AssertionError) as error:
                result[name] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
                continue
            rates += [plain_rate for _, plain_rate in pairs]
            result[name] = {
                "rate": summary([own for own, _ in pairs]),
                "ratio": summary([own / plain_rate for own, plain_rate in pairs]),
                "bytes_ratio": stored_bytes(quantised.model.language_model.layers) / decoder_bytes,
            }
            del quantised, other
            gc.collect()  # before the next one is in memory
    result[PLAIN]["rate"] = summary(rates)
    return result


def load(directory: str, make: Callable, device: str, dtype: torch.dtype):
    """
    A checkpoint with its decoder quantised as the config that `make` makes says.

    Raises:
        Whatever the library raises where it does not run; torchao's is met on one linear, as transformers tells it in
        a long report.
    """
    config = make()
    if isinstance(config, TorchAoConfig):
        from torchao.quantization import quantize_

        probe = nn.Linear(128, 128, device=device, dtype=dtype)
        quantize_(probe, config.quant_type)
        probe(torch.zeros(1, 128, device=device, dtype=dtype))
    placing = {} if device == "cpu" else {"device_map": device}  # a device map asks for accelerate
    return AutoModelForImageTextToText.from_pretrained(
        directory, dtype=dtype, quantization_config=config, **placing
    ).eval()


def stored_bytes(module: nn.Module) -> int:
    """Bytes that the parameters take, a quantised one's numbers and scales counted as they are stored."""

    def of(tensor: torch.Tensor) -> int:
        if not hasattr(tensor, "__tensor_flatten__"):
            return tensor.numel() * tensor.element_size()
        names, _ = tensor.__tensor_flatten__()
        return sum(of(getattr(tensor, name)) for name in names)

    return sum(of(parameter) for parameter in module.parameters())


def accuracy(make: Callable | None, device: str, count: int) -> float:
    """The share of `count` questions of each family that the shipped default answers right."""
    from conversion.default_model.evaluate import FAMILIES, TRAINED_STYLES, Answerer, held_out
    from conversion.default_model.train import DEFAULT_CHECKPOINT

    ask = Answerer(DEFAULT_CHECKPOINT, torch.device(device))
    if make is not None:
        ask.model = load(str(DEFAULT_CHECKPOINT), make, device, torch.float32)
    items = [item for family in FAMILIES for item in held_out(family, TRAINED_STYLES, count)]
    right = [answer == item.turn.answer for answer, item in zip(ask(items), items, strict=True)]
    return sum(right) / len(right)


def table(result: dict) -> str:
    rows = []
    for name, found in result.items():
        if "error" in found:
            rows.append([name, "", "", "", "", found["error"]])
            continue
        share = f"{found['accuracy']:.1%}" if "accuracy" in found else ""
        ratio = f"{found['bytes_ratio']:.2f}"
        rows.append([name, with_spread(found["rate"]), with_spread(found.get("ratio")), ratio, share, ""])
    return markdown_table(HEADER, rows)


if __name__ == "__main__":
    main()
