"""Every attention implementation of transformers, for the whole model or a part of it, gives the same numbers."""

import pytest
import torch
from transformers.utils import is_flash_attn_2_available

from tests.needs_gpu import needs_gpu
from tests.small_model import inputs_of, small_model
from transformers_flashsloth import FlashSlothForConditionalGeneration

INPUTS = inputs_of([0, 1, 2])
CHOICES = [
    "eager",
    "sdpa",
    "flex_attention",
    {"text_config": "eager", "vision_config": "sdpa"},
    {"text_config": "flex_attention", "vision_config": "eager"},
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("small")
    small_model().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    return logits(small_model())


def load(directory: str, choice: str | dict[str, str]) -> FlashSlothForConditionalGeneration:
    return FlashSlothForConditionalGeneration.from_pretrained(directory, attn_implementation=choice).eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(**INPUTS).logits[INPUTS["attention_mask"].bool()]


def of_parts(model) -> dict[str, str]:
    """What the decoder and the vision tower run."""
    parts = {"text_config": model.get_decoder(), "vision_config": model.model.vision_tower}
    return {name: part.config._attn_implementation for name, part in parts.items()}


def as_parts(choice: str | dict[str, str]) -> dict[str, str]:
    return choice if isinstance(choice, dict) else {"text_config": choice, "vision_config": choice}


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_chosen_on_loading(directory, expected, choice):
    model = load(directory, choice)
    assert of_parts(model) == as_parts(choice)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_chosen_at_any_time(directory, expected, choice):
    model = load(directory, "sdpa")
    model.set_attn_implementation(choice)
    assert of_parts(model) == as_parts(choice)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def test_a_part_alone_keeps_the_other(directory):
    model = load(directory, "sdpa")
    model.set_attn_implementation({"text_config": "eager"})
    assert of_parts(model) == {"text_config": "eager", "vision_config": "sdpa"}
    outputs = model(**INPUTS, output_attentions=True)
    torch.testing.assert_close(outputs.attentions[0].sum(-1)[0, :, -1], torch.ones(4))


@pytest.mark.parametrize("choice", ["fast", {"text_config": "fast", "vision_config": "sdpa"}], ids=str)
def test_an_unknown_one_is_refused(directory, choice):
    with pytest.raises(ValueError, match="fast"):
        load(directory, choice)
    model = load(directory, "sdpa")
    with pytest.raises(ValueError, match="fast"):
        model.set_attn_implementation(choice)


@pytest.mark.skipif(is_flash_attn_2_available(), reason="flash-attn is installed")
def test_a_missing_package_is_named(directory):
    with pytest.raises(ImportError, match=r"flash[-_]attn|[Ff]lash ?[Aa]ttention"):
        load(directory, "flash_attention_2")


@needs_gpu
@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_flash_attention_in_one_part(directory, expected, part):
    pytest.importorskip("flash_attn")
    choice = {"text_config": "sdpa", "vision_config": "sdpa"} | {part: "flash_attention_2"}
    model = load(directory, choice).to("cuda", torch.bfloat16)
    inputs = {name: tensor.to("cuda") for name, tensor in INPUTS.items()}
    with torch.no_grad():
        found = model(**inputs).logits[inputs["attention_mask"].bool()]
    assert of_parts(model) == choice
    torch.testing.assert_close(found.float().cpu(), expected, rtol=0.1, atol=0.3)
