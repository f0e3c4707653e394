"""
Lays the page out in a directory that any static web server can host: the page as it is in `page/`, an exported model,
and what npm has of others, by the versions and checksums of package-lock.json.

    python demo/web/assemble.py site
    python -m http.server --directory site
"""

import argparse
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT, InputError, input_errors, local_directory
from transformers_flashsloth.checkpoints.written_aside import check_is_new, written_aside
from transformers_flashsloth.exported.manifest import DECODER, IMAGE_ENCODER, MANIFEST, read_manifest

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "src/transformers_flashsloth/examples"
INDEX = "files.json"
ORT = "onnxruntime-web/dist"
# What the page loads of each package, and its name there.
VENDOR = {
    f"{ORT}/ort.wasm.min.mjs": "ort.wasm.min.mjs",
    f"{ORT}/ort-wasm-simd-threaded.mjs": "ort-wasm-simd-threaded.mjs",
    f"{ORT}/ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
    f"{ORT}/ort.webgpu.min.mjs": "ort.webgpu.min.mjs",
    f"{ORT}/ort-wasm-simd-threaded.asyncify.mjs": "ort-wasm-simd-threaded.asyncify.mjs",
    f"{ORT}/ort-wasm-simd-threaded.asyncify.wasm": "ort-wasm-simd-threaded.asyncify.wasm",
    "@huggingface/jinja/dist/index.js": "jinja.js",
    "@huggingface/jinja/LICENSE": "jinja.LICENSE",
    "@huggingface/tokenizers/dist/tokenizers.min.mjs": "tokenizers.js",
    "@huggingface/tokenizers/LICENSE": "tokenizers.LICENSE",
}
MODEL = (
    MANIFEST,
    IMAGE_ENCODER,
    DECODER,
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "chat_template.jinja",
)
# Servers seldom compress these, so they are laid out compressed, and the page unpacks them.
PACKED = (".onnx", ".wasm")
# Of what is laid out at most; to fail before there is half a page on a full disk.
MOST_BYTES = 2**28


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="assemble.py", description="Lays FlashSloth's page out for any static web server."
    )
    parser.add_argument("output", type=Path, metavar="DIR", help="does not exist yet")
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--model", default=DEFAULT_CHECKPOINT, metavar="PATH_OR_HUB_ID", help="(default: the one in the package)"
    )
    model.add_argument("--exported", type=Path, metavar="DIR", help="what `flashsloth export` wrote, in its place")
    parser.add_argument("--precision", default="uint8", help="of the export (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        with input_errors():
            index = assemble(options.output, options.model, options.exported, options.precision)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    packed = sum(size for name, size in index["packed"].items() if "asyncify" not in name)
    sys.stdout.write(f"Wrote {options.output}: {packed / 1e6:.1f} MB of model and runtime, compressed.\n")
    return 0


def assemble(output: Path, checkpoint: str, exported: Path | None, precision: str) -> dict:
    """
    Writes the page, whole or not at all.

    Args:
        output (`Path`): must not exist.
        checkpoint (`str`): is exported in `precision`, unless there is an `exported` one already.

    Returns:
        what files.json says: the version of all together, the files of the page, and the sizes of packed ones.

    Raises:
        InputError: if npm is missing or fails, or the export does or cannot be used.
        FileExistsError: if `output` exists.
    """
    check_is_new(output)
    with tempfile.TemporaryDirectory() as scratch:
        packages = install(Path(scratch, "npm"))
        if exported is None:
            from transformers_flashsloth.export.writing import export_checkpoint

            exported = Path(scratch, "exported")
            say = lambda text: sys.stderr.write(f"{text}\n")  # noqa: E731
            export_checkpoint(local_directory(checkpoint), exported, precision=precision, say=say)
        check_fits(exported)
        with written_aside(output, MOST_BYTES) as site:
            shutil.copytree(HERE / "page", site, dirs_exist_ok=True)
            shutil.copyfile(HERE / "SPACE.md", site / "README.md")
            shutil.copytree(EXAMPLES, site / "examples", ignore=shutil.ignore_patterns("__pycache__"))
            for source, name in VENDOR.items():
                put(packages / source, site / "vendor" / name)
            for name in MODEL:
                put(exported / name, site / "exported" / name)
            return write_index(site)


def install(directory: Path) -> Path:
    """Has npm fetch the packages, without running their scripts, and returns where they are."""
    directory.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(HERE / name, directory / name)
    npm = shutil.which("npm")
    if npm is None:
        raise InputError("npm is needed, which fetches what the page is made of: install Node.js")
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"npm could not fetch what the page is made of:\n{done.stderr.strip()}")
    return directory / "node_modules"


def check_fits(exported: Path) -> None:
    """Raises InputError for an export that a browser cannot hold, or ValueError for none."""
    others = [name for name in read_manifest(exported)["files"] if name not in (IMAGE_ENCODER, DECODER)]
    if others:
        raise InputError(f"{exported} has {', '.join(others)}, as its graphs exceed 2 GB: too much for a browser")


def put(source: Path, target: Path) -> None:
    """Copies a file, compressed where its kind is; the same bytes each time."""
    target.parent.mkdir(exist_ok=True)
    if source.suffix in PACKED:
        target.with_name(f"{target.name}.gz").write_bytes(gzip.compress(source.read_bytes(), 9, mtime=0))
    else:
        shutil.copyfile(source, target)


def write_index(site: Path) -> dict:
    """Writes files.json."""
    files = sorted(path for path in site.rglob("*") if path.is_file())
    names = {path.relative_to(site).as_posix(): path for path in files}
    digest = hashlib.sha256()
    for name, path in names.items():
        digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    index = {
        "version": digest.hexdigest()[:16],
        "packed": {name: path.stat().st_size for name, path in names.items() if path.suffix == ".gz"},
        "page": [name for name, path in names.items() if path.suffix not in (".gz", ".md", ".LICENSE")],
    }
    (site / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return index


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
