"""What the entry point `lmms_eval.models` names: `lmms_eval --model flashsloth` is this package's model."""

from importlib import import_module
from importlib.util import find_spec

from ..checkpoints.opening import InputError

MODEL_ID = "flashsloth"
CLASS_PATH = "transformers_flashsloth.evaluation.harness.FlashSlothEvaluated"


def manifest():
    """What lmms-eval reads of a model before it needs it: a `ModelManifest`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL_ID, chat_class_path=CLASS_PATH)


def check_installed() -> None:
    """Raises InputError where lmms-eval is missing, or is there without what it needs."""
    if find_spec("lmms_eval") is None:
        raise InputError("evaluation needs lmms-eval: pip install 'transformers-flashsloth[eval]'")
    try:
        import_module("lmms_eval.models")
    except Exception as error:  # whatever one of its many requirements raises
        raise InputError(f"lmms-eval is installed, but cannot be imported: {error}") from error
