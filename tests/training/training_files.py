"""Images and files of rows to train on, small and sound; tests break them."""

import csv
import json
from pathlib import Path

from PIL import Image


def write_images(directory: Path, count: int) -> Path:
    """`0.png`, `1.png`, ...: each of its own colour."""
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (8, 8), (number * 5 % 256, 100, 200)).save(directory / f"{number}.png")
    return directory


def llava_rows(count: int, num_images: int | None = None) -> list[dict]:
    """Rows `r0`, `r1`, ... of one image, one question and one answer."""
    return [
        {
            "id": f"r{number}",
            "image": f"{number % (num_images or count)}.png",
            "conversations": [
                {"from": "human", "value": f"What is number {number}?\n<image>"},
                {"from": "gpt", "value": f"It is {'very ' * (number % 7)}blue {number}"},
            ],
        }
        for number in range(count)
    ]


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Writes rows as the ending of `path` says."""
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path
