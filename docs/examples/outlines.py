"""Shapes drawn with a broad pen, which the model in the package was never shown: it knows them filled with colour."""

import math
from dataclasses import dataclass, field
from random import Random

from PIL import Image, ImageDraw

from transformers_flashsloth import answer_all

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "green", "purple", "red")
QUESTION = "What shape is in the picture?"
PROMPT = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]


@dataclass
class ScriptArguments:
    num_pictures: int = field(default=320, metadata={"help": "Pictures to train on."})
    num_held_out: int = field(default=128, metadata={"help": "Pictures that accuracy is measured on."})


def draw(random: Random) -> tuple[Image.Image, str]:
    """A picture of 96 x 96 pixels with one outline, and the name of its shape."""
    image = Image.new("RGB", (96, 96), "white")
    shape, colour, radius = random.choice(SHAPES), random.choice(COLOURS), random.randint(14, 30)
    x, y = (random.randint(radius + 3, 93 - radius) for _ in "xy")
    pen = {"outline": colour, "width": random.randint(6, 10)}
    canvas = ImageDraw.Draw(image)
    if shape == "circle":
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), **pen)
    elif shape == "rectangle":
        half = radius * random.uniform(0.4, 0.9)
        canvas.rectangle((x - radius, y - half, x + radius, y + half), **pen)
    else:
        angles = [random.uniform(-0.5, 0.5) + turn * math.tau / 3 - math.pi / 2 for turn in range(3)]
        canvas.polygon([(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles], **pen)
    return image, shape


def drawings(seed: str, number: int) -> list[tuple[Image.Image, str]]:
    """Pictures and their shapes; another seed gives others."""
    random = Random(seed)
    return [draw(random) for _ in range(number)]


def accuracy(model, processor, pictures: list[tuple[Image.Image, str]]) -> float:
    """The share of pictures whose shape the model names."""
    answers = answer_all(model, processor, [(image, QUESTION) for image, _ in pictures], batch_size=32)
    return sum(answer == shape for answer, (_, shape) in zip(answers, pictures, strict=True)) / len(pictures)
