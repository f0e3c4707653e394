"""
What is to hold on a GPU, checked on the model in the package without pytest: `python -m benchmarks.gpu_checks NAME`.

Each check prints a table; a case that raises or is wrong fails the check and lets its other cases run. The batch that
is asked has rows with none to two images, of different lengths and padded on the left, so that EmbQ counts.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import NamedTuple

import torch

# Logits in half precision may be off by so much of the largest one; rounding alone is 2**-9 of bfloat16's.
HALF_TOLERANCE = 2**-6
ROWS = [
    (["corners.png"], "What is in the bottom left corner?"),
    ([], "Hello"),
    (["fox.png", "zoo.png"], "Is there a fox?"),
    (["shapes.png"], "What color is the triangle?"),
]
LEFT_OUT = 77  # exit status of a check that cannot be made here
GREEDY = {"max_new_tokens": 6, "do_sample": False}

Case = tuple[str, Callable[[], str]]


class Check(NamedTuple):
    """What gives the cases on a device, named, each a call that returns what it found; and packages that it needs."""

    cases: Callable[[str], Iterator[Case]]
    needs: tuple[str, ...] = ()


def load(device: str, dtype: torch.dtype = torch.float32, **options):
    """The model in the package."""
    from transformers_flashsloth import FlashSlothForConditionalGeneration
    from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT

    options = {"device_map": device} | options if "quantization_config" in options else options
    model = FlashSlothForConditionalGeneration.from_pretrained(DEFAULT_CHECKPOINT, dtype=dtype, **options).eval()
    return model if "quantization_config" in options else model.to(device)


def batch(device: str) -> dict[str, torch.Tensor]:
    """`ROWS` as the processor makes them, padded on the left."""
    from transformers_flashsloth import FlashSlothProcessor
    from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT

    processor, examples = FlashSlothProcessor.from_pretrained(DEFAULT_CHECKPOINT), files("transformers_flashsloth")
    chats = []
    for images, question in ROWS:
        shown = [{"type": "image", "path": str(examples / "examples" / name)} for name in images]
        chats.append([{"role": "user", "content": [*shown, {"type": "text", "text": question}]}])
    inputs = processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
    )
    return {name: value.to(device) for name, value in inputs.items()}


@torch.no_grad()
def logits(model, inputs: dict) -> torch.Tensor:
    """Of the last position of each row, float32 on the host."""
    return model(**inputs).logits[:, -1].float().cpu()


def answers(model, inputs: dict, **options) -> list[list[int]]:
    """Greedy answers of the rows."""
    return model.generate(**inputs, **GREEDY | options)[:, inputs["input_ids"].shape[1] :].tolist()


def near(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> str:
    """How far logits are off, in shares of the largest. Raises AssertionError beyond the tolerance or if not finite."""
    off = ((found - expected).abs().max() / expected.abs().max()).item()
    assert found.isfinite().all() and off <= tolerance, (
        f"logits are off by {off:.4f} of the largest, more than {tolerance:.4f}"
    )
    return f"logits off by {off:.4f} of the largest"


def same(found: list, expected: list) -> str:
    assert found == expected, f"answers differ: {found} for {expected}"
    return "same answers"


def attention(device: str) -> Iterator[Case]:
    inputs = batch(device)
    expected = logits(load(device, attn_implementation="eager"), inputs)
    for name in ("sdpa", "flex_attention"):
        yield name, lambda name=name: near(logits(load(device, attn_implementation=name), inputs), expected, 1e-3)


def flash_attention(device: str) -> Iterator[Case]:
    from transformers.utils import is_flash_attn_2_available, is_kernels_available

    if not (is_flash_attn_2_available() or is_kernels_available()):
        leave_out("Neither flash-attn nor kernels is installed, or no device for them is here.")
    inputs = batch(device)
    sdpa = load(device, torch.bfloat16, attn_implementation="sdpa")
    flash = load(device, torch.bfloat16, attn_implementation="flash_attention_2")
    yield "logits", lambda: near(logits(flash, inputs), logits(sdpa, inputs), HALF_TOLERANCE)
    yield "answers", lambda: same(answers(flash, inputs), answers(sdpa, inputs))
    for name, hd in (("152 positions", False), ("476 positions", True)):
        yield name, lambda hd=hd: flash_speed(device, hd)


def flash_speed(device: str, hd: bool) -> str:
    """A prefill of the 3.2 B model with sdpa and with flash-attn 2, five of each in turns."""
    from .measure import Clock
    from .ours import ask_flashsloth, build_flashsloth
    from .sampling import generate
    from .subjects import photo

    model = build_flashsloth("ours", device, torch.bfloat16, tiny=device == "cpu")
    subject, clock = ask_flashsloth(model, device, torch.bfloat16, hd), Clock(device)
    subject.stages.remove()
    inputs, seconds = subject.inputs(photo()), {"sdpa": [], "flash_attention_2": []}
    for index in range(6):
        for name, taken in seconds.items():
            model.set_attn_implementation(name)
            took = clock.time(lambda: generate(subject, inputs, 1))["wall"]
            taken += [took] if index else []
    medians = {name: sorted(taken)[2] for name, taken in seconds.items()}
    return ", ".join(f"{name} {1e3 * taken:.1f} ms" for name, taken in medians.items())


def dtypes(device: str) -> Iterator[Case]:
    inputs = batch(device)
    expected = logits(load(device), inputs)
    for name in ("bfloat16", "float16"):
        yield name, lambda name=name: near(logits(load(device, getattr(torch, name)), inputs), expected, HALF_TOLERANCE)


def caches(device: str) -> Iterator[Case]:
    model, inputs = load(device), batch(device)
    expected = answers(model, inputs)
    names = ["dynamic", "static"] + ["offloaded", "offloaded_static"] * (device != "cpu")
    for name in names:
        options = {"cache_implementation": name, "disable_compile": True}
        yield name, lambda options=options: same(answers(model, inputs, **options), expected)


def quantised(device: str, configs: dict[str, Callable], tolerances: dict[str, float]) -> Iterator[Case]:
    inputs = batch(device)
    expected = logits(load(device), inputs)

    def off(name: str) -> str:
        model = load(device, torch.bfloat16, quantization_config=configs[name]())
        shift = ((logits(model, inputs) - expected).abs().mean() / expected.abs().mean()).item()
        assert shift <= tolerances[name], f"logits move by {shift:.3f} in the mean, more than {tolerances[name]}"
        return f"logits move by {shift:.3f} in the mean; {answers(model, inputs)[0]}"

    for name in configs:
        yield name, lambda name=name: off(name)


def bitsandbytes(device: str) -> Iterator[Case]:
    from transformers import BitsAndBytesConfig

    configs = {
        "nf4": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        "int8": lambda: BitsAndBytesConfig(load_in_8bit=True),
    }
    return quantised(device, configs, {"nf4": 0.1, "int8": 0.05})


def torchao(device: str) -> Iterator[Case]:
    from torchao.quantization import Float8WeightOnlyConfig, Int4WeightOnlyConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    def int4() -> TorchAoConfig:
        if device != "cpu":
            return TorchAoConfig(Int4WeightOnlyConfig(group_size=32, int4_packing_format="tile_packed_to_4d"))
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return TorchAoConfig(PrototypeInt4WeightOnlyConfig(group_size=32, set_inductor_config=False))

    configs = {
        "int4": int4,
        "int8": lambda: TorchAoConfig(Int8WeightOnlyConfig()),
        "fp8": lambda: TorchAoConfig(Float8WeightOnlyConfig()),
    }
    return quantised(device, configs, {"int4": 0.1, "int8": 0.03, "fp8": 0.05})


def compiled(device: str) -> Iterator[Case]:
    model, inputs = load(device), batch(device)
    expected = answers(model, inputs)

    def with_graphs() -> str:
        from transformers import CompileConfig

        on_cpu = {"backend": "aot_eager", "mode": None}
        config = CompileConfig(fullgraph=True, **on_cpu if device == "cpu" else {"mode": "reduce-overhead"})
        options = {"cache_implementation": "static", "compile_config": config}
        if device == "cpu":
            config._compile_all_devices = True  # upstream compiles on accelerators alone
        first, again = answers(model, inputs, **options), answers(model, inputs, **options)
        return same(first, expected) and same(again, expected)

    yield "decoding, with a static cache", with_graphs


def fsdp2(device: str) -> Iterator[Case]:
    """One step of training on one rank, whose parameters are sharded all the same, beside one without."""

    def step() -> str:
        import torch.distributed as dist
        from torch.distributed.fsdp import fully_shard

        inputs = batch(device)
        labels = inputs["input_ids"].clone()
        plain, model = load(device).train(), load(device).train()
        dist.init_process_group(
            "nccl" if device != "cpu" else "gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1
        )
        try:
            for layer in model.model.language_model.layers:
                fully_shard(layer)
            fully_shard(model)
            losses, norms = [], []
            for trained in (plain, model):
                for module in trained.modules():
                    if isinstance(module, torch.nn.Dropout):
                        module.p = 0.0
                loss = trained(**inputs, labels=labels).loss
                loss.backward()
                parameters = [parameter for parameter in trained.parameters() if parameter.grad is not None]
                norm = torch.nn.utils.clip_grad_norm_(parameters, 1e9)
                losses.append(loss.item())
                norms.append(getattr(norm, "full_tensor", lambda norm=norm: norm)().item())
        finally:
            dist.destroy_process_group()
        assert abs(losses[0] - losses[1]) < 1e-3 * abs(losses[0]), f"losses {losses}"
        assert abs(norms[0] - norms[1]) < 1e-2 * norms[0], f"norms of the gradient {norms}"
        return f"loss {losses[1]:.4f} and norm of the gradient {norms[1]:.4f} as without"

    yield "a step", step


CHECKS = {
    "attention": Check(attention),
    "flash-attn 2": Check(flash_attention),
    "half precision": Check(dtypes),
    "caches": Check(caches),
    "bitsandbytes": Check(bitsandbytes, ("bitsandbytes", "accelerate")),
    "torchao": Check(torchao, ("torchao", "accelerate")),
    "compiled": Check(compiled),
    "FSDP2": Check(fsdp2),
}


class LeftOut(Exception):
    """What is to be checked cannot be here."""


def leave_out(reason: str) -> None:
    raise LeftOut(reason)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(CHECKS))
    parser.add_argument("--device", default="cuda", help="default %(default)s")
    options = parser.parse_args(arguments)
    from .report import markdown_table

    torch.set_float32_matmul_precision("highest")
    rows, failed = [], 0
    try:
        for name, call in CHECKS[options.name].cases(options.device):
            start = time.monotonic()
            try:
                found = call()
            except Exception as error:
                failed += 1
                found = f"FAILED: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            rows.append([name, found, f"{time.monotonic() - start:.1f}"])
    except LeftOut as reason:
        print(f"Left out: {reason}")
        sys.exit(LEFT_OUT)
    print(markdown_table(["case", "found", "s"], rows))
    sys.exit(int(failed > 0 or not rows))


if __name__ == "__main__":
    main()
