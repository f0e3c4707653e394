"""FlashSloth, FlashSloths on other backbones, and the floor: the same work on stock parts alone."""

from functools import partial

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

from transformers_flashsloth import FlashSlothConfig, FlashSlothForConditionalGeneration, FlashSlothImageProcessor

from .building import build, share
from .presets import flashsloth_config
from .subjects import QUESTION_TOKENS, Subject, text_ids

# The released template puts 32 tokens before the image, a newline behind it, and " ASSISTANT:" behind the queries.
TOKENS_BEFORE_IMAGE = 32
TOKENS_AFTER_QUERIES = 5


def build_flashsloth(name: str, device: str, dtype: torch.dtype, tiny: bool) -> FlashSlothForConditionalGeneration:
    config = flashsloth_config(name, tiny)
    return build(lambda: AutoModelForImageTextToText.from_config(config, dtype=dtype), device)


def ask_flashsloth(
    model: FlashSlothForConditionalGeneration, device: str, dtype: torch.dtype, hd: bool, window: int | None = None
) -> Subject:
    """The subject of a built model, with one view an image or five, and square windows of its own size or another."""
    core = model.model
    modules = {
        "vision": [core.vision_tower],
        "compression": [core.multi_modal_projector, core.embq],
        "decoder": [core.language_model, model.lm_head],
    }
    return Subject(
        model=model,
        read_image=_image_reader(model.config, hd),
        prompt=partial(flashsloth_prompt, model.config, window=window),
        image_token_id=model.config.image_token_id,
        modules=modules,
        embeddings=model.get_input_embeddings(),
        device=device,
        dtype=dtype,
    )


def flashsloth_prompt(
    config: FlashSlothConfig,
    pixels: dict[str, torch.Tensor],
    question_tokens: int = QUESTION_TOKENS,
    window: int | None = None,
) -> torch.Tensor:
    """
    Ids `(1, L)` of the released template with one image of `pixels["pixel_values"]` `(1, V, 3, H, W)`; from how many
    stand for the image the model tells the window.
    """
    tokens = {size: count for count, size in config.windows.items()}  # a view's, by window
    tokens_per_view = config.tokens_per_view if window is None else tokens[window, window]
    image = [config.image_token_id] * (pixels["pixel_values"].shape[1] * tokens_per_view)
    queries = [config.query_token_id] * config.num_query_tokens
    before, question = text_ids(TOKENS_BEFORE_IMAGE), text_ids(1 + question_tokens)
    return torch.tensor([before + image + question + queries + text_ids(TOKENS_AFTER_QUERIES)])


def _image_reader(config: FlashSlothConfig, hd: bool):
    height, width = config.view_size
    return partial(FlashSlothImageProcessor(image_hd=hd, size={"height": height, "width": width}), return_tensors="pt")


class Floor(nn.Module):
    """
    What no FlashSloth can go below: its vision tower and its decoder as transformers ships them, called directly, the
    mean of each window of patches, and the projector's two linears. It shares the weights of `model`.
    """

    def __init__(self, model: FlashSlothForConditionalGeneration):
        super().__init__()
        self.config = model.config
        core = model.model
        with torch.device("meta"):
            vision = AutoModel.from_config(model.config.vision_config, dtype=model.dtype)
            decoder = AutoModelForCausalLM.from_config(model.config.text_config, dtype=model.dtype)
        vision.post_layernorm = nn.Identity()
        self.vision_tower = share(vision, core.vision_tower)
        projector = core.multi_modal_projector
        self.projector = nn.Sequential(projector.linear_1, projector.act, projector.linear_2)
        self.decoder = decoder
        self.decoder.model = share(decoder.model, core.language_model)
        self.decoder.lm_head = model.lm_head
        self.decoder.eval()

    def visual_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(N, V, 3, H, W)` to `(N, V*T, D)`."""
        patches = self.vision_tower(pixel_values.flatten(0, 1)).last_hidden_state  # (N*V, P, Dv)
        (rows, columns), (height, width) = self.config.patch_grid, self.config.window
        windows = patches.unflatten(1, (rows // height, height, columns // width, width))
        pooled = windows.mean((2, 4)).flatten(1, 2)  # (N*V, T, Dv)
        return self.projector(pooled).unflatten(0, (-1, pixel_values.shape[1])).flatten(1, 2)

    def generate(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None = None, **kwargs):
        """The decoder's own `generate`, over embeddings in which every row has its image at the same place."""
        if pixel_values is None:
            return self.decoder.generate(input_ids=input_ids, **kwargs)
        embeddings = self.decoder.get_input_embeddings()(input_ids)
        tokens, start = self.visual_tokens(pixel_values), TOKENS_BEFORE_IMAGE
        parts = [embeddings[:, :start], tokens, embeddings[:, start + tokens.shape[1] :]]
        return self.decoder.generate(inputs_embeds=torch.cat(parts, dim=1), **kwargs)


def ask_floor(floor: Floor, device: str, dtype: torch.dtype, hd: bool) -> Subject:
    """The subject of a floor; its pooling counts among what lies outside of all stages."""
    decoder = [floor.decoder.model, floor.decoder.lm_head]
    return Subject(
        model=floor,
        read_image=_image_reader(floor.config, hd),
        prompt=partial(flashsloth_prompt, floor.config),
        image_token_id=floor.config.image_token_id,
        modules={"vision": [floor.vision_tower], "compression": [floor.projector], "decoder": decoder},
        embeddings=floor.decoder.get_input_embeddings(),
        device=device,
        dtype=dtype,
    )
