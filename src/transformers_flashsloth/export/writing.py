"""A checkpoint to a directory of ONNX graphs with all that a client needs beside them; whole or not at all."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx_ir

from ..checkpoints.opening import InputError, open_model, open_processor
from ..checkpoints.written_aside import check_is_new, written_aside
from ..exported.manifest import DECODER, IMAGE_ENCODER, MANIFEST, VERSION
from ..exported.onnx_flashsloth import OnnxFlashSloth
from ..model.configuration_flashsloth import FlashSlothConfig
from ..model.modeling_flashsloth import FlashSlothForConditionalGeneration
from ..model.vision_towers import as_pair
from .checking import check_answers
from .precisions import LARGEST_FILE, PRECISIONS, data_of
from .quiet import quietly
from .tracing import trace_decoder, trace_image_encoder


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
        visual_tokens (`int`, *optional*): of a view, the only number that the export then knows; by default the model's
            own and those of the windows that its config lists.
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
    windows = _windows(model.config, visual_tokens)
    processor.pooling_window = list(next(iter(windows.values())))
    with written_aside(output, 2 * sum(value.nbytes for value in model.state_dict().values())) as directory:
        manifest = write_graphs(model, windows, directory, precision, say)
        processor.save_pretrained(directory)
        say("comparing answers with PyTorch")
        check_answers(model, OnnxFlashSloth.from_pretrained(directory), processor, precision, say)
    return manifest


def _windows(config: FlashSlothConfig, visual_tokens: int | None) -> dict[int, tuple[int, int]]:
    """The windows to export by the tokens that they leave of a view, what a prompt has by default first."""
    known = config.windows
    if visual_tokens is None:
        listed = [as_pair(window) for window in config.pooling_windows or []]
        others = {tokens: window for tokens, window in sorted(known.items()) if window in listed}
        return {config.tokens_per_view: config.window} | others
    if visual_tokens not in known:
        raise InputError(
            f"a view cannot become {visual_tokens} visual tokens; the model's patches make "
            f"{', '.join(map(str, sorted(known)))}"
        )
    return {visual_tokens: known[visual_tokens]}


def write_graphs(
    model: FlashSlothForConditionalGeneration,
    windows: dict[int, tuple[int, int]],
    directory: Path,
    precision: str = "fp32",
    say: Callable[[str], None] = lambda text: None,
) -> dict:
    """
    Writes all but the processor.

    Args:
        model ([`FlashSlothForConditionalGeneration`]): in evaluation mode and float32, on the CPU.
        windows (`dict[int, tuple[int, int]]`): in which images are pooled, by the tokens that they leave of a view, the
            default first.
        directory (`Path`): exists.
        precision (`str`): one of `PRECISIONS`.
        say (`Callable`): is told what is being done.

    Returns:
        the manifest.
    """
    graphs = {IMAGE_ENCODER: lambda: trace_image_encoder(model, windows), DECODER: lambda: trace_decoder(model)}
    for name, trace in graphs.items():
        say(f"tracing {name}")
        _save(trace(), directory / name)
    model.config.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)
    return convert_graphs(directory, windows, precision, say)


def convert_graphs(
    directory: Path,
    windows: dict[int, tuple[int, int]],
    precision: str,
    say: Callable[[str], None] = lambda text: None,
) -> dict:
    """
    Gives graphs that stand in a directory in float32 another precision, and writes the manifest.

    Args:
        directory (`Path`): has both graphs.
        windows (`dict[int, tuple[int, int]]`): in which images are pooled there, as in `write_graphs`.
        precision (`str`): one of `PRECISIONS`.
        say (`Callable`): is told what is being done.

    Returns:
        the manifest.
    """
    if convert := PRECISIONS[precision]:
        for name in (IMAGE_ENCODER, DECODER):
            say(f"converting {name} to {precision}")
            with quietly():
                convert(directory / name)
    files = sorted(file.name for file in directory.glob("*.onnx*"))
    manifest = {
        "version": VERSION if len(windows) > 1 else 1,
        "precision": precision,
        "pooling_window": list(next(iter(windows.values()))),
        "windows": [{"visual_tokens": tokens, "window": list(window)} for tokens, window in windows.items()],
        "explains": True,
        "files": files,
    }
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _save(graph: onnx_ir.Model, path: Path) -> None:
    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value)
    onnx_ir.save(graph, path, external_data=data_of(path).name if size > LARGEST_FILE else None)
