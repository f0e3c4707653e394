"""A model of two decoder layers with random weights and a vocabulary of 64, for tests that load or trace it often."""

import torch
from transformers import set_seed

from transformers_flashsloth import FlashSlothConfig, FlashSlothForConditionalGeneration

PAD, IMAGE, QUERY, EOS = 0, 1, 2, 3
USER_PREFIX = [EOS, 4, 5]
NUM_QUERIES, IMAGE_TOKENS = 3, 4
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}

IMAGE_TURN = [*[IMAGE] * IMAGE_TOKENS, 6]
RUN = [*[QUERY] * NUM_QUERIES, 7, 8]
SECOND_TURN = [*USER_PREFIX, 40, 41, *RUN]
# Rows with one image, two images in two turns, and none.
ROWS = [
    [9, 10, *IMAGE_TURN, 20, 21, 22, *RUN],
    [9, 10, *IMAGE_TURN, 23, *RUN, 24, *USER_PREFIX, *IMAGE_TURN, 25, 26, *RUN],
    [9, 10, 27, 28, *RUN],
]
IMAGES_OF_ROWS = [1, 2, 0]


def small_config(**changes) -> FlashSlothConfig:
    ids = {"bos_token_id": PAD, "pad_token_id": PAD, "eos_token_id": EOS, "vocab_size": 64}
    choices = {
        "image_token_id": IMAGE,
        "query_token_id": QUERY,
        "num_query_tokens": NUM_QUERIES,
        "query_init_token_id": 11,
        "user_prefix_ids": USER_PREFIX,
        "embq_layer": 1,
        "embq_hidden_size": 32,
    } | changes
    return FlashSlothConfig(
        text_config=SMALL | ids | {"num_hidden_layers": 2, "max_position_embeddings": 256},
        vision_config=SMALL | {"num_hidden_layers": 1, "image_size": 24, "patch_size": 4, "vision_use_head": False},
        **choices,
    )


def small_model(**changes) -> FlashSlothForConditionalGeneration:
    """Float32, in evaluation mode, with weights large enough for images and questions to matter."""
    set_seed(0)
    model = FlashSlothForConditionalGeneration(small_config(**changes)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def inputs_of(rows: list[int]) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask` and `pixel_values` of these rows of `ROWS`, padded on the left."""
    length = max(len(ROWS[row]) for row in rows)
    ids = [[PAD] * (length - len(ROWS[row])) + ROWS[row] for row in rows]
    mask = [[0] * (length - len(ROWS[row])) + [1] * len(ROWS[row]) for row in rows]
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    num_images = sum(IMAGES_OF_ROWS[row] for row in rows)
    pixels = torch.randn((num_images, 1, 3, 24, 24), generator=torch.Generator().manual_seed(len(rows)))
    return inputs | ({"pixel_values": pixels} if num_images else {})
