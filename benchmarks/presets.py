"""
FlashSloths at the sizes of published backbones: untrained, so that only their cost can be compared.

Sizes are those of each checkpoint's config.json on the Hub, under the name above it, as far as they differ from
transformers' defaults. What stands where a checkpoint has one for vision as well is its text part.
"""

from transformers_flashsloth import FlashSlothConfig

SIGLIP_SO400M = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
                 "num_hidden_layers": 26, "num_attention_heads": 16, "patch_size": 14, "image_size": 384,
                 "vision_use_head": False}  # fmt: skip
# google/siglip2-so400m-patch14-384 has the architecture of google/siglip-so400m-patch14-384: one entry stands for both.
# google/siglip2-base-patch16-384: 24 x 24 patches, of which windows of 3 x 3 leave 64 tokens.
SIGLIP2_BASE = SIGLIP_SO400M | {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                                "num_attention_heads": 12, "patch_size": 16}  # fmt: skip
QWEN3 = {"model_type": "qwen3", "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
         "num_hidden_layers": 28, "vocab_size": 151936, "max_position_embeddings": 40960,
         "rope_theta": 1e6, "tie_word_embeddings": True}  # fmt: skip
# Six of sixteen layers attend, the others convolve. `intermediate_size` is `block_ff_dim`, of which transformers takes
# two thirds, rounded up to 256, as the files say (`block_auto_adjust_ff_dim`).
LFM2 = {"model_type": "lfm2", "num_hidden_layers": 16, "num_key_value_heads": 8, "vocab_size": 65536,
        "max_position_embeddings": 128000, "rope_theta": 1e6, "tie_word_embeddings": True,
        "layer_types": ["full_attention" if index in (2, 5, 8, 10, 12, 14) else "conv" for index in range(16)]
        }  # fmt: skip
# Every fourth layer attends, the others carry the state of a gated delta rule.
QWEN3_5 = {"model_type": "qwen3_5_text", "num_hidden_layers": 24, "num_attention_heads": 8, "num_key_value_heads": 2,
           "head_dim": 256, "linear_num_key_heads": 16, "linear_num_value_heads": 16, "vocab_size": 248320,
           "max_position_embeddings": 262144, "tie_word_embeddings": True,
           "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
           "layer_types": ["full_attention" if index % 4 == 3 else "linear_attention" for index in range(24)]
           }  # fmt: skip
# Every sixth layer sees all positions, the others 512.
GEMMA3 = {"model_type": "gemma3_text", "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
          "sliding_window": 512, "vocab_size": 262144, "max_position_embeddings": 32768,
          "tie_word_embeddings": True}  # fmt: skip
TIED = {"lm_head_bias": False, "tie_word_embeddings": True, "query_init_token_id": None}
PLACEHOLDERS = {"image_token_id": 40000, "query_token_id": 40001, "user_prefix_ids": [40002, 40003, 40004]}


def _windows(num_layers: int) -> list[str]:
    return ["full_attention" if index % 6 == 5 else "sliding_attention" for index in range(num_layers)]


# Decoder and tower under the name of their row; "ours" is the release.
BACKBONES = {
    # google/gemma-3-270m-it
    "ours-gemma3-270m": (
        GEMMA3 | {"hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "layer_types": _windows(18)},
        SIGLIP2_BASE,
    ),
    # LiquidAI/LFM2-350M (LFM2.5-350M is of the same size)
    "ours-lfm2-350m": (
        LFM2 | {"hidden_size": 1024, "intermediate_size": 6656, "num_attention_heads": 16}, SIGLIP2_BASE,
    ),
    # Qwen/Qwen3-0.6B
    "ours-qwen3-0.6b": (QWEN3 | {"hidden_size": 1024, "intermediate_size": 3072}, SIGLIP2_BASE),
    # LiquidAI/LFM2-700M
    "ours-lfm2-700m": (
        LFM2 | {"hidden_size": 1536, "intermediate_size": 10240, "num_attention_heads": 24}, SIGLIP2_BASE,
    ),
    # Qwen/Qwen3.5-0.8B
    "ours-qwen3.5-0.8b": (QWEN3_5 | {"hidden_size": 1024, "intermediate_size": 3584}, SIGLIP2_BASE),
    # google/gemma-3-1b-it
    "ours-gemma3-1b": (
        GEMMA3 | {"hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "layer_types": _windows(26)},
        SIGLIP_SO400M,
    ),
    # LiquidAI/LFM2-1.2B (LFM2.5-1.2B is of the same size)
    "ours-lfm2-1.2b": (
        LFM2 | {"hidden_size": 2048, "intermediate_size": 12288, "num_attention_heads": 32}, SIGLIP_SO400M,
    ),
    # Qwen/Qwen3-1.7B
    "ours-qwen3-1.7b": (QWEN3 | {"hidden_size": 2048, "intermediate_size": 6144}, SIGLIP_SO400M),
    # HuggingFaceTB/SmolLM2-1.7B-Instruct
    "ours-smollm2-1.7b": (
        {"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
         "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 49152, "max_position_embeddings": 8192,
         "rope_theta": 130000.0, "tie_word_embeddings": True},
        SIGLIP_SO400M,
    ),
    # Qwen/Qwen3.5-2B
    "ours-qwen3.5-2b": (QWEN3_5 | {"hidden_size": 2048, "intermediate_size": 6144}, SIGLIP_SO400M),
    # HuggingFaceTB/SmolLM3-3B, whose sizes are the defaults of its class
    "ours-smollm3-3b": ({"model_type": "smollm3", "max_position_embeddings": 65536, "tie_word_embeddings": True},
                        SIGLIP_SO400M),
}  # fmt: skip
# What FlashSlothConfig takes.
PRESETS = {"ours": {}} | {
    name: TIED | PLACEHOLDERS | {"text_config": text, "vision_config": vision}
    for name, (text, vision) in BACKBONES.items()
}

TINY_TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
             "num_key_value_heads": 4, "head_dim": 16}  # fmt: skip
TINY_LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16,
               "linear_value_head_dim": 16}  # fmt: skip
TINY_VISION = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


def flashsloth_config(name: str, tiny: bool = False) -> FlashSlothConfig:
    """The config of a preset; a tiny one keeps the image's size and the vocabulary, and so all counts of tokens."""
    preset = dict(PRESETS[name])
    if tiny:
        preset["text_config"] = tiny_text(preset.get("text_config", {"model_type": "phi"}))
        preset["vision_config"] = preset.get("vision_config", SIGLIP_SO400M) | TINY_VISION
        preset |= {"embq_hidden_size": 32, "embq_layer": 1}
    return FlashSlothConfig(**preset)


def tiny_text(sizes: dict) -> dict:
    """Sizes of a decoder with narrow layers, three of them, and one at least of each kind that it has."""
    narrow = sizes | TINY_TEXT
    if "layer_types" in sizes:
        narrow["layer_types"] = [*dict.fromkeys(sizes["layer_types"]), *sizes["layer_types"]][:3]
    if "linear_num_key_heads" in sizes:
        narrow |= TINY_LINEAR
    return narrow
