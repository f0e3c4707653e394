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
            `(N, V, rows, columns)`; every window sums to 1.
        query_attention (`torch.Tensor`): each query's share of each patch, mean over the heads, float32,
            `(N, R, Q, V, rows, columns)`, mean over the embedded query modules too where there are several; `None`
            without queries. For the images of one row it sums to 1 over images, views and patches; it is 0
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
    entering = {}  # what each module reads; nothing without a query run
    hooks = [
        module.register_forward_pre_hook(lambda module, args: entering.update({module: args[0]}))
        for module in model.embq_modules
    ]
    try:
        hidden_states = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            mm_encoder_outputs={"image": images},
            use_cache=False,
        ).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    patches = images.last_hidden_state  # (N, V*P, Dv)
    rows, columns = config.patch_grid
    views = (pixel_values.shape[1], rows, columns)
    weights = model.multi_modal_projector.pooling.weights(patches.reshape(-1, rows * columns, patches.shape[-1]))
    explanation = FlashSlothExplanation(pooling_weights=weights.reshape(-1, *views))
    if model.embq is None:
        return explanation

    num_images, tokens_per_image = images.pooler_output.shape[:2]
    spans = find_query_spans(
        input_ids,
        config,
        max_runs=max(check_placeholders(input_ids, num_images, tokens_per_image, config), 1),
        num_images=num_images,
        tokens_per_image=tokens_per_image,
    )
    attentions = [
        module.attention_over_patches(entering.get(module, hidden_states), patches, spans)  # (N, H, R*Q, V*P)
        for module in model.embq_modules
    ]
    attention = torch.stack(attentions).mean(dim=(0, 2))  # (N, R*Q, V*P)
    explanation.query_attention = attention.unflatten(1, (-1, config.num_query_tokens)).unflatten(3, views)
    return explanation


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
