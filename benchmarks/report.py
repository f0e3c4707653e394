"""How results are kept and shown: JSON files, markdown tables, and figures put between marks in a document."""

import argparse
import json
import os
from pathlib import Path


def write_json(path: Path, content: dict) -> None:
    """Writes aside and renames, so that a run that is stopped leaves no half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(aside, path)


def read_json(path: Path) -> dict | None:
    """The content of a file that `write_json` wrote, `None` if there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A table of markdown, its first column to the left and numbers to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def with_spread(values: dict | None, scale: float = 1.0, digits: int = 2) -> str:
    """A `measure.summary` as "median (low-high)", multiplied by `scale`; empty without one."""
    if values is None:
        return ""
    median, low, high = (f"{values[name] * scale:.{digits}f}" for name in ("median", "low", "high"))
    return f"{median} ({low}-{high})"


def put_between_marks(path: Path, name: str, text: str) -> None:
    """
    Replaces what stands between `<!-- NAME begin -->` and `<!-- NAME end -->` in a document.

    Raises:
        ValueError: if the document has no such marks.
    """
    begin, end = f"<!-- {name} begin -->", f"<!-- {name} end -->"
    document = path.read_text()
    if document.count(begin) != 1 or document.count(end) != 1:
        raise ValueError(f"{path} needs the lines {begin!r} and {end!r} once, around the place for these figures.")
    head, rest = document.split(begin)
    _, tail = rest.split(end)
    path.write_text(f"{head}{begin}\n{text.strip()}\n{end}{tail}")


def publish(options: argparse.Namespace, name: str, result: dict, text: str) -> None:
    """Keeps `result` as `NAME.json` in `options.output`, prints `text`, and puts it into `options.readme` if given."""
    write_json(options.output / f"{name}.json", result)
    print(text)
    if options.readme:
        put_between_marks(options.readme, name, text)
