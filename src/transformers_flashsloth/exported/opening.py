"""Opens an exported checkpoint for a user, with one sentence where that cannot be."""

from ..checkpoints.opening import InputError
from .manifest import read_manifest
from .onnx_flashsloth import OnnxFlashSloth


def open_exported(directory: str) -> OnnxFlashSloth:
    """The exported model of a directory. Raises InputError if it cannot be opened."""
    try:
        return OnnxFlashSloth.from_pretrained(directory)
    except Exception as error:  # a file can be broken in any way
        raise InputError(f"the exported model {directory!r} cannot be opened: {error}") from error


def check_options(directory: str, options: dict[str, str | None]) -> None:
    """Raises InputError for an option that says where or in what a model of PyTorch computes."""
    if given := [name for name, value in options.items() if value is not None]:
        precision = read_manifest(directory)["precision"]
        raise InputError(f"{directory!r} was exported in {precision}, for ONNX Runtime: leave `{given[0]}` out")


def check_window(directory: str, window: list[int]) -> None:
    """Raises InputError for another window than the one that images are pooled in."""
    exported = read_manifest(directory)["pooling_window"]
    if window != exported:
        raise InputError(
            f"{directory!r} was exported for windows of {exported[0]} x {exported[1]} patches, not {window[0]} x "
            f"{window[1]}: export it again with `--visual-tokens`"
        )
