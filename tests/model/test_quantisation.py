"""Quantisation by transformers' own configs: the decoder's linears are quantised, the path of the image is not."""

import copy
import importlib.util

import pytest
import torch
from torch import nn
from transformers import BitsAndBytesConfig, QuantoConfig, TorchAoConfig

from tests.small_model import QUERY, inputs_of, small_model
from tests.tiny_backbones import TEXT, VISION, build, small
from transformers_flashsloth import FlashSlothForConditionalGeneration
from transformers_flashsloth.model.pretrained_flashsloth import KEPT, SKIP_LISTS, UNPACKABLE, decoder_only

INPUTS = inputs_of([0, 1, 2])


def needs(package: str):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def torchao_config(bits: int) -> TorchAoConfig:
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    if bits == 8:
        return TorchAoConfig(Int8WeightOnlyConfig())
    return TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)))


def packed_int4_config() -> TorchAoConfig:
    """Two values in a byte, with torch's own kernel for CPUs."""
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    return TorchAoConfig(PrototypeInt4WeightOnlyConfig(group_size=32, set_inductor_config=False))


def quanto_is_here() -> bool:
    return importlib.util.find_spec("optimum") is not None and importlib.util.find_spec("optimum.quanto") is not None


# Name, what makes the config, how far the mean logit may move, and whether the result can be saved.
METHODS = [
    pytest.param(lambda: torchao_config(8), 0.05, True, marks=needs("torchao"), id="torchao int8"),
    pytest.param(lambda: torchao_config(4), 0.4, True, marks=needs("torchao"), id="torchao int4"),
    pytest.param(packed_int4_config, 0.4, False, marks=needs("torchao"), id="torchao packed int4"),
    pytest.param(
        lambda: BitsAndBytesConfig(load_in_8bit=True), 0.05, True, marks=needs("bitsandbytes"), id="bitsandbytes int8"
    ),
    pytest.param(
        lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        0.4,
        True,
        marks=needs("bitsandbytes"),
        id="bitsandbytes nf4",
    ),
    pytest.param(
        lambda: QuantoConfig(weights="int8"),
        0.05,
        False,
        marks=pytest.mark.skipif(not quanto_is_here(), reason="optimum-quanto is not installed"),
        id="quanto int8",
    ),
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("small")
    small_model().to(torch.bfloat16).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def wide_directory(tmp_path_factory) -> str:
    """With an EmbQ as wide as a block of bitsandbytes."""
    path = tmp_path_factory.mktemp("wide")
    small_model(embq_hidden_size=64).to(torch.bfloat16).save_pretrained(path)
    return str(path)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(**INPUTS).logits[INPUTS["attention_mask"].bool()].float()


def quantised_linears(model: nn.Module) -> set[str]:
    """Names of the linears whose weight is no longer a plain tensor of floats."""

    def is_plain(weight: torch.Tensor) -> bool:
        return weight.is_floating_point() and type(weight.data) is torch.Tensor

    names = {name for name, module in small_model().named_modules() if isinstance(module, nn.Linear)}
    return {name for name in names if not is_plain(model.get_submodule(name).weight)}


DECODER_LINEARS = {
    name
    for name, module in small_model().named_modules()
    if isinstance(module, nn.Linear) and ".language_model.layers." in name
}


@pytest.mark.parametrize(("make_config", "tolerance", "is_serialisable"), METHODS)
def test_only_the_decoder_is_quantised(directory, tmp_path, make_config, tolerance, is_serialisable):
    config = make_config()
    load = FlashSlothForConditionalGeneration.from_pretrained
    whole = load(directory, dtype=torch.bfloat16).eval()
    model = load(directory, dtype=torch.bfloat16, quantization_config=config).eval()
    assert quantised_linears(model) == DECODER_LINEARS
    assert getattr(config, "modules_to_not_convert", None) is None  # the caller's stays as it was

    if is_serialisable:
        # Before it runs: on some CPUs bitsandbytes packs 4-bit weights anew when they are first used.
        model.save_pretrained(tmp_path)

    expected, found = logits(whole), logits(model)
    assert 0 < (found - expected).abs().mean() / expected.abs().mean() < tolerance
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    tokens = model.generate(**INPUTS, **options)
    assert tokens.shape[1] == INPUTS["input_ids"].shape[1] + 4

    if is_serialisable:
        loaded = load(tmp_path).eval()
        assert quantised_linears(loaded) == DECODER_LINEARS
        torch.testing.assert_close(logits(loaded), found)
        assert loaded.generate(**INPUTS, **options).tolist() == tokens.tolist()


@needs("torchao")
def test_a_list_of_the_users_is_taken_as_it_is(directory):
    config = torchao_config(8)
    config.modules_to_not_convert = ["lm_head", "model.language_model"]
    model = FlashSlothForConditionalGeneration.from_pretrained(directory, quantization_config=config)
    found = quantised_linears(model)
    assert "model.embq.up_proj" in found
    assert not found & DECODER_LINEARS


# The user's list, and what of the image's path is quantised for it.
LISTS = {
    "none": ([], {"lm_head", "projector", "embq", "tower"}),
    "head": (["lm_head"], {"projector", "embq", "tower"}),
    "short names": (["lm_head", "multi_modal_projector", "vision_tower.encoder.layers.0"], {"embq"}),
    "full names": (["model.embq", "model.multi_modal_projector"], {"lm_head", "tower"}),
    "last names": (["linear_1", "linear_1.weight", "lm_head"], {"embq", "tower"}),  # torchao counts the weight in
}
ON_THE_PATH = {
    "lm_head": "lm_head",
    "projector": "model.multi_modal_projector.linear_1",
    "embq": "model.embq.image_attention.v_proj",
    "tower": "model.vision_tower.encoder.layers.0.mlp.fc1",
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize(("make_config", "tolerance", "is_serialisable"), METHODS)
def test_any_list_of_the_users(wide_directory, make_config, tolerance, is_serialisable, name):
    named, quantised = LISTS[name]
    config = make_config()
    attribute = next(attribute for attribute in SKIP_LISTS if hasattr(config, attribute))
    setattr(config, attribute, named)
    load = FlashSlothForConditionalGeneration.from_pretrained
    expected = logits(load(wide_directory, dtype=torch.bfloat16).eval())

    model = load(wide_directory, dtype=torch.bfloat16, quantization_config=config).eval()

    assert {part for part, linear in ON_THE_PATH.items() if linear in quantised_linears(model)} == quantised
    assert "model.multi_modal_projector.pooling.score_proj" not in quantised_linears(model)
    found = logits(model)
    assert 0 < (found - expected).abs().mean() / expected.abs().mean() < 2 * tolerance
    torch.testing.assert_close(logits(model), found)  # some layers are changed by their first call


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization:DeprecationWarning")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.qint8, 0.1), (torch.float16, 0.002)])
def test_dynamic_quantisation_by_torch(dtype, tolerance):
    model = small_model()
    expected = logits(model)
    whole = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=dtype)
    assert not any(type(module) is nn.Linear for module in whole.modules())
    assert 0 < (logits(whole) - expected).abs().mean() / expected.abs().mean() < tolerance
    tokens = whole.generate(**INPUTS, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert tokens.shape[1] == INPUTS["input_ids"].shape[1] + 4
    torch.testing.assert_close(logits(model), expected)


class Packed(nn.Module):
    """Stands in for linears of quantisers that cannot run here: its weight says nothing of its numbers."""

    def __init__(self, linear: nn.Linear, packed: torch.dtype):
        super().__init__()
        self.linear = [linear]  # not a submodule, whose parameters would count
        self.weight = nn.Parameter(torch.zeros(3, 1, dtype=packed), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        assert inputs.dtype == self.linear[0].weight.dtype
        return self.linear[0](inputs)


@pytest.mark.parametrize("packed", [torch.uint8, torch.int8, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("tower_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_queries", [0, 3])
def test_no_dtype_is_read_off_a_linear(packed, tower_dtype, num_queries):
    model = small_model(num_query_tokens=num_queries).to(torch.bfloat16)
    model.model.vision_tower.to(tower_dtype)
    inputs = INPUTS if num_queries else {"input_ids": INPUTS["input_ids"].where(INPUTS["input_ids"] != QUERY, 12)}
    inputs = INPUTS | inputs
    with torch.no_grad():
        expected = model(**inputs).logits
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear):
                model.set_submodule(name, Packed(module, packed))
        assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.parametrize("damage", ["packed", "dynamic"])
def test_pixels_are_not_cast_to_bytes(damage):
    model = build(small("llama", TEXT), small("siglip2_vision_model", VISION, num_patches=16))
    embedding = model.model.vision_tower.get_input_embeddings()
    if damage == "packed":
        embedding.weight = nn.Parameter(embedding.weight.to(torch.uint8), requires_grad=False)
    else:
        model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    with pytest.raises(ValueError, match="`patch_embedding` of the vision tower is quantised"):
        model.get_image_features(torch.zeros(1, 1, 3, *model.config.view_size))


@pytest.mark.parametrize("attribute", ["modules_to_not_convert", "llm_int8_skip_modules"])
def test_what_is_added_to_a_list(attribute):
    config = QuantoConfig(weights="int8") if attribute == "modules_to_not_convert" else BitsAndBytesConfig(True)
    given = copy.deepcopy(config)
    assert getattr(decoder_only(config), attribute) == KEPT
    assert config.to_dict() == given.to_dict()
    for named, either_way in (
        ([], []),
        (["lm_head", "fc1"], ["lm_head", "fc1"]),
        (["embq"], ["embq", "model.embq"]),
        (["model.language_model.layers.1"], ["model.language_model.layers.1", "language_model.layers.1"]),
    ):
        setattr(config, attribute, named)
        assert getattr(decoder_only(config), attribute) == [*either_way, *UNPACKABLE]


def test_a_config_may_be_a_dict():
    config = decoder_only({"quant_method": "bitsandbytes", "load_in_8bit": True})
    assert config.load_in_8bit
    assert config.llm_int8_skip_modules == KEPT
    with pytest.raises(ValueError, match="quant_method"):
        decoder_only({"bits": 8})


def test_kept_names_cover_all_linears_outside_of_the_decoders_layers():
    linears = {name for name, module in small_model().named_modules() if isinstance(module, nn.Linear)}
    kept = {name for name in linears if name.startswith(tuple(KEPT))}
    assert linears - kept == DECODER_LINEARS
    base = {name for name, module in small_model().model.named_modules() if isinstance(module, nn.Linear)}
    kept = {name for name in base if name.startswith(tuple(KEPT))}
    assert {f"model.{name}" for name in base - kept} == DECODER_LINEARS
