"""The pictures of a training, by number: picture 17 of a seed is always the same scene."""

from __future__ import annotations

from random import Random

from .assets import load_easy_vqa
from .canvas import IMAGE_SIZE
from .scene import Scene
from .scenes import scene_of

OFFICIAL = "official easy-vqa"
MIXTURE = {
    "single": 0.11,
    "several": 0.1,
    "corners": 0.13,
    "counting": 0.16,
    "shapes": 0.12,
    "shape corners": 0.06,
    "easy-vqa": 0.05,
    "clutter": 0.1,
    "touching": 0.07,
    OFFICIAL: 0.1,
}
"""Share of each kind of picture; the last is easy-VQA's training split."""


class Pictures:
    """Drawn scenes and easy-VQA's training images in the shares of `MIXTURE`."""

    def __init__(self, seed: int):
        self.seed = seed
        images = load_easy_vqa("train", IMAGE_SIZE)
        self.official = [Scene(OFFICIAL, image.pixels, [], owner=None, questions=image.questions) for image in images]

    def __getitem__(self, number: int) -> Scene:
        random = Random(f"picture {self.seed} {number}")
        kind = random.choices(tuple(MIXTURE), tuple(MIXTURE.values()))[0]
        return random.choice(self.official) if kind == OFFICIAL else scene_of(kind, random)
