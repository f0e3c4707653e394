"""Opens an exported checkpoint for a user, with one sentence where that cannot be."""

from ..checkpoints.opening import InputError
from ..model.configuration_flashsloth import FlashSlothConfig
from .manifest import exported_windows, read_manifest
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


def check_visual_tokens(directory: str, visual_tokens: int) -> None:
    """Raises InputError for a number of tokens of a view that is none of those that it was exported for."""
    windows = exported_windows(read_manifest(directory), FlashSlothConfig.from_pretrained(directory))
    if visual_tokens not in windows:
        raise InputError(
            f"{directory!r} was exported for {', '.join(map(str, windows))} visual tokens a view, not {visual_tokens}: "
            "choose among these, or export it again with `--visual-tokens`"
        )
