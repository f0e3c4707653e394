"""
What a user would pick instead, at its published size. Sizes are those of each checkpoint's config.json and
preprocessor_config.json on the Hub, under the name in `Rival.hub`, as far as they differ from transformers' defaults.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from .building import build
from .subjects import QUESTION_TOKENS, Subject, text_ids

HALF = [0.5, 0.5, 0.5]
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
QWEN2_1_5B = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
              "num_key_value_heads": 2, "rope_theta": 1e6, "vocab_size": 151936}  # fmt: skip


class Rival(NamedTuple):
    """
    Attributes:
        hub: the checkpoint whose sizes these are.
        config: what `AutoConfig.for_model` takes.
        tiny: changes of its `text_config` and `vision_config` for a model that only shows that the code runs.
        image_processor: makes its Pillow image processor, as no row here needs torchvision.
        image_tokens: the visual tokens of what the image processor returned.
        text_tokens: tokens of the chat template and of the marks around the image, besides the question.
        vision, compression, decoder: names of the modules of each stage.
    """

    hub: str
    config: dict
    tiny: dict
    image_processor: Callable
    image_tokens: Callable[[dict], int]
    text_tokens: int
    vision: str
    compression: list[str]
    decoder: str = "model.language_model"
    types_tokens: bool = False


def _merged(pixels: dict) -> int:
    return int(pixels["image_grid_thw"].prod(-1).sum()) // 4


TINY_TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
TINY_TOWER = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}

RIVALS = {
    "qwen2-vl-2b": Rival(
        hub="Qwen/Qwen2-VL-2B-Instruct",
        config={
            "model_type": "qwen2_vl",
            "text_config": QWEN2_1_5B | {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
            "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16},
            "tie_word_embeddings": True,
        },
        tiny={
            "text_config": TINY_TEXT | {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}},
            "vision_config": {"depth": 2, "embed_dim": 64, "hidden_size": 64, "num_heads": 4},
        },
        image_processor=lambda: Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 12845056}),
        image_tokens=_merged,
        text_tokens=21,
        vision="model.visual",
        compression=["model.visual.merger"],
        types_tokens=True,
    ),
    "qwen3-vl-2b": Rival(
        hub="Qwen/Qwen3-VL-2B-Instruct",
        config={
            "model_type": "qwen3_vl",
            "text_config": {
                "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
                "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "rope_theta": 5e6,
                "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [24, 20, 20]},
            },
            "vision_config": {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
                              "out_hidden_size": 2048, "deepstack_visual_indexes": [5, 11, 17]},
            "tie_word_embeddings": True,
        },
        tiny={
            "text_config": TINY_TEXT | {"num_hidden_layers": 3, "rope_scaling": {
                "rope_type": "default", "mrope_interleaved": True, "mrope_section": [4, 2, 2]}},
            "vision_config": {"depth": 3, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4,
                              "out_hidden_size": 64, "deepstack_visual_indexes": [0, 1, 2]},
        },
        image_processor=lambda: Qwen2VLImageProcessorPil(
            size={"shortest_edge": 65536, "longest_edge": 16777216}, patch_size=16, image_mean=HALF, image_std=HALF
        ),
        image_tokens=_merged,
        text_tokens=10,
        vision="model.visual",
        compression=["model.visual.merger", "model.visual.deepstack_merger_list.*"],
        types_tokens=True,
    ),
    "internvl3-2b": Rival(
        hub="OpenGVLab/InternVL3-2B-hf",
        config={
            "model_type": "internvl",
            "text_config": QWEN2_1_5B | {"model_type": "qwen2", "vocab_size": 151674},
            "vision_config": {"attention_bias": True},
            "tie_word_embeddings": False,
        },
        tiny={"text_config": TINY_TEXT, "vision_config": TINY_TOWER},
        image_processor=lambda: GotOcr2ImageProcessorPil(
            size={"height": 448, "width": 448}, crop_to_patches=True, **IMAGENET
        ),
        image_tokens=lambda pixels: 256 * len(pixels["pixel_values"]),
        text_tokens=11,
        vision="model.vision_tower",
        compression=["model.multi_modal_projector"],
    ),
    "smolvlm2-2.2b": Rival(
        hub="HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        config={
            "model_type": "smolvlm",
            "text_config": {
                "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
                "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 49280, "rope_theta": 130000.0,
                "max_position_embeddings": 8192,
            },
            "vision_config": {"intermediate_size": 4304, "num_hidden_layers": 27, "image_size": 384, "patch_size": 14},
            "image_token_id": 49190,
            "scale_factor": 3,
        },
        tiny={"text_config": TINY_TEXT, "vision_config": TINY_TOWER},
        image_processor=lambda: SmolVLMImageProcessorPil(
            size={"longest_edge": 1536}, max_image_size={"longest_edge": 384}
        ),
        image_tokens=lambda pixels: 81 * pixels["pixel_values"].shape[1],
        text_tokens=48,  # a mark and a position before each of 17 tiles, line ends, "User:", "Assistant:"
        vision="model.vision_model",
        compression=["model.connector"],
        decoder="model.text_model",
    ),
    "fastvlm-1.5b": Rival(
        hub="KamilaMila/FastVLM-1.5B",
        config={
            "model_type": "fast_vlm",
            "text_config": QWEN2_1_5B | {"model_type": "qwen2"},
            "image_token_index": 151646,
        },  # the tower is the config class's default, timm's fastvit_mci3
        tiny={"text_config": TINY_TEXT},
        image_processor=lambda: CLIPImageProcessorPil(
            size={"shortest_edge": 1024}, crop_size={"height": 1024, "width": 1024}, image_mean=[0.0] * 3,
            image_std=[1.0] * 3,
        ),
        image_tokens=lambda pixels: 256 * len(pixels["pixel_values"]),
        text_tokens=21,
        vision="model.vision_tower",
        compression=["model.multi_modal_projector"],
    ),
    "paligemma-3b-224": Rival(
        hub="google/paligemma-3b-pt-224",
        config={
            "model_type": "paligemma",
            "text_config": {
                "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
                "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 257216,
            },
            "vision_config": {
                "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
                "num_hidden_layers": 27, "num_attention_heads": 16, "patch_size": 14, "image_size": 224,
                "vision_use_head": False,
            },
            "image_token_index": 257152,
        },
        tiny={"text_config": TINY_TEXT, "vision_config": TINY_TOWER, "projection_dim": 64, "hidden_size": 64},
        image_processor=lambda: SiglipImageProcessorPil(
            size={"height": 224, "width": 224}, resample=3, image_mean=HALF, image_std=HALF
        ),
        image_tokens=lambda pixels: 256,
        text_tokens=2,  # <bos> and the newline that ends a prompt
        vision="model.vision_tower",
        compression=["model.multi_modal_projector"],
    ),
}  # fmt: skip


def rival_config(rival: Rival, tiny: bool):
    """The rival's config; a tiny one keeps image sizes and vocabulary, and so all counts of tokens."""
    values = dict(rival.config)
    for name, change in rival.tiny.items() if tiny else ():
        values[name] = {**values.get(name, {}), **change} if isinstance(change, dict) else change
    return AutoConfig.for_model(**values)


def build_rival(name: str, device: str, dtype: torch.dtype, tiny: bool) -> Subject:
    """The subject of a rival with random weights."""
    rival = RIVALS[name]
    config = rival_config(rival, tiny)
    model = build(lambda: AutoModelForImageTextToText.from_config(config, dtype=dtype), device)
    image_processor = rival.image_processor()
    compression = []
    for path in rival.compression:
        module = model.get_submodule(path.removesuffix(".*"))
        compression += list(module) if path.endswith(".*") else [module]

    def read_image(image) -> dict:
        pixels = dict(image_processor(image, return_tensors="pt"))
        pixels.pop("num_patches", None)  # for InternVL's processor, not for its model
        return pixels

    def prompt(pixels: dict) -> torch.Tensor:
        half = math.ceil(rival.text_tokens / 2)
        image = [config.image_token_id] * rival.image_tokens(pixels)
        return torch.tensor([text_ids(half) + image + text_ids(rival.text_tokens - half + QUESTION_TOKENS)])

    return Subject(
        model=model,
        read_image=read_image,
        prompt=prompt,
        image_token_id=config.image_token_id,
        modules={
            "vision": [model.get_submodule(rival.vision)],
            "compression": compression,
            "decoder": [model.get_submodule(rival.decoder), model.lm_head],
        },
        embeddings=model.get_input_embeddings(),
        device=device,
        dtype=dtype,
        types_tokens=rival.types_tokens,
    )
