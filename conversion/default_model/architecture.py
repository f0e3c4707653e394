"""The default model's numbers: FlashSloth's own architecture, small, and how its weights start."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PhiConfig, PreTrainedTokenizerBase, SiglipVisionConfig

from transformers_flashsloth import FlashSlothConfig, FlashSlothForConditionalGeneration

from .canvas import IMAGE_SIZE
from .scene import PATCH_SIZE
from .tokenizer import END, IMAGE, QUERY

WINDOWS = (2, 3, 4, 6, 12)
"""Patches along the pooling windows that it is trained with: 36, 16, 9, 4 and 1 tokens."""


def vision_config() -> SiglipVisionConfig:
    """A SigLIP tower of 2.3 M parameters for 96-pixel pictures in 144 patches."""
    return SiglipVisionConfig(
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=6,
        num_attention_heads=3,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )


def model_config(tokenizer: PreTrainedTokenizerBase, **choices: object) -> FlashSlothConfig:
    """The whole default: 16 tokens an image, 9 queries a question, a Phi decoder of four layers; or other `choices`."""
    text_config = PhiConfig(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=5,
        partial_rotary_factor=0.5,
        hidden_act="gelu_pytorch_tanh",  # Phi's own "gelu_new" in one kernel
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    fields = {
        "text_config": text_config,
        "vision_config": vision_config(),
        "image_token_id": tokenizer.convert_tokens_to_ids(IMAGE),
        "query_token_id": tokenizer.convert_tokens_to_ids(QUERY),
        "query_init_token_id": None,
        "user_prefix_ids": tokenizer.encode(f"{END}USER:", add_special_tokens=False),
        "embq_layer": 2,
        "embq_hidden_size": 384,
        "embq_num_heads": 12,
        "pooling_dropout": 0.0,
        "pooling_windows": list(WINDOWS),
    }
    return FlashSlothConfig(**fields | choices)


def attention_for(device: torch.device) -> str:
    """The fastest attention for training: on a CPU, SDPA's backward takes 1.6 times as long as eager's."""
    return "eager" if device.type == "cpu" else "sdpa"


@torch.no_grad()
def initialise(model: FlashSlothForConditionalGeneration) -> None:
    """Start weights at scales that suit a narrow model; at the usual 0.02 EmbQ stays dead for long.

    The tower's features have a standard deviation of about 5: what is made of them starts near the embeddings' 0.5.
    """
    core = model.model
    for part in (core.language_model.layers, *core.embq_modules, core.multi_modal_projector):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
    nn.init.normal_(core.language_model.embed_tokens.weight, std=0.5)
    nn.init.normal_(core.multi_modal_projector.linear_2.weight, std=0.01)
    for embq in core.embq_modules:
        nn.init.normal_(core.query_tokens.weight, std=0.5)
        nn.init.normal_(embq.up_proj.weight, std=0.02)
