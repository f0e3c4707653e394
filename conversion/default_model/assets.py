"""Pictures that package registries ship, fetched once into a cache directory.

| package | used for | licence and credit |
| --- | --- | --- |
| npm `emoji-datasource-google` 16.0.0 | training, evaluation, examples | Noto Emoji by Google, Apache-2.0 |
| npm `emoji-datasource-twitter` 16.0.0 | training, evaluation, examples | Twemoji by Twitter and others, CC-BY-4.0 |
| npm `openmoji` 17.0.0 | evaluation alone, as an unseen style | OpenMoji, CC-BY-SA-4.0 |
| PyPI `easy-vqa` 1.0 | training and evaluation, each on its own split | Victor Zhou, MIT |

The two `emoji-datasource` packages themselves are Cal Henderson's, MIT.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from .vocabulary import EMOJI

TRAINED_STYLES = ("google", "twitter")
UNSEEN_STYLE = "openmoji"
NPM_PACKAGES = {
    "google": "emoji-datasource-google@16.0.0",
    "twitter": "emoji-datasource-twitter@16.0.0",
    "openmoji": "openmoji@17.0.0",
}
GLYPH_SIZE = 64
"""Pixels along each side of a glyph as loaded."""


def cache_directory() -> Path:
    """Where fetched packages are kept: `$FLASHSLOTH_DATA`, or `transformers-flashsloth` in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    path = Path(os.environ.get("FLASHSLOTH_DATA", cache / "transformers-flashsloth")).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    return path


def npm_archive(package: str) -> Path:
    """Path of the archive of `package` ("name@version"), downloaded by `npm pack` where it is not cached yet."""
    archive = cache_directory() / f"{package.replace('@', '-')}.tgz"
    if not archive.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise FileNotFoundError(
                f"npm is needed to download {package}; install Node.js, or put the archive at {archive}"
            )
        subprocess.run([npm, "pack", "--silent", package], cwd=archive.parent, check=True, stdout=subprocess.DEVNULL)
    return archive


@cache
def load_glyphs(style: str) -> dict[str, Image.Image]:
    """Name -> RGBA glyph of 64x64 pixels, for every name of `vocabulary.EMOJI`, in one art style."""
    archive = npm_archive(NPM_PACKAGES[style])
    unpack = _openmoji_glyphs if style == UNSEEN_STYLE else _datasource_glyphs
    with tarfile.open(archive) as tar:
        members = {member.name: member for member in tar if member.isfile()}
        return unpack(lambda name: tar.extractfile(members[name]).read(), style)


def _datasource_glyphs(read, style: str) -> dict[str, Image.Image]:
    entries = {entry["short_name"]: entry for entry in json.loads(read("package/emoji.json"))}
    return {
        name: Image.open(io.BytesIO(read(f"package/img/{style}/64/{entries[short_name]['image']}"))).convert("RGBA")
        for name, short_name in EMOJI.items()
    }


def _openmoji_glyphs(read, style: str) -> dict[str, Image.Image]:
    import resvg_py  # an SVG renderer, needed for this evaluation-only style alone

    codes = _unicode_codes()
    glyphs = {}
    for name in EMOJI:
        svg = read(f"package/color/svg/{codes[name]}.svg").decode()
        png = resvg_py.svg_to_bytes(svg_string=svg, width=GLYPH_SIZE, height=GLYPH_SIZE)
        glyphs[name] = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    return glyphs


def _unicode_codes() -> dict[str, str]:
    """Name -> code points as OpenMoji's file names write them: upper case, without the variation selector."""
    with tarfile.open(npm_archive(NPM_PACKAGES["google"])) as tar:
        entries = {entry["short_name"]: entry for entry in json.loads(tar.extractfile("package/emoji.json").read())}
    return {name: entries[short_name]["unified"].upper().removesuffix("-FE0F") for name, short_name in EMOJI.items()}


@dataclass(frozen=True)
class EasyVQAImage:
    """One easy-VQA image as the default's image processor sees it, with its official questions and answers."""

    pixels: np.ndarray
    """(96, 96, 3) uint8."""
    questions: tuple[tuple[str, str], ...]


def load_easy_vqa(split: str, size: int) -> Iterator[EasyVQAImage]:
    """Images of easy-VQA's official `split` ("train" or "test"), squashed to `size` pixels by bicubic interpolation."""
    import easy_vqa

    questions, answers, image_ids = getattr(easy_vqa, f"get_{split}_questions")()
    paths = getattr(easy_vqa, f"get_{split}_image_paths")()
    turns: dict[int, list[tuple[str, str]]] = {}
    for question, answer, image_id in zip(questions, answers, image_ids, strict=True):
        turns.setdefault(image_id, []).append((question, answer))
    for image_id, image_turns in sorted(turns.items()):
        with Image.open(paths[image_id]) as image:
            pixels = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
        yield EasyVQAImage(pixels, tuple(image_turns))
