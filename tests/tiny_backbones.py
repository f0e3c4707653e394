"""Tiny FlashSloths on any backbone, with random weights and a vocabulary of 64 ids."""

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig, set_seed

from transformers_flashsloth import FlashSlothConfig, FlashSlothForConditionalGeneration

IMAGE, QUERY, BASE, HEADER = 3, 4, 5, [6, 6]
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.0,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}


def small(model_type: str, sizes: dict, **changes) -> PreTrainedConfig:
    """A config of the type, with those of `sizes` that it has a word for."""
    config_class = CONFIG_MAPPING[model_type]
    words = set(config_class.__dataclass_fields__) | set(config_class.attribute_map)
    return config_class(**{name: value for name, value in sizes.items() if name in words} | changes)


def build(
    text: PreTrainedConfig, vision: PreTrainedConfig | None = None, **changes
) -> FlashSlothForConditionalGeneration:
    """A model in evaluation mode whose embedded query modules and queries count."""
    set_seed(0)
    choices = {
        "image_token_id": IMAGE,
        "query_token_id": QUERY,
        "query_init_token_id": BASE,
        "user_prefix_ids": HEADER,
        "num_query_tokens": 2,
        "pooling_window": 2,
        "embq_layer": 1,
        "embq_hidden_size": 32,
    } | changes
    vision = vision or small("siglip_vision_model", VISION)
    model = FlashSlothForConditionalGeneration(FlashSlothConfig(text_config=text, vision_config=vision, **choices))
    for module in model.model.embq_modules:
        torch.nn.init.normal_(module.up_proj.weight)
    return model.eval()


def inputs_of(model: FlashSlothForConditionalGeneration, *questions: list[int], views: int = 1) -> dict:
    """A left-padded batch of one image and one question a row."""
    config = model.config
    placeholders = [IMAGE] * (views * config.tokens_per_view)
    rows = [[7, 8, *placeholders, 9, *question, *[QUERY] * config.num_query_tokens, 10] for question in questions]
    length = max(map(len, rows))
    generator = torch.Generator().manual_seed(len(questions))
    return {
        "input_ids": torch.tensor([[0] * (length - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
        "pixel_values": torch.randn(len(rows), views, 3, *config.view_size, generator=generator),
    }


def row_of(inputs: dict, index: int) -> dict:
    """One row of a batch, without its padding."""
    real = inputs["attention_mask"][index].bool()
    return {
        "input_ids": inputs["input_ids"][index : index + 1, real],
        "pixel_values": inputs["pixel_values"][index : index + 1],
    }


def generate(model: FlashSlothForConditionalGeneration, inputs: dict, **options) -> torch.Tensor:
    """Five greedy tokens of each row."""
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0} | options
    return model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
