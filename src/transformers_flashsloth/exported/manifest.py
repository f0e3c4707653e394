"""What an exported checkpoint says of itself, and how to tell one from others."""

import json
from pathlib import Path

MANIFEST = "export.json"
IMAGE_ENCODER, DECODER = "image_encoder.onnx", "decoder.onnx"
# Outputs that explain an answer: of the image encoder, and of the decoder.
POOLING_WEIGHTS, QUERY_ATTENTION = "pooling_weights", "query_attention"
VERSION = 1


def is_exported(directory: str | Path) -> bool:
    """Whether a directory is an exported checkpoint."""
    return Path(directory, MANIFEST).is_file()


def read_manifest(directory: str | Path) -> dict:
    """
    The manifest of an exported checkpoint: `{"version", "precision", "pooling_window", "explains", "files"}`; exports
    from before they explained lack `"explains"`.

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
