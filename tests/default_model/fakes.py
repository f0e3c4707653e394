"""Stand-ins for downloaded pictures, so that the tests of the default model's data need no registry."""

from PIL import Image

from conversion.default_model import canvas
from conversion.default_model.assets import GLYPH_SIZE
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
