"""
Rivals at their published sizes: those of each checkpoint's config.json and preprocessor_config.json on the Hub, under
the name in `Rival.hub`, as far as they differ from transformers' defaults. Comments say what was taken from elsewhere.
"""

from collections.abc import Callable
from typing import NamedTuple

from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from .lfm2_vl_images import Lfm2VlImages
from .presets import LFM2, QWEN3_5

HALF = [0.5, 0.5, 0.5]


class Rival(NamedTuple):
    """
    Attributes:
        hub: the checkpoint whose sizes these are.
        config: what `AutoConfig.for_model` takes.
        tiny: changes of its parts' configs for a model that only shows that the code runs.
        image_processor: makes its Pillow image processor, as no row here needs torchvision.
        image_tokens: the visual tokens of what the image processor returned.
        text_tokens: tokens of the chat template and of the marks around the image, besides the question.
        vision, compression, decoder: names of the modules of each stage.
        tables: names of embeddings besides the input embeddings, of which a decoding step reads a row a token.
        types_tokens: whether the model asks for `mm_token_type_ids`.
        unused: what the image processor returns for the model's processor, and not for the model.
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
    tables: tuple[str, ...] = ()
    types_tokens: bool = False
    unused: tuple[str, ...] = ()


TINY_TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
TINY_TOWER = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY_QWEN_TOWER = {"depth": 3, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "out_hidden_size": 64}
TINY_MROPE = {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [4, 2, 2]}
TINY_HYBRID = TINY_TEXT | {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16,
                           "linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
                           "rope_parameters": TINY_MROPE | {"rope_theta": 1e7}}  # fmt: skip


def _merged(pixels: dict) -> int:
    return int(pixels["image_grid_thw"].prod(-1).sum()) // 4


def _qwen_pixels() -> Qwen2VLImageProcessorPil:
    """Of Qwen3-VL and, with the same file, of Qwen3.5."""
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": 65536, "longest_edge": 16777216}, patch_size=16, image_mean=HALF, image_std=HALF
    )


def _qwen3_5(text: dict, vision: dict) -> dict:
    rope = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_interleaved": True,
            "mrope_section": [11, 11, 10]}  # fmt: skip
    return {
        "model_type": "qwen3_5",
        "text_config": QWEN3_5 | text | {"rope_parameters": rope},
        "vision_config": vision,
        "image_token_id": 248056,
        "tie_word_embeddings": True,
    }


QWEN3_5_0_8B = {"hidden_size": 1024, "intermediate_size": 3584}
QWEN_ROW = {
    "image_processor": _qwen_pixels, "image_tokens": _merged, "text_tokens": 10, "vision": "model.visual",
    "compression": ["model.visual.merger"], "types_tokens": True,
}  # fmt: skip


def _lfm2_5_vl(size: str, text: dict, vision: dict, split: bool) -> Rival:
    """
    Split, the default of its processor, an image of more than twice 512 x 512 / 2 pixels is read in tiles of 512 x 512
    and once as a whole; otherwise as a whole in at most 256 tokens, which the model card offers for speed.
    """
    return Rival(
        hub=f"LiquidAI/LFM2.5-VL-{size}",
        config={
            "model_type": "lfm2_vl",
            "text_config": LFM2 | text,
            "vision_config": {"model_type": "siglip2_vision_model", "patch_size": 16, "num_patches": 256,
                              "vision_use_head": False} | vision,
            "projector_hidden_size": 2048,
            "projector_use_layernorm": False,
        },
        tiny={
            "text_config": TINY_TEXT | {"layer_types": ["conv", "full_attention"]},
            "vision_config": TINY_TOWER,
            "projector_hidden_size": 64,
        },
        image_processor=lambda: Lfm2VlImages(split),
        image_tokens=lambda pixels: int(pixels["spatial_shapes"].prod(-1).sum()) // 4,
        text_tokens=16 if split else 11,  # split, each tile and the whole have a mark
        vision="model.vision_tower",
        compression=["model.multi_modal_projector"],
    )  # fmt: skip


def _minicpm_pixels():
    from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

    return MiniCPMV4_6ImageProcessorPil(max_slice_nums=9, scale_resolution=448, patch_size=14)


def _gemma_pixels():
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    return Gemma4ImageProcessorPil(max_soft_tokens=280)


def _smolvlm2(size: str, text: dict, vision: dict, scale: int, tokens: int) -> Rival:
    edge = vision["image_size"]
    return Rival(
        hub=f"HuggingFaceTB/SmolVLM2-{size}",
        config={
            "model_type": "smolvlm",
            "text_config": {"model_type": "llama", "vocab_size": 49280, "max_position_embeddings": 8192} | text,
            "vision_config": vision,
            "image_token_id": 49190,
            "scale_factor": scale,
        },
        tiny={"text_config": TINY_TEXT, "vision_config": TINY_TOWER},
        image_processor=lambda: SmolVLMImageProcessorPil(
            size={"longest_edge": 4 * edge}, max_image_size={"longest_edge": edge}
        ),
        image_tokens=lambda pixels: tokens * pixels["pixel_values"].shape[1],
        text_tokens=48,  # a mark and a position before each of 17 tiles, line ends, "User:", "Assistant:"
        vision="model.vision_model",
        compression=["model.connector"],
        decoder="model.text_model",
    )


SIGLIP2_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SIGLIP2_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
LFM2_350M = {"hidden_size": 1024, "intermediate_size": 6656, "num_attention_heads": 16}
LFM2_1_2B = {"hidden_size": 2048, "intermediate_size": 12288, "num_attention_heads": 32}

RIVALS = {
    "lfm2.5-vl-450m": _lfm2_5_vl("450M", LFM2_350M, SIGLIP2_BASE, split=True),
    "lfm2.5-vl-450m-unsplit": _lfm2_5_vl("450M", LFM2_350M, SIGLIP2_BASE, split=False),
    "smolvlm2-500m": _smolvlm2(
        "500M-Video-Instruct",
        {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15,
         "num_key_value_heads": 5, "rope_theta": 100000.0},
        SIGLIP2_BASE | {"image_size": 512, "patch_size": 16},
        scale=4, tokens=64,
    ),
    "qwen3.5-0.8b": Rival(
        hub="Qwen/Qwen3.5-0.8B",
        config=_qwen3_5(QWEN3_5_0_8B, {"depth": 12, "hidden_size": 768, "intermediate_size": 3072, "num_heads": 12,
                                       "out_hidden_size": 1024}),
        tiny={"text_config": TINY_HYBRID, "vision_config": TINY_QWEN_TOWER},
        **QWEN_ROW,
    ),
    "minicpm-v-4.6": Rival(
        hub="openbmb/MiniCPM-V-4.6",
        config={
            "model_type": "minicpmv4_6",
            "text_config": QWEN3_5 | QWEN3_5_0_8B,
            "vision_config": SIGLIP2_SO400M | {"image_size": 980, "patch_size": 14},
            "image_size": 1120,
            "image_token_id": 248056,  # any does
            "tie_word_embeddings": True,
        },
        tiny={"text_config": {**TINY_HYBRID, "rope_parameters": {"rope_type": "default", "rope_theta": 1e7}},
              "vision_config": TINY_TOWER, "insert_layer_id": 0},
        image_processor=_minicpm_pixels,
        image_tokens=lambda pixels: int(pixels["target_sizes"].prod(-1).sum()) // 16,
        text_tokens=23,  # "<image_id>0</image_id>", marks around the whole and four slices, the turns
        vision="model.vision_tower",
        compression=["model.vision_tower.vit_merger", "model.merger"],
        unused=("grids", "num_patches_per_image"),
    ),
    "fastvlm-1.5b": Rival(
        hub="KamilaMila/FastVLM-1.5B",
        config={
            "model_type": "fast_vlm",
            "text_config": {"model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960,
                            "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
                            "rope_theta": 1e6, "vocab_size": 151936},
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
    "lfm2.5-vl-1.6b": _lfm2_5_vl("1.6B", LFM2_1_2B, SIGLIP2_SO400M, split=True),
    "lfm2.5-vl-1.6b-unsplit": _lfm2_5_vl("1.6B", LFM2_1_2B, SIGLIP2_SO400M, split=False),
    # The file was not at hand. 24 layers of 2048, 1.88 B parameters of text and the mergers' width are as its users
    # cite them; the feed-forward width and heads follow from these; the tower is assumed to be that of Qwen3.5-4B.
    "qwen3.5-2b": Rival(
        hub="Qwen/Qwen3.5-2B",
        config=_qwen3_5({"hidden_size": 2048, "intermediate_size": 6144},
                        {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
                         "out_hidden_size": 2048}),
        tiny={"text_config": TINY_HYBRID, "vision_config": TINY_QWEN_TOWER},
        **QWEN_ROW,
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
            "text_config": TINY_TEXT | {"num_hidden_layers": 3, "rope_scaling": TINY_MROPE},
            "vision_config": TINY_QWEN_TOWER | {"deepstack_visual_indexes": [0, 1, 2]},
        },
        **QWEN_ROW | {"compression": ["model.visual.merger", "model.visual.deepstack_merger_list.*"]},
    ),
    "smolvlm2-2.2b": _smolvlm2(
        "2.2B-Instruct",
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32,
         "num_key_value_heads": 32, "rope_theta": 130000.0},
        {"intermediate_size": 4304, "num_hidden_layers": 27, "image_size": 384, "patch_size": 14},
        scale=3, tokens=81,
    ),
    # Its default budget of 280 tokens. The audio tower, which no image goes through, is left out. The tower's sizes are
    # the defaults of transformers' class, which names this checkpoint as theirs; clamps of its linears are left out.
    "gemma-4-e2b": Rival(
        hub="google/gemma-4-E2B-it",
        config={
            "model_type": "gemma4",
            "text_config": {
                "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 35, "num_attention_heads": 8,
                "num_key_value_heads": 1, "head_dim": 256, "num_kv_shared_layers": 20, "use_double_wide_mlp": True,
                "hidden_size_per_layer_input": 256, "final_logit_softcapping": 30.0, "sliding_window": 512,
                "layer_types": ["full_attention" if index % 5 == 4 else "sliding_attention" for index in range(35)],
            },
            "vision_config": {},
            "audio_config": None,
            "tie_word_embeddings": True,
        },
        tiny={
            "text_config": TINY_TEXT | {"layer_types": ["sliding_attention", "full_attention"], "global_head_dim": 16,
                                        "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8},
            "vision_config": TINY_TOWER | {"num_key_value_heads": 4, "head_dim": 12},
        },
        image_processor=_gemma_pixels,
        image_tokens=lambda pixels: int(sum(pixels["num_soft_tokens_per_image"])),
        text_tokens=13,
        vision="model.vision_tower",
        compression=["model.embed_vision"],
        tables=("model.language_model.embed_tokens_per_layer",),
        types_tokens=True,
        unused=("num_soft_tokens_per_image",),
    ),
}  # fmt: skip
