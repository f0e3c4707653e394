"""Stand-ins for downloaded pictures, so that the tests of the default model's data need no registry."""

import numpy as np
from PIL import Image

from conversion.default_model import canvas, pictures
from conversion.default_model.assets import GLYPH_SIZE, EasyVQAImage
from conversion.default_model.vocabulary import EMOJI


def fake_glyphs(monkeypatch) -> None:
    """Replaces every emoji by a disc of a colour of its own."""
    glyphs = {}
    for index, name in enumerate(EMOJI):
        glyph = Image.new("RGBA", (GLYPH_SIZE, GLYPH_SIZE))
        disc = Image.new("L", (GLYPH_SIZE, GLYPH_SIZE))
        disc.paste(255, (4, 4, GLYPH_SIZE - 4, GLYPH_SIZE - 4))
        glyph.paste((index * 2, 255 - index * 2, index * 31 % 256, 255), (0, 0), disc)
        glyphs[name] = glyph
    monkeypatch.setattr(canvas, "load_glyphs", lambda style: glyphs)
    canvas.glyph_pixels.cache_clear()


def fake_easy_vqa(monkeypatch) -> None:
    """Replaces easy-VQA's training images by one blank picture with two questions."""
    image = EasyVQAImage(np.zeros((96, 96, 3), np.uint8), (("what shape is present?", "circle"), ("is it red?", "no")))
    monkeypatch.setattr(pictures, "load_easy_vqa", lambda split, size: iter([image]))
