"""Draw the ten example pictures that ship with the package, and write down what is asked about each and what is true.

    python -m conversion.default_model.examples [--output DIR]

They are laid out by hand at 192 pixels and are no scenes of the training. Emoji are Noto Emoji (Apache-2.0, Google) and
Twemoji (CC-BY-4.0, Twitter, Inc. and contributors); the examples are given under the same licences.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

import transformers_flashsloth

from .assets import load_glyphs
from .canvas import shape_mask
from .vocabulary import COLOURS

SIZE = 192
COLOURS_PER_PICTURE = 128
DEFAULT_OUTPUT = Path(transformers_flashsloth.__file__).with_name("examples")
WHITE, CREAM, MINT, NAVY = (255, 255, 255), (253, 246, 228), (226, 246, 234), (24, 32, 72)


@dataclass(frozen=True)
class Glyph:
    """An emoji of one art style: left, top and side in pixels."""

    name: str
    left: int
    top: int
    side: int
    style: str = "google"

    @property
    def credit(self) -> str:
        return {"google": "Noto Emoji, Google, Apache-2.0", "twitter": "Twemoji, CC-BY-4.0"}[self.style]

    def draw(self, image: Image.Image) -> None:
        """Paste the emoji into `image`."""
        glyph = load_glyphs(self.style)[self.name].resize((self.side, self.side), Image.Resampling.LANCZOS)
        image.paste(glyph, (self.left, self.top), glyph)


@dataclass(frozen=True)
class Shape:
    """A shape in the first shade of a named colour."""

    name: str
    colour: str
    left: int
    top: int
    width: int
    height: int
    credit: str = "drawn here, CC0"

    def draw(self, image: Image.Image) -> None:
        """Paint the shape into `image`."""
        mask = Image.fromarray((shape_mask(self.name, self.width, self.height, 0) * 255).astype("uint8"))
        image.paste(COLOURS[self.colour][0], (self.left, self.top), mask)


@dataclass(frozen=True)
class Example:
    """One picture with a question and its true answer."""

    file: str
    family: str
    question: str
    answer: str
    background: tuple[int, int, int]
    things: Sequence[Glyph | Shape]


EXAMPLES = (
    Example("fox.png", "name", "What is this?", "fox", WHITE, (Glyph("fox", 24, 24, 144, "twitter"),)),
    Example("rocket.png", "name", "Which emoji is this?", "rocket", NAVY, (Glyph("rocket", 32, 30, 128),)),
    Example(
        "corners.png",
        "corner",
        "What is in the bottom left corner?",
        "guitar",
        WHITE,
        (
            Glyph("cactus", 8, 10, 76),
            Glyph("penguin", 106, 6, 80),
            Glyph("guitar", 10, 104, 78),
            Glyph("cake", 108, 106, 76),
        ),
    ),
    Example(
        "zoo.png",
        "where",
        "Where is the panda?",
        "top right",
        MINT,
        (
            Glyph("tiger", 10, 8, 76, "twitter"),
            Glyph("panda", 108, 10, 74, "twitter"),
            Glyph("frog", 12, 108, 74, "twitter"),
            Glyph("owl", 106, 104, 78, "twitter"),
        ),
    ),
    Example(
        "apples.png",
        "count",
        "How many apples are there?",
        "4",
        CREAM,
        (
            Glyph("apple", 4, 6, 58),
            Glyph("apple", 68, 4, 58),
            Glyph("banana", 132, 4, 58),
            Glyph("apple", 6, 68, 56),
            Glyph("pear", 68, 132, 58),
            Glyph("apple", 130, 130, 58),
        ),
    ),
    Example(
        "party.png",
        "present",
        "Is there a balloon?",
        "yes",
        WHITE,
        (
            Glyph("gift", 8, 96, 84),
            Glyph("balloon", 104, 8, 84),
            Glyph("cookie", 18, 14, 60),
            Glyph("drum", 116, 118, 64),
        ),
    ),
    Example(
        "stars.png",
        "count",
        "How many stars are there?",
        "3",
        NAVY,
        (
            Shape("star", "yellow", 12, 12, 60, 60),
            Shape("star", "white", 124, 30, 56, 56),
            Shape("star", "orange", 66, 120, 62, 62),
        ),
    ),
    Example(
        "shapes.png",
        "colour",
        "What color is the triangle?",
        "blue",
        WHITE,
        (
            Shape("circle", "red", 14, 16, 72, 72),
            Shape("triangle", "blue", 104, 18, 76, 76),
            Shape("square", "green", 60, 108, 70, 70),
        ),
    ),
    Example(
        "hearts.png",
        "shape",
        "What is the purple shape?",
        "heart",
        CREAM,
        (
            Shape("heart", "purple", 96, 100, 80, 80),
            Shape("cross", "teal", 18, 20, 70, 70),
            Shape("diamond", "orange", 110, 12, 66, 74),
        ),
    ),
    Example(
        "rectangle.png",
        "easy-vqa",
        "does the image not contain a yellow shape?",
        "yes",
        (240, 236, 250),
        (Shape("rectangle", "teal", 84, 66, 72, 40),),
    ),
)


def write_examples(output: Path) -> None:
    """Write the pictures and `examples.json`."""
    output.mkdir(parents=True, exist_ok=True)
    entries = []
    for example in EXAMPLES:
        image = Image.new("RGB", (SIZE, SIZE), example.background)
        for thing in example.things:
            thing.draw(image)
        image.quantize(COLOURS_PER_PICTURE).save(output / example.file, optimize=True)
        entries.append(
            {
                "image": example.file,
                "family": example.family,
                "question": example.question,
                "answer": example.answer,
                "credit": "; ".join(sorted({thing.credit for thing in example.things})),
            }
        )
    (output / "examples.json").write_text(json.dumps(entries, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    arguments = parser.parse_args()
    write_examples(arguments.output)
    print(f"{len(EXAMPLES)} examples are in {arguments.output}.")


if __name__ == "__main__":
    main()
