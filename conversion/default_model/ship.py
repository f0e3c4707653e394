"""Put a trained model into the package, without the copies of the package's code that a saved checkpoint carries.

    python -m conversion.default_model.ship TRAINED

What was in the package before is replaced.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from .train import DEFAULT_CHECKPOINT

# The package is there, so that its checkpoint carries no code but this, which imports it for `trust_remote_code=True`.
IMPORTER = "installed_package.py"
AUTO_MAPS = {
    "config.json": {"AutoConfig": "installed_package.FlashSlothConfig"},
    "processor_config.json": {"AutoProcessor": "installed_package.FlashSlothProcessor"},
}


def ship(trained: Path, package: Path = DEFAULT_CHECKPOINT) -> None:
    """Replace the files in `package` by those of `trained`: weights, configs, tokenizer, processor and template."""
    importer = (DEFAULT_CHECKPOINT / IMPORTER).read_bytes()
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for source in trained.iterdir():
        if source.is_dir() or source.suffix == ".py":
            continue
        target = package / source.name
        shutil.copyfile(source, target)
        if source.name.endswith("config.json"):
            entries = _without_auto_map(json.loads(source.read_text(encoding="utf-8")))
            if source.name in AUTO_MAPS:
                entries = dict(sorted((entries | {"auto_map": AUTO_MAPS[source.name]}).items()))
            target.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (package / IMPORTER).write_bytes(importer)


def _without_auto_map(value: object) -> object:
    if isinstance(value, dict):
        return {name: _without_auto_map(entry) for name, entry in value.items() if name != "auto_map"}
    return [_without_auto_map(entry) for entry in value] if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path, help="directory that `train` wrote")
    ship(parser.parse_args().trained)


if __name__ == "__main__":
    main()
