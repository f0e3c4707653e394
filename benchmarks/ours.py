"""FlashSloth, FlashSloths on other backbones, and the floor: the same work on stock parts alone."""

from functools import partial

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

from transformers_flashsloth import FlashSlothConfig, FlashSlothForConditionalGeneration, FlashSlothImageProcessor

from .building import build, share
from .subjects import QUESTION_TOKENS, Subject, text_ids

# The released template puts 32 tokens before the image, a newline behind it, and " ASSISTANT:" behind the queries.
TOKENS_BEFORE_IMAGE = 32
TOKENS_AFTER_QUERIES = 5

SIGLIP_SO400M = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
                 "num_hidden_layers": 26, "num_attention_heads": 16, "patch_size": 14, "image_size": 384,
                 "vision_use_head": False}  # fmt: skip
# google/siglip2-base-patch16-384: 24 x 24 patches, of which windows of 3 x 3 leave 64 tokens.
SIGLIP2_BASE = SIGLIP_SO400M | {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                                "num_attention_heads": 12, "patch_size": 16}  # fmt: skip
QWEN3 = {"model_type": "qwen3", "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
         "num_hidden_layers": 28, "vocab_size": 151936, "max_position_embeddings": 40960,
         "rope_theta": 1e6, "tie_word_embeddings": True}  # fmt: skip
TIED = {"lm_head_bias": False, "tie_word_embeddings": True, "query_init_token_id": None}
PLACEHOLDERS = {"image_token_id": 40000, "query_token_id": 40001, "user_prefix_ids": [40002, 40003, 40004]}

# Backbones of FlashSlothConfig under the name of their row; sizes from each checkpoint's config.json on the Hub.
# SigLIP so400m stands for SigLIP 2 so400m at the same patch and image size: both have one architecture.
PRESETS = {
    "ours": {},
    # Qwen/Qwen3-1.7B and google/siglip2-so400m-patch14-384
    "ours-qwen3-1.7b": TIED | PLACEHOLDERS | {
        "text_config": QWEN3 | {"hidden_size": 2048, "intermediate_size": 6144}, "vision_config": SIGLIP_SO400M,
    },
    # Qwen/Qwen3-0.6B and google/siglip2-base-patch16-384
    "ours-qwen3-0.6b": TIED | PLACEHOLDERS | {
        "text_config": QWEN3 | {"hidden_size": 1024, "intermediate_size": 3072}, "vision_config": SIGLIP2_BASE,
    },
    # HuggingFaceTB/SmolLM2-1.7B-Instruct and google/siglip-so400m-patch14-384
    "ours-smollm2-1.7b": TIED | PLACEHOLDERS | {
        "text_config": {"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192,
                        "num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 32,
                        "vocab_size": 49152, "max_position_embeddings": 8192, "rope_theta": 130000.0,
                        "tie_word_embeddings": True},
        "vision_config": SIGLIP_SO400M,
    },
}  # fmt: skip
TINY_TEXT = {"model_type": "phi", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
             "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16}  # fmt: skip
TINY_VISION = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


def flashsloth_config(name: str, tiny: bool = False) -> FlashSlothConfig:
    """The config of a preset; a tiny one keeps the image's size and the vocabulary, and so all counts of tokens."""
    preset = dict(PRESETS[name])
    if tiny:
        preset["text_config"] = {**TINY_TEXT, **preset.get("text_config", {}), **TINY_TEXT}
        preset["text_config"]["model_type"] = PRESETS[name].get("text_config", TINY_TEXT)["model_type"]
        preset["vision_config"] = preset.get("vision_config", SIGLIP_SO400M) | TINY_VISION
        preset |= {"embq_hidden_size": 32, "embq_layer": 1}
    return FlashSlothConfig(**preset)


def build_flashsloth(name: str, device: str, dtype: torch.dtype, tiny: bool) -> FlashSlothForConditionalGeneration:
    config = flashsloth_config(name, tiny)
    return build(lambda: AutoModelForImageTextToText.from_config(config, dtype=dtype), device)


def ask_flashsloth(model: FlashSlothForConditionalGeneration, device: str, dtype: torch.dtype, hd: bool) -> Subject:
    """The subject of a built model, with one view an image or five."""
    core = model.model
    modules = {
        "vision": [core.vision_tower],
        "compression": [core.multi_modal_projector, core.embq],
        "decoder": [core.language_model, model.lm_head],
    }
    return Subject(
        model=model,
        read_image=_image_reader(model.config, hd),
        prompt=partial(flashsloth_prompt, model.config),
        image_token_id=model.config.image_token_id,
        modules=modules,
        embeddings=model.get_input_embeddings(),
        device=device,
        dtype=dtype,
    )


def flashsloth_prompt(
    config: FlashSlothConfig, pixels: dict[str, torch.Tensor], question_tokens: int = QUESTION_TOKENS
) -> torch.Tensor:
    """Ids `(1, L)` of the released template with one image of `pixels["pixel_values"]` `(1, V, 3, H, W)`."""
    image = [config.image_token_id] * (pixels["pixel_values"].shape[1] * config.tokens_per_view)
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
