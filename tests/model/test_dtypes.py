"""Any dtype, for the whole model or a part of it; pixels come in any."""

import pytest
import torch

from conversion.default_model.train import DEFAULT_CHECKPOINT
from tests.small_model import inputs_of, small_model
from transformers_flashsloth import FlashSlothForConditionalGeneration

INPUTS = inputs_of([0, 1, 2])


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("small")
    small_model().save_pretrained(path)
    return str(path)


@torch.no_grad()
def logits(model, **changes) -> torch.Tensor:
    return model(**INPUTS | changes).logits[INPUTS["attention_mask"].bool()]


def dtypes(module: torch.nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in module.parameters()}


@pytest.mark.parametrize(
    ("choice", "dtype"),
    [
        (torch.float32, torch.float32),
        ("bfloat16", torch.bfloat16),
        (torch.float16, torch.float16),
        ("auto", torch.bfloat16),
    ],
)
def test_the_default_model_in_any_dtype(choice, dtype):
    model = FlashSlothForConditionalGeneration.from_pretrained(DEFAULT_CHECKPOINT, dtype=choice).eval()
    assert dtypes(model) == {dtype}
    size, config = model.config.vision_config.image_size, model.config
    ids = [5] + [config.image_token_id] * config.tokens_per_view + [6, 7] + [config.query_token_id] * 9
    pixels = torch.rand(1, 1, 3, size, size)
    with torch.no_grad():
        found = model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits
    assert found.dtype == dtype
    assert found.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_pixels_are_cast(dtype):
    model = small_model()
    pixels = INPUTS["pixel_values"].to(torch.float16)
    expected = logits(model, pixel_values=pixels.float())
    torch.testing.assert_close(logits(model, pixel_values=pixels.to(dtype)), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_vision_tower_may_have_a_dtype_of_its_own(dtype):
    model = small_model().to(torch.bfloat16)
    model.model.vision_tower.to(dtype)
    expected = logits(small_model())
    assert (logits(model).float() - expected).abs().mean() / expected.abs().mean() < 0.1
    assert model.generate(**INPUTS, max_new_tokens=3, do_sample=False).shape[0] == 3


def test_a_dict_of_dtypes_means_its_main_one(directory):
    # As upstream has it: one dtype for all parts.
    choice = {"vision_config": torch.float32, "": torch.bfloat16}
    model = FlashSlothForConditionalGeneration.from_pretrained(directory, dtype=choice)
    assert dtypes(model) == {torch.bfloat16}
