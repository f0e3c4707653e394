import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from tests.golden_model import IMAGE, QUERY, tiny_config
from transformers_flashsloth import FlashSlothProcessor
from transformers_flashsloth.model.placeholders import check_length, check_placeholders, shift


@pytest.mark.parametrize(
    ("rows", "num_images", "message"),
    [
        ([[IMAGE] * 9 + [5] * 9], 2, "2 images of 9 tokens each, 9 image tokens"),
        ([[IMAGE] * 9 + [5] * 9], 0, "0 images of 9 tokens each, 9 image tokens"),
        ([[IMAGE] * 8 + [5] * 10], 1, "1 images of 9 tokens each, 8 image tokens"),
        ([[IMAGE] * 8 + [5] * 2, [IMAGE] * 10], 2, "2 rows with a part of an image"),
        ([[QUERY] * 8 + [5]], 0, "1 rows .* not 9 tokens"),
        ([[QUERY] * 4 + [5] + [QUERY] * 5], 0, "1 rows .* not 9 tokens"),
    ],
)
def test_mismatches_are_named_with_their_numbers(rows, num_images, message):
    with pytest.raises(ValueError, match=message):
        check_placeholders(torch.tensor(rows), num_images, tiny_config(), tokens_per_image=9)


def test_the_fullest_row_counts():
    rows = [[IMAGE] * 9 + [5] + [QUERY] * 9 + [5] * 10, ([5] + [QUERY] * 9) * 2 + [5] * 9]
    assert check_placeholders(torch.tensor(rows), 1, tiny_config(), tokens_per_image=9) == (2, 9)


def test_a_sequence_beyond_the_context_is_refused():
    config = tiny_config()
    check_length(torch.zeros(1, 2048), None, config)
    with pytest.raises(ValueError, match=r"2049 positions long.* context is 2048"):
        check_length(torch.zeros(1, 2049), None, config)
    cache = SimpleNamespace(get_seq_length=lambda: 2048)
    with pytest.raises(ValueError, match="2049 positions"):
        check_length(torch.zeros(1, 1), cache, config)


def test_shift():
    mask = torch.tensor([[True, False, True]])
    assert shift(mask, 1).tolist() == [[False, True, False]]
    assert shift(mask, -1).tolist() == [[False, True, False]]
    assert shift(mask, 2).tolist() == [[False, False, True]]
    assert shift(mask, 5).tolist() == [[False] * 3]


def test_a_batch_that_travels_still_ignores_labels(tiny_checkpoint):
    """Pickled by a worker, copied, moved and cast."""
    processor = FlashSlothProcessor.from_pretrained(tiny_checkpoint)
    image = Image.new("RGB", (42, 42))
    batch = processor(image, "USER: <image>\nWhat?<learnable> ASSISTANT:", return_tensors="pt")
    placeholders = (batch["input_ids"] == batch.placeholder_ids[0]) | (batch["input_ids"] == batch.placeholder_ids[1])
    ways = [lambda x: pickle.loads(pickle.dumps(x)), copy.copy, copy.deepcopy, lambda x: x.to("cpu", torch.bfloat16)]
    for way in ways:
        there = way(batch)
        assert there.placeholder_ids == batch.placeholder_ids
        there["labels"] = there["input_ids"].clone()
        assert ((there["labels"] == -100) == placeholders).all() and placeholders.sum() == 10
