"""Every family of causal language models that transformers has: sizes of a small one, and which are refused."""

from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from tests.tiny_backbones import TEXT, VISION, small

FAMILIES = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) & set(MODEL_MAPPING_NAMES))

SIZES = TEXT | {
    "num_hidden_layers": 4,
    # experts
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "moe_topk": 2,
    "moe_num_experts": 4,
    "first_k_dense_replace": 1,
    "expert_ffn_hidden_size": 16,
    "zero_expert_num": 2,
    "moe_shared_expert_intermediate_size": 16,
    "shared_experts_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "dense_intermediate_size": 32,
    "router_hidden_size": 16,
    # attention of low rank, and over chosen positions
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "o_lora_rank": 16,
    "o_groups": 2,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    # Longer than the rows: upstream's own choice of positions differs with padding (DeepSeek-V3.2, GLM-5).
    "index_topk": 64,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_block_size": 4,
    "index_topk_blocks": 2,
    "window_size": 4,
    # linear attention and state spaces
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "ssm_state_size": 8,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "mamba_n_heads": 4,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
    # older words
    "ffn_dim": 32,
    "n_inner": 32,
    "word_embed_proj_dim": 32,
    "rotary_dim": 4,
    "hc_lowrank": 4,
}
MUSICGEN = {"text_encoder": {"model_type": "t5"}, "audio_encoder": {"model_type": "encodec"}, "decoder": {}}
ALTERNATING = ["sliding_attention", "full_attention"] * 2
LINEAR = ["linear_attention", "full_attention"] * 2
# Attention of low rank has keys and values of its own for every head.
LOW_RANK = (
    "axk1",
    "axk2",
    "bailing_hybrid",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "dots3_note_text",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "hy_v4",
    "kimi_linear",
    "longcat_flash",
    "youtu",
)
CHANGES = {
    "bailing_hybrid": {"layer_group_size": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": LINEAR},
    # Upstream minds its window in a static cache only.
    "moshi": {"sliding_window": 64},
    "musicgen": MUSICGEN,
    "musicgen_melody": {
        "text_encoder": {"model_type": "t5"},
        "audio_encoder": {"model_type": "encodec"},
        "decoder": {},
    },
    "nemotron_h": {"n_groups": 2, "layers_block_type": ["mamba", "attention", "moe", "attention"]},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
    },
    "dbrx": {
        "d_model": 32,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "git": {"vision_config": VISION},
    "phi4_multimodal": {"vision_config": VISION, "audio_config": {"hidden_size": 32, "num_blocks": 1}},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "dots3_note_text": {
        "head_dim": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "gemma2": {"layer_types": ALTERNATING},
    "gemma3_text": {"layer_types": ALTERNATING},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 2},
    "qwen3": {"tie_word_embeddings": True},
    "qwen3_5_text": {"layer_types": LINEAR},
    "qwen3_5_moe_text": {"layer_types": LINEAR},
    "qwen3_next": {"layer_types": LINEAR},
    "reformer": {"is_decoder": True, "axial_pos_shape": [8, 16], "axial_pos_embds_dim": [16, 16]},
    "xlnet": {"d_head": 8},
    "zaya": {"num_experts_per_tok": 1},
}

# Reason of the refusal, and whom it meets. What is not here works.
REFUSED = {
    "it is an encoder-decoder": (
        "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart prophetnet whisper"
    ),
    "is a model of several parts": (
        "dots3_note emu3 fuyu gemma3 gemma3n gemma4 gemma4_unified got_ocr2 llama4 mllama moss_transcribe_diarize "
        "musicgen musicgen_melody qwen3_5 qwen3_5_moe qwen4_exp"
    ),
    # Encoders that can be made to decode, XLNet, Reformer; HRM goes round its layers, LongCat's have two attentions.
    r"has no list of its \d+ layers": (
        "bert bert-generation big_bird camembert data2vec-text electra ernie git hrm_text longcat_flash megatron-bert "
        "reformer rembert roberta roberta-prelayernorm roc_bert roformer xlm xlm-roberta xlm-roberta-xl xlnet xmod"
    ),
    "it does not hand keyword arguments on to its layers": ("codegen falcon gpt_neo gpt_neox_japanese gptj openai-gpt"),
    "not one stream of hidden states enters its layers": "deepseek_v4 hy_v4 qwen4_exp_text",
    "does not say `max_position_embeddings`": "bloom cpmant mpt recurrent_gemma",
    "does not say `num_attention_heads`": "falcon_mamba mamba mamba2 rwkv xlstm",
    "does not say `hidden_size`": "blt",
    "it looks tokens up again for every layer": "gemma3n_text gemma4_text",
    "in a way of its own": "ctrl inkling2_text inkling_text minicpm3",
    "it takes no cache but its own": "minimax",
    "its head has layers of its own": "modernbert-decoder",
    "it scales the embeddings only when it looks them up itself": "falcon_h1",
}
REFUSED = {family: reason for reason, families in REFUSED.items() for family in families.split()}


def config_of(family: str) -> PreTrainedConfig:
    """A small text config of the family."""
    sizes = SIZES | ({"num_key_value_heads": 4} if family in LOW_RANK else {})
    return small(family, sizes, **CHANGES.get(family, {}))
