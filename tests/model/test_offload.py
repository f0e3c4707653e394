"""Weights on the disk or on several devices, moved by accelerate's hooks, give the numbers of a model in one place."""

from functools import partial

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.small_model import SECOND_TURN, inputs_of, small_model
from transformers_flashsloth import FlashSlothForConditionalGeneration
from transformers_flashsloth.model import modeling_flashsloth

accelerate = pytest.importorskip("accelerate")

PARTS = ["vision_tower", "multi_modal_projector", "query_tokens", "embq"]
DECODER = ["embed_tokens", "rotary_emb", "layers.0", "layers.1", "final_layernorm"]
NAMES = [f"model.{part}" for part in PARTS] + [f"model.language_model.{part}" for part in DECODER] + ["lm_head"]
INPUTS = inputs_of([0, 1, 2])


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("small")
    small_model().save_pretrained(path)
    return str(path)


def load(directory: str, tmp_path, **options) -> FlashSlothForConditionalGeneration:
    folder = str(tmp_path / "offload")
    return FlashSlothForConditionalGeneration.from_pretrained(directory, offload_folder=folder, **options).eval()


def offloaded(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.device.type == "meta"}


def assert_same(model):
    whole = small_model()
    with torch.no_grad():
        torch.testing.assert_close(model(**INPUTS).logits, whole(**INPUTS).logits)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    assert model.generate(**INPUTS, **options).tolist() == whole.generate(**INPUTS, **options).tolist()


@pytest.mark.parametrize(
    "on_disk",
    [
        ["model.vision_tower"],
        ["model.multi_modal_projector", "model.query_tokens"],
        ["model.embq"],
        ["model.language_model.layers.1"],  # EmbQ runs before this one
        ["model.embq", "model.language_model.layers.0", "model.language_model.layers.1"],
        ["model.language_model.embed_tokens", "lm_head"],
        NAMES,
    ],
    ids=lambda names: "+".join(name.removeprefix("model.") for name in names)[:40],
)
def test_parts_on_the_disk(directory, tmp_path, on_disk):
    device_map = {name: "disk" if name in on_disk else "cpu" for name in NAMES}
    model = load(directory, tmp_path, device_map=device_map)
    expected = {name for name, _ in model.named_parameters() if any(name.startswith(part) for part in on_disk)}
    assert offloaded(model) == expected and expected
    assert_same(model)


def test_one_device_for_all(directory, tmp_path):
    for device_map in ({"": "cpu"}, "auto", "cpu"):
        model = load(directory, tmp_path, device_map=device_map)
        assert not offloaded(model)
        assert_same(model)


def test_auto_fills_the_memory_and_splits_no_part_that_belongs_together(directory, tmp_path):
    weights = sum(parameter.nbytes for parameter in small_model().parameters())
    for share in (0.3, 0.6, 0.8):
        model = load(directory, tmp_path, device_map="auto", max_memory={"cpu": int(share * weights)})
        assert len(offloaded(model)) > 0
        for name, module in model.named_modules():
            if type(module).__name__ in {"PhiDecoderLayer", "SiglipEncoderLayer", *model.model._no_split_modules}:
                parts = {parameter.device for parameter in module.parameters()}
                assert len(parts) == 1, name
        assert_same(model)


def test_no_split_modules_name_every_part():
    names = {type(module).__name__ for module in small_model().modules()}
    expected = {"EmbeddedQuery", "FlashSlothMultiModalProjector", "QueryTokens", "PhiDecoderLayer"}
    assert expected <= set(small_model()._no_split_modules) & names


def put(module: nn.Module, device: str) -> None:
    """Weights on `device`, and inputs brought there, as accelerate's hooks do it behind the hooks of the model."""
    for part in module.modules():
        for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
            if tensor is not None:
                moved = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                is_parameter = name in part._parameters
                setattr(part, name, nn.Parameter(moved, requires_grad=False) if is_parameter else moved)
    bring = partial(accelerate.utils.send_to_device, device=device)
    module.register_forward_pre_hook(lambda _, args, kwargs: (bring(args), bring(kwargs)), with_kwargs=True)


@pytest.mark.parametrize("elsewhere", [*NAMES, "every second one"])
def test_any_part_may_lie_on_another_device(monkeypatch, elsewhere):
    # Fake tensors refuse to meet on two devices; "meta" stands for the second one.
    names = NAMES[::2] if elsewhere == "every second one" else [elsewhere]
    model = small_model()
    # The numbers of fake tensors are not known, so placeholders cannot be counted.
    monkeypatch.setattr(modeling_flashsloth, "check_images", lambda *_: (2, model.config.tokens_per_view))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        for name in NAMES:
            put(model.get_submodule(name), "meta" if name in names else "cpu")
        inputs = {name: torch.zeros_like(tensor, device="cpu") for name, tensor in INPUTS.items()}
        outputs = model(**inputs, labels=inputs["input_ids"], use_cache=True)
        memory = outputs.past_key_values.prompt_memory
        assert memory.image_features.device == memory.input_ids.device
    assert outputs.logits.device.type == ("meta" if "lm_head" in names else "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("split", range(1, len(NAMES)))
def test_two_gpus(directory, tmp_path, split):
    device_map = {name: int(index >= split) for index, name in enumerate(NAMES)}
    model = load(directory, tmp_path, device_map=device_map)
    whole = small_model()
    inputs = {name: tensor.to("cuda:0") for name, tensor in INPUTS.items()}
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    assert model.generate(**inputs, **options).tolist() == whole.generate(**INPUTS, **options).tolist()
    # A second turn reads what the cache remembers.
    turn = torch.tensor([SECOND_TURN] * 3)
    with torch.no_grad():
        caches = [model(**inputs).past_key_values, whole(**INPUTS).past_key_values]
        found = model(input_ids=turn.to("cuda:0"), past_key_values=caches[0]).logits.cpu()
        expected = whole(input_ids=turn, past_key_values=caches[1]).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
