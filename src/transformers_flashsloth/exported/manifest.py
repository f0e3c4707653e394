"""What an exported checkpoint says of itself, and how to tell one from others."""

import json
from pathlib import Path

from ..model.configuration_flashsloth import FlashSlothConfig

MANIFEST = "export.json"
IMAGE_ENCODER, DECODER = "image_encoder.onnx", "decoder.onnx"
# Of the image encoder; the decoder reads the first two.
IMAGE_TOKENS, IMAGE_FEATURES, POOLING_WEIGHTS = "image_tokens", "image_features", "pooling_weights"
# Of the decoder: with the pooling weights what explains an answer.
QUERY_ATTENTION = "query_attention"
# 1 with one window, as before there could be several.
VERSION = 2


def is_exported(directory: str | Path) -> bool:
    """Whether a directory is an exported checkpoint."""
    return Path(directory, MANIFEST).is_file()


def read_manifest(directory: str | Path) -> dict:
    """
    The manifest of an exported checkpoint: `{"version", "precision", "pooling_window", "windows", "explains",
    "files"}`; exports from before they explained or had several windows lack `"explains"` or `"windows"`.

    Raises:
        ValueError: if there is none, it is of a later version, or a file that it names is missing.
    """
    try:
        manifest = json.loads(Path(directory, MANIFEST).read_text(encoding="utf-8"))
        version, files = manifest["version"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{directory} is no exported checkpoint, which has a {MANIFEST}: make one with `flashsloth export`. {error}"
        ) from error
    if version > VERSION:
        raise ValueError(
            f"{directory} was exported in version {version}, this package reads up to {VERSION}: bring it up to date."
        )
    if missing := [name for name in files if not Path(directory, name).is_file()]:
        raise ValueError(f"{directory} lacks {', '.join(missing)}, which its {MANIFEST} names: export it anew.")
    return manifest


def exported_windows(manifest: dict, config: FlashSlothConfig) -> dict[int, tuple[int, int]]:
    """The windows that an export pools in, by the visual tokens that they leave of a view, the model's own first."""
    if "windows" in manifest:
        return {one["visual_tokens"]: tuple(one["window"]) for one in manifest["windows"]}
    window = tuple(manifest["pooling_window"])
    return {tokens: known for tokens, known in config.windows.items() if known == window}


def outputs_of(windows: dict[int, tuple[int, int]], visual_tokens: int) -> tuple[str, str]:
    """The image encoder's outputs of a window: its tokens and its weights. Those of the first have the bare names."""
    suffix = "" if visual_tokens == next(iter(windows)) else f"_{visual_tokens}"
    return f"{IMAGE_TOKENS}{suffix}", f"{POOLING_WEIGHTS}{suffix}"
