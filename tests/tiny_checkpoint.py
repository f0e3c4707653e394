"""A whole checkpoint with random weights, of 42 pixel views that become one token each and a context of 256."""

from pathlib import Path

from transformers import set_seed

from tests.phi_tokenizer import build_phi_tokenizer
from transformers_flashsloth import (
    FlashSlothConfig,
    FlashSlothForConditionalGeneration,
    FlashSlothImageProcessor,
    FlashSlothProcessor,
)

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}


def save_tiny_checkpoint(directory: Path) -> None:
    set_seed(0)
    config = FlashSlothConfig(
        text_config=SMALL | {"num_hidden_layers": 2, "max_position_embeddings": 256},
        vision_config=SMALL | {"num_hidden_layers": 1, "image_size": 42, "patch_size": 14},
        embq_layer=1,
        embq_hidden_size=32,
    )
    FlashSlothForConditionalGeneration(config).save_pretrained(directory)
    image_processor = FlashSlothImageProcessor(size={"height": 42, "width": 42})
    FlashSlothProcessor(image_processor, build_phi_tokenizer()).save_pretrained(directory)
