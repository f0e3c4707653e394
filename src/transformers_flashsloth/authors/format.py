"""The authors' checkpoint format: the only file that knows their tensor names and their config.json."""

from transformers import PreTrainedConfig

# Beginning of a tensor's name in the authors' checkpoints -> in ours. Every tensor matches exactly one, either way.
AUTHORS_TO_OURS = {
    "model.vision_tower.vision_tower.vision_model.": "model.vision_tower.",
    "model.pooling.mlp.0.": "model.multi_modal_projector.pooling.hidden_proj.",
    "model.pooling.mlp.3.": "model.multi_modal_projector.pooling.score_proj.",
    "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
    "model.learnable_tokens.token": "model.query_tokens.weight",
    "model.lqformer.down_projector_learnable_text.": "model.embq.text_down_proj.",
    "model.lqformer.down_projector_image.": "model.embq.image_down_proj.",
    "model.lqformer.layers.0.t2q_attn.": "model.embq.question_attention.",
    "model.lqformer.layers.0.i2q_attn.": "model.embq.image_attention.",
    "model.lqformer.layers.0.ln_q.": "model.embq.query_norm.",
    "model.lqformer.layers.0.ln_text.": "model.embq.question_norm.",
    "model.lqformer.layers.0.ln_kv.": "model.embq.image_norm.",
    "model.lqformer.up_projector.": "model.embq.up_proj.",
    "model.embed_tokens.": "model.language_model.embed_tokens.",
    "model.layers.": "model.language_model.layers.",
    "model.final_layernorm.": "model.language_model.final_layernorm.",
    "lm_head.": "lm_head.",
}

ARCHITECTURE = "FlashSlothForCausalLM"
PROJECTOR = "mlp2x_gelu"
SELECTED_LAYER = -2
END_OF_TEXT_ID = 50256  # <|endoftext|>: beginning, padding and, in the authors' files only, end
END_OF_ANSWER_ID = 50296  # </s>

# Entries of their config.json that describe the decoder, under the names of `PhiConfig`.
TEXT_FIELDS = (
    "attention_dropout",
    "embd_pdrop",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "partial_rotary_factor",
    "qk_layernorm",
    "resid_pdrop",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "use_cache",
    "vocab_size",
)
VISION_FIELDS = (
    "attention_dropout",
    "hidden_act",
    "hidden_size",
    "image_size",
    "intermediate_size",
    "layer_norm_eps",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "patch_size",
)
# Of our config: these have no entry in the authors' format, and their code knows one value each.
FIXED_FIELDS = (
    "embq_hidden_size",
    "embq_layer",
    "image_size",
    "image_token_id",
    "lm_head_bias",
    "num_query_tokens",
    "pooling",
    "pooling_dropout",
    "pooling_window",
    "projector_hidden_act",
    "query_init_token_id",
    "query_token_id",
    "user_prefix_ids",
)


def to_our_name(authors_name: str) -> str:
    """Our name of a tensor of the authors; raises KeyError if it is none of theirs."""
    return _rename(authors_name, AUTHORS_TO_OURS)


def to_authors_name(our_name: str) -> str:
    """The authors' name of a tensor of ours; raises KeyError if their format has no place for it."""
    return _rename(our_name, {ours: authors for authors, ours in AUTHORS_TO_OURS.items()})


def _rename(name: str, prefixes: dict[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise KeyError(name)


def is_authors_config(config: dict) -> bool:
    """Whether the entries of a config.json are those of the authors' format."""
    return ARCHITECTURE in (config.get("architectures") or [])


def config_from_authors(config: dict) -> dict:
    """
    Translates the entries of the authors' config.json to those of [`FlashSlothConfig`].

    Raises:
        ValueError: if the entries describe a model that the release cannot build.
    """
    if config.get("mm_projector_type", PROJECTOR) != PROJECTOR:
        raise ValueError(f"`mm_projector_type` is {config['mm_projector_type']!r}; FlashSloth has {PROJECTOR!r}.")
    ours = {
        "model_type": "flashsloth",
        "architectures": ["FlashSlothForConditionalGeneration"],
        "text_config": {"model_type": "phi"}
        | {name: config[name] for name in TEXT_FIELDS if name in config}
        | {"bos_token_id": END_OF_TEXT_ID, "eos_token_id": END_OF_ANSWER_ID, "pad_token_id": END_OF_TEXT_ID},
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
    }
    selected = config.get("mm_vision_select_layer", SELECTED_LAYER)
    if "vision_config" in config:
        layers = range(config["vision_config"]["num_hidden_layers"])
        ours["vision_config"] = config["vision_config"] | {
            "num_hidden_layers": len(layers[: selected + 1]),  # the layers behind the selected one are dropped
            "vision_use_head": False,
        }
    elif selected != SELECTED_LAYER:
        raise ValueError(f"`mm_vision_select_layer` is {selected}; without a `vision_config` it must be -2.")
    if config.get("torch_dtype"):
        ours["dtype"] = config["torch_dtype"]
    return ours


def config_to_authors(config: PreTrainedConfig, image_hd: bool) -> dict:
    """
    The entries of config.json in the authors' format.

    Args:
        config ([`FlashSlothConfig`]): of the model.
        image_hd (`bool`): whether its images are read in high definition.

    Raises:
        ValueError: naming what the authors' format cannot express.
    """
    text, vision = config.text_config, config.vision_config
    if text.model_type != "phi" or vision.model_type != "siglip_vision_model":
        raise ValueError(
            f"The authors' format holds a phi decoder and a SigLIP vision tower, not {text.model_type!r} and "
            f"{vision.model_type!r}."
        )
    default = type(config)()
    required = {name: getattr(default, name) for name in FIXED_FIELDS} | {"embq_num_heads": text.num_attention_heads}
    for name, value in required.items():
        if getattr(config, name) != value:
            raise ValueError(f"The authors' format needs `{name}`={value}, but it is {getattr(config, name)}.")
    rope = dict(text.rope_parameters)
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"The authors' code knows no rotary embedding of the type {rope['rope_type']!r}.")

    authors = {name: getattr(text, name) for name in TEXT_FIELDS if hasattr(text, name)}
    authors |= {
        "architectures": [ARCHITECTURE],
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": END_OF_TEXT_ID,
        "image_aspect_ratio": "square",
        "image_hd": image_hd,
        "mm_hidden_size": vision.hidden_size,
        "mm_projector_type": PROJECTOR,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": SELECTED_LAYER,
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "model_type": "phi",
        "partial_rotary_factor": rope["partial_rotary_factor"],
        "rope_scaling": None,
        "rope_theta": rope["rope_theta"],
        "torch_dtype": str(config.dtype or "float32").removeprefix("torch."),
        "use_mm_proj": True,
    }
    fields = {name: getattr(vision, name) for name in VISION_FIELDS} | {"num_hidden_layers": config.num_vision_layers}
    if fields != {name: getattr(default.vision_config, name) for name in VISION_FIELDS}:
        authors["vision_config"] = fields | {"num_hidden_layers": config.num_vision_layers + 1}
    return dict(sorted(authors.items()))
