"""Busy grounds and the scenes on them: small things, things that touch, and shapes that still stand out."""

from random import Random

import numpy as np
import pytest

from conversion.default_model.clutter import SMALL
from conversion.default_model.grounds import NEAR, busy_background
from conversion.default_model.scenes import scene_of
from tests.default_model.fakes import fake_glyphs


@pytest.fixture(autouse=True)
def glyphs(monkeypatch):
    fake_glyphs(monkeypatch)


def test_grounds_are_busy_and_shades_stand_out_from_them():
    shades = [(255, 0, 0), (20, 40, 160), (255, 255, 255)]
    busy = 0
    for seed in range(40):
        ground = busy_background(Random(seed), shades)
        assert ground.shape == (96, 96, 3) and ground.dtype == np.float32
        for shade in shades:
            assert (np.linalg.norm(ground - np.float32(shade), axis=-1) < NEAR).mean() < 0.06
        busy += len(np.unique(ground.reshape(-1, 3), axis=0)) > 2
    assert busy > 30


def test_most_things_in_clutter_are_small():
    sides = []
    for seed in range(60):
        scene = scene_of("clutter", Random(seed))
        for index in range(len(scene.things)):
            rows, columns = np.nonzero(scene.owner == index)
            sides.append(max(np.ptp(rows), np.ptp(columns)) + 1)
    assert np.mean(np.array(sides) <= SMALL[1]) > 0.8


def test_windows_have_patches_of_unequal_worth():
    mixed = 0
    for seed in range(30):
        shown = scene_of("clutter", Random(seed)).covered().sum(-1).reshape(4, 3, 4, 3).swapaxes(1, 2).reshape(16, 9)
        mixed += ((shown >= 0.3).any(-1) & (shown < 0.1).any(-1)).mean()
    assert mixed / 30 > 0.4


def test_things_touch():
    for seed in range(40):
        scene = scene_of("touching", Random(seed))
        assert len(scene.things) >= 2
        boxes = []
        for index in range(len(scene.things)):
            rows, columns = np.nonzero(scene.owner == index)
            boxes.append((rows.min(), rows.max(), columns.min(), columns.max()))
        for number, (top, bottom, left, right) in enumerate(boxes):
            gaps = [
                max(t - bottom, top - b, le - right, left - r)
                for other, (t, b, le, r) in enumerate(boxes)
                if other != number
            ]
            assert min(gaps) <= 7, "glyphs may leave some of their box empty"
