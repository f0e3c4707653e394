"""What the model looked at: the shares that pooling and the queries give to each patch, and a picture of them."""

from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .placeholders import check_placeholders
from .question_spans import find_query_spans

PANEL_SIZE = 320
MARGIN = 24
# Near-white to dark red, through orange: more attention is darker in grey print, too.
HEAT = ((255, 247, 236), (252, 141, 89), (127, 0, 0))


@dataclass
class FlashSlothExplanation(ModelOutput):
    """
    Args:
        pooling_weights (`torch.Tensor`): spatial attention pooling's share of each patch in its window, float32,
            `(N, V, grid, grid)`; every window sums to 1.
        query_attention (`torch.Tensor`): each query's share of each patch, mean over the heads, float32,
            `(N, R, Q, V, grid, grid)`. For the images of one row it sums to 1 over images, views and patches; it is 0
            where the run stands before the image.
    """

    pooling_weights: torch.Tensor | None = None
    query_attention: torch.Tensor | None = None


@torch.no_grad()
def explain(
    model: PreTrainedModel, input_ids: torch.Tensor, pixel_values: torch.Tensor, attention_mask: torch.Tensor | None
) -> FlashSlothExplanation:
    """
    Runs a prompt and reports what was looked at.

    Args:
        model ([`FlashSlothModel`]): the model without its language head.
        input_ids (`torch.LongTensor`), pixel_values (`torch.Tensor`), attention_mask (`torch.LongTensor`, *optional*):
            of a prompt, as the processor makes them; `(B, L)`, `(N, V, 3, H, W)`, `(B, L)`.

    Raises:
        ValueError: as `forward` does.
    """
    config = model.config
    images = model.get_image_features(pixel_values, return_dict=True)
    outputs = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        mm_encoder_outputs={"image": images},
        output_hidden_states=True,
        use_cache=False,
    )
    spans = find_query_spans(
        input_ids,
        config,
        max_runs=max(check_placeholders(input_ids, images, config), 1),
        num_images=pixel_values.shape[0],
        tokens_per_image=images.pooler_output.shape[1],
    )
    patches = images.last_hidden_state  # (N, V*P, Dv)
    attention = model.embq.attention_over_patches(outputs.hidden_states[config.embq_layer], patches, spans)
    views = (pixel_values.shape[1], config.patch_grid, config.patch_grid)
    weights = model.multi_modal_projector.pooling.weights(patches.reshape(-1, config.patch_grid**2, patches.shape[-1]))
    return FlashSlothExplanation(
        pooling_weights=weights.reshape(-1, *views),
        query_attention=attention.mean(1).unflatten(1, (-1, config.num_query_tokens)).unflatten(3, views),
    )


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
    queries = explanation.query_attention[index, -1, :, 0]  # (Q, grid, grid)
    panels = [("image", None), ("pooling", pooling), ("all queries", queries.mean(0))]
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
    """The image in grey under a map `(grid, grid)` of heat, scaled to its own maximum."""
    levels = (heat / heat.max().clamp(min=1e-9) * 255).round().to(torch.uint8).cpu().numpy()
    mask = Image.fromarray(levels).resize(base.size, Image.Resampling.NEAREST)
    colours = Image.merge("RGB", [mask.point(_ramp(channel)) for channel in range(3)])
    return Image.blend(base.convert("L").convert("RGB"), colours, 0.6)


def _ramp(channel: int) -> list[int]:
    low, middle, high = (colour[channel] for colour in HEAT)
    half = 128
    rising = [round(low + (middle - low) * level / half) for level in range(half)]
    return rising + [round(middle + (high - middle) * level / (half - 1)) for level in range(half)]
