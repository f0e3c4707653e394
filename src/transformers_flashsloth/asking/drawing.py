"""An explanation as a picture: what the model looked at, drawn over the image."""

import torch
from PIL import Image, ImageDraw

from ..model.explanation_flashsloth import FlashSlothExplanation

PANEL_SIZE = 320
MARGIN = 24
# Near-white to dark red, through orange: more attention is darker in grey print, too.
HEAT = ((255, 247, 236), (252, 141, 89), (127, 0, 0))


def draw_explanation(image: Image.Image, explanation: FlashSlothExplanation, index: int = 0) -> Image.Image:
    """
    Draws an explanation over the image that it belongs to.

    Args:
        image (`PIL.Image.Image`): the image, any size.
        explanation ([`FlashSlothExplanation`]): of a prompt with one row.
        index (`int`, defaults to 0): which of the prompt's images it is.

    Returns:
        `PIL.Image.Image`: the image, what pooling keeps of it, what the last run's queries read together, and below
        what each query reads. High definition is drawn from the view of the whole image.
    """
    pooling = explanation.pooling_weights[index, 0]
    panels = [("image", None), ("pooling", pooling)]
    if explanation.query_attention is not None:
        queries = explanation.query_attention[index, -1, :, 0]  # (Q, rows, columns)
        panels += [("all queries", queries.mean(0))]
        panels += [(f"query {number}", query) for number, query in enumerate(queries, start=1)]

    columns = 3
    rows = -(-len(panels) // columns)
    picture = Image.new("RGB", (columns * (PANEL_SIZE + MARGIN) + MARGIN, rows * (PANEL_SIZE + 2 * MARGIN)), "white")
    draw = ImageDraw.Draw(picture)
    base = image.convert("RGB").resize((PANEL_SIZE, PANEL_SIZE), Image.Resampling.BICUBIC)
    for position, (title, heat) in enumerate(panels):
        left = MARGIN + position % columns * (PANEL_SIZE + MARGIN)
        top = 2 * MARGIN + position // columns * (PANEL_SIZE + 2 * MARGIN)
        draw.text((left, top - MARGIN + 6), title, fill="black")
        picture.paste(base if heat is None else _overlay(base, heat), (left, top))
    return picture


def below_each_other(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one width as one."""
    whole = Image.new("RGB", (pictures[0].width, sum(picture.height for picture in pictures)))
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    return whole


def _overlay(base: Image.Image, heat: torch.Tensor) -> Image.Image:
    """The image in grey under a map `(rows, columns)` of heat, scaled to its own maximum."""
    levels = (heat / heat.max().clamp(min=1e-9) * 255).round().to(torch.uint8).cpu().numpy()
    mask = Image.fromarray(levels).resize(base.size, Image.Resampling.NEAREST)
    colours = Image.merge("RGB", [mask.point(_ramp(channel)) for channel in range(3)])
    return Image.blend(base.convert("L").convert("RGB"), colours, 0.6)


def _ramp(channel: int) -> list[int]:
    low, middle, high = (colour[channel] for colour in HEAT)
    half = 128
    rising = [round(low + (middle - low) * level / half) for level in range(half)]
    return rising + [round(middle + (high - middle) * level / (half - 1)) for level in range(half)]
