"""A checkpoint to a directory of ONNX graphs with all that a client needs beside them; whole or not at all."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx_ir

from ..checkpoints.opening import InputError, open_model, open_processor
from ..checkpoints.written_aside import check_is_new, written_aside
from ..exported.manifest import DECODER, IMAGE_ENCODER, MANIFEST, VERSION
from ..exported.onnx_flashsloth import OnnxFlashSloth
from ..model.modeling_flashsloth import FlashSlothForConditionalGeneration
from .checking import check_answers
from .precisions import PRECISIONS
from .quiet import quietly
from .tracing import trace_decoder, trace_image_encoder

# Beyond this protobuf holds no graph, and its weights get a file of their own.
LARGEST_FILE = 2**31 - 2**20


def export_checkpoint(
    checkpoint: str,
    output: Path,
    *,
    precision: str = "fp32",
    visual_tokens: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict:
    """
    Exports a checkpoint, and holds its answers against those of PyTorch.

    Args:
        checkpoint (`str`): a directory.
        output (`Path`): must not exist.
        precision (`str`): one of `PRECISIONS`.
        visual_tokens (`int`, *optional*): of a view; by default as the model says.
        say (`Callable`): is told what is being done.

    Returns:
        the manifest.

    Raises:
        InputError: for a precision or number of tokens that there is none of, or if answers differ.
        FileExistsError: if `output` exists.
    """
    if precision not in PRECISIONS:
        raise InputError(f"there is no precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    check_is_new(output)
    model, processor = open_model(checkpoint, dtype="float32"), open_processor(checkpoint)
    windows = model.config.windows
    window = windows.get(visual_tokens or model.config.tokens_per_view)
    if window is None:
        raise InputError(
            f"a view cannot become {visual_tokens} visual tokens; the model's patches make "
            f"{', '.join(map(str, sorted(windows)))}"
        )
    processor.pooling_window = list(window)
    with written_aside(output, 2 * sum(value.nbytes for value in model.state_dict().values())) as directory:
        manifest = write_graphs(model, window, directory, precision, say)
        processor.save_pretrained(directory)
        say("comparing answers with PyTorch")
        check_answers(model, OnnxFlashSloth.from_pretrained(directory), processor, precision, say)
    return manifest


def write_graphs(
    model: FlashSlothForConditionalGeneration,
    window: tuple[int, int],
    directory: Path,
    precision: str = "fp32",
    say: Callable[[str], None] = lambda text: None,
) -> dict:
    """
    Writes all but the processor.

    Args:
        model ([`FlashSlothForConditionalGeneration`]): in evaluation mode and float32, on the CPU.
        window (`tuple[int, int]`): in which images are pooled.
        directory (`Path`): exists.
        precision (`str`): one of `PRECISIONS`.
        say (`Callable`): is told what is being done.

    Returns:
        the manifest.
    """
    graphs = {IMAGE_ENCODER: lambda: trace_image_encoder(model, window), DECODER: lambda: trace_decoder(model)}
    for name, trace in graphs.items():
        say(f"tracing {name}")
        _save(trace(), directory / name)
        if convert := PRECISIONS[precision]:
            say(f"converting {name} to {precision}")
            with quietly():
                convert(directory / name)
    model.config.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)
    files = sorted(file.name for file in directory.glob("*.onnx*"))
    manifest = {
        "version": VERSION,
        "precision": precision,
        "pooling_window": list(window),
        "explains": True,
        "files": files,
    }
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _save(graph: onnx_ir.Model, path: Path) -> None:
    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value)
    onnx_ir.save(graph, path, external_data=f"{path.name}.data" if size > LARGEST_FILE else None)
