"""Opens an exported checkpoint for a user, with one sentence where that cannot be."""

from ..checkpoints.opening import InputError
from .onnx_flashsloth import OnnxFlashSloth


def open_exported(directory: str) -> OnnxFlashSloth:
    """The exported model of a directory. Raises InputError if it cannot be opened."""
    try:
        return OnnxFlashSloth.from_pretrained(directory)
    except Exception as error:  # a file can be broken in any way
        raise InputError(f"the exported model {directory!r} cannot be opened: {error}") from error
