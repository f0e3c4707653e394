"""Opens a checkpoint for a user: on a device that there is, whole, and with one sentence where that cannot be."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from transformers import BitsAndBytesConfig

from ..model.modeling_flashsloth import FlashSlothForConditionalGeneration
from ..model.processing_flashsloth import FlashSlothProcessor

DEFAULT_CHECKPOINT = str(files("transformers_flashsloth") / "default_checkpoint")
EXAMPLES = str(files("transformers_flashsloth") / "examples")  # pictures for the default checkpoint
LOAD_IN = ("4bit", "8bit")
CPU_BLOCK = 64  # weights that share a scale, of which bitsandbytes wants whole ones in a row
CHECKPOINT_FILES = ["*.json", "*.jinja", "*.txt", "*.safetensors", "*.onnx", "*.onnx.data"]


class InputError(Exception):
    """Something the user gave cannot be used; the message says what and why."""

    exit_code = 2


@contextmanager
def input_errors() -> Iterator[None]:
    """Turns what the package's functions raise for bad input into InputError."""
    try:
        yield
    except StrictDataclassError as error:  # which wraps the sentence
        raise InputError(error.__cause__) from error
    except (OSError, ValueError) as error:
        raise InputError(error) from error


def local_directory(checkpoint: str) -> str:
    """The directory of a checkpoint that is one, or was downloaded from the Hub. Raises InputError if there is none."""
    if Path(checkpoint).is_dir():
        return checkpoint
    try:
        return snapshot_download(checkpoint, allow_patterns=CHECKPOINT_FILES)
    except Exception as error:
        raise InputError(f"{checkpoint!r} is no directory, and not to be had from the Hub: {error}") from error


def usable_device(name: str | None) -> torch.device:
    """The device of this name; by default an accelerator if there is one. Raises InputError if it cannot be used."""
    if name is None:
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # each backend has its own kind
        raise InputError(f"the device {name!r} cannot be used: {error}") from error
    return device


def quantisation_config(load_in: str | None, device: torch.device) -> BitsAndBytesConfig | None:
    """
    How to load the decoder's layers in 4 or 8 bits, with bitsandbytes.

    Args:
        load_in (`str`, *optional*): `"4bit"` or `"8bit"`; `None` for the checkpoint's own numbers.
        device (`torch.device`): that computes.

    Raises:
        InputError: if a package is missing, or `load_in` is something else.
    """
    if load_in is None:
        return None
    if load_in not in LOAD_IN:
        raise InputError(f"weights are loaded in {' or '.join(LOAD_IN)}, not in {load_in!r}")
    for package in ("bitsandbytes", "accelerate"):
        if find_spec(package) is None:
            raise InputError(f"loading in {load_in} needs {package}: pip install {package}")
    if load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.float32 if device.type == "cpu" else torch.bfloat16
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def open_processor(checkpoint: str) -> FlashSlothProcessor:
    """The processor of a checkpoint. Raises InputError if it cannot be loaded."""
    return _load(FlashSlothProcessor, checkpoint)


def open_model(checkpoint: str, **options) -> FlashSlothForConditionalGeneration:
    """
    The model of a checkpoint, in evaluation mode.

    Args:
        checkpoint (`str`): directory or Hub id.
        options: those of `from_pretrained`.

    Raises:
        InputError: if it cannot be loaded, or lacks weights.
    """
    model, report = _load(FlashSlothForConditionalGeneration, checkpoint, output_loading_info=True, **options)
    if missing := sorted(report["missing_keys"]):
        raise InputError(f"the model {checkpoint!r} lacks {len(missing)} weights, such as {missing[0]!r}")
    _check_blocks(model)
    return model.eval()


def _check_blocks(model: FlashSlothForConditionalGeneration) -> None:
    """Raises InputError for a model in 4 bits whose layers bitsandbytes cannot compute on a CPU."""
    if not getattr(model, "is_loaded_in_4bit", False) or model.device.type != "cpu":
        return
    widths = {module.in_features for module in model.modules() if type(module).__name__ == "Linear4bit"}
    if unfit := sorted(width for width in widths if width % CPU_BLOCK):
        raise InputError(
            f"in 4 bits a CPU computes layers of a multiple of {CPU_BLOCK} inputs, but this model has some of "
            f"{unfit[0]}: load it in 8bit"
        )


def _load(cls, checkpoint: str, **options):
    try:
        return cls.from_pretrained(checkpoint, **options)
    except Exception as error:  # a checkpoint can be broken in any way
        raise InputError(f"the model {checkpoint!r} cannot be loaded: {error}") from error
