"""PEFT as it is: what adapters train and what not, and that saved, reloaded and merged ones answer the same."""

import copy
import logging
import re
import subprocess
import sys
from collections import Counter

import pytest
import torch

pytest.importorskip("peft")

import peft
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from tests.model import adapter_process
from tests.model.tuning import (
    SMALL,
    encode,
    gradients,
    masked_loss,
    ragged_rows,
    reloadable,
    small_model,
    small_processor,
)
from tests.tiny_backbones import TEXT, build, small
from transformers_flashsloth import FlashSlothConfig, FlashSlothForConditionalGeneration
from transformers_flashsloth.model.adapters_flashsloth import COMPRESSOR_MODULES, DECODER_LINEARS, OUTSIDE_THE_DECODER

PARTS = ("language_model", "vision_tower", "multi_modal_projector", "embq", "query_tokens", "lm_head")
DECODERS = ["phi", "llama", "qwen2", "qwen3", "qwen3_moe", "mistral", "gemma2", "gemma3_text", "phi3", "smollm3"]
DECODERS += ["granite", "glm", "olmo2", "starcoder2", "gpt_neox"]


@pytest.fixture(scope="module")
def processor():
    return small_processor()


@pytest.fixture(scope="module")
def inputs(processor):
    return encode(processor, ragged_rows()[2])[0]


@pytest.fixture
def base(tmp_path):
    return reloadable(small_model(), tmp_path).eval()


def part(name: str) -> str:
    return next(part for part in PARTS if f".{part}." in f".{name}.")


def adapted(model: torch.nn.Module) -> set[str]:
    prefix = "base_model.model."
    return {name.removeprefix(prefix) for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}


def linears(model: torch.nn.Module, *parts: str) -> set[str]:
    found = {name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return {name for name in found if part(name) in parts}


def trained_parts(model: torch.nn.Module) -> set[str]:
    return {part(name) for name, p in model.named_parameters() if p.requires_grad}


def disturb(model: torch.nn.Module) -> None:
    """Stands for training: whatever is trained changes."""
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.05)


def logits(model: torch.nn.Module, inputs: dict) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**inputs).logits


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(),
        LoraConfig(use_dora=True),
        LoraConfig(use_rslora=True),
        peft.AdaLoraConfig(total_step=10),
        peft.LoHaConfig(),
        peft.LoKrConfig(),
        peft.VeraConfig(),
        peft.OFTConfig(oft_block_size=4),
    ],
    ids=["lora", "dora", "rslora", "adalora", "loha", "lokr", "vera", "oft"],
)
def test_default_targets_are_all_linears_of_the_decoder(config):
    model = small_model()
    expected = linears(model, "language_model")
    assert len(expected) == 2 * 6

    model = get_peft_model(model, copy.deepcopy(config))

    assert adapted(model) == expected
    assert all(".language_model." in n or "vera_" in n for n, p in model.named_parameters() if p.requires_grad)


def test_ia3_takes_the_decoders_linears_if_told(inputs):
    with pytest.raises(ValueError, match="Please specify `target_modules`"):
        get_peft_model(small_model(), peft.IA3Config())
    config = peft.IA3Config(target_modules=DECODER_LINEARS, feedforward_modules=r".*\.(?:fc2|down_proj)")
    model = get_peft_model(small_model(), config)
    assert adapted(model) == linears(small_model(), "language_model")
    feedforward = {name for name, m in model.named_modules() if getattr(m, "is_feedforward", False)}
    assert {name.rpartition(".")[2] for name in feedforward} == {"fc2"} and len(feedforward) == 2
    disturb(model)
    trained = logits(model, inputs)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged, inputs), trained, atol=1e-5, rtol=1e-5)
    assert (trained - logits(small_model(), inputs)).abs().max() > 0.1


@pytest.mark.parametrize("model_type", DECODERS)
def test_default_targets_fit_other_decoders(model_type):
    text = {"model_type": model_type, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "vocab_size": 60000}
    changes = {"text_config": text, "embq_layer": 1, "embq_hidden_size": 32, "embq_num_heads": 4}
    vision = SMALL | {"num_hidden_layers": 1, "image_size": 42, "patch_size": 14, "vision_use_head": False}
    with torch.device("meta"):
        model = FlashSlothForConditionalGeneration(FlashSlothConfig(vision_config=vision, **changes))
        expected = linears(model, "language_model")
        assert adapted(get_peft_model(model, LoraConfig())) == expected != set()


def test_compressor_modules_are_trained_in_full_beside_the_decoder():
    model = get_peft_model(small_model(), LoraConfig(modules_to_save=COMPRESSOR_MODULES))

    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    whole = [name for name in trained if "modules_to_save" in name]
    plain = {n for n, _ in small_model().named_parameters() if part(n) in COMPRESSOR_MODULES}
    assert {name.removeprefix("base_model.model.").replace("modules_to_save.default.", "") for name in whole} == plain
    assert trained_parts(model) == {"language_model", "multi_modal_projector", "query_tokens", "embq"}
    assert all("lora_" in name for name in trained if part(name) == "language_model")


def test_all_linear_and_name_lists_reach_the_vision_tower_unless_excluded():
    model = small_model()
    decoder = linears(model, "language_model")
    everywhere = linears(model, "language_model", "vision_tower", "multi_modal_projector", "embq")
    count = Counter(part(name) for name in everywhere)
    assert count == {"language_model": 12, "vision_tower": 6, "multi_modal_projector": 4, "embq": 9}

    def targets(**options):
        return adapted(get_peft_model(copy.deepcopy(model), LoraConfig(**options)))

    assert targets(target_modules="all-linear") == everywhere
    assert targets(target_modules="all-linear", exclude_modules=OUTSIDE_THE_DECODER) == decoder
    names = ["q_proj", "v_proj"]
    assert Counter(map(part, targets(target_modules=names))) == {"language_model": 4, "vision_tower": 2, "embq": 4}
    assert targets(target_modules=names, exclude_modules=OUTSIDE_THE_DECODER) == {
        name for name in decoder if name.endswith(tuple(names))
    }


def test_training_adapters_of_the_vision_tower_is_said(caplog):
    logger = logging.getLogger("transformers_flashsloth.model.adapters_flashsloth")
    logger.addHandler(caplog.handler)
    get_peft_model(small_model(), LoraConfig()).train()
    assert caplog.text == ""
    get_peft_model(small_model(), LoraConfig(target_modules="all-linear")).train()
    assert "6 modules of the vision tower have adapters" in caplog.text
    logger.removeHandler(caplog.handler)


def test_targets_that_match_nothing_are_named():
    with pytest.raises(ValueError, match=r"Target modules .'query_key'. not found in the base model"):
        get_peft_model(small_model(), LoraConfig(target_modules=["query_key"]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True},
        {"modules_to_save": COMPRESSOR_MODULES},
        {"target_modules": "all-linear"},
    ],
    ids=["lora", "dora", "rslora", "compressor", "all-linear"],
)
def test_saved_reloaded_and_merged_adapters_answer_the_same(base, inputs, tmp_path, options):
    before = logits(base, inputs)
    model = get_peft_model(base, LoraConfig(**options))
    disturb(model)
    trained = logits(model, inputs)
    assert (trained - before).abs().max() > 0.1
    with model.disable_adapter():
        torch.testing.assert_close(logits(model, inputs), before)
    model.save_pretrained(tmp_path / "adapter")

    reloaded = PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(tmp_path / "model"), tmp_path / "adapter"
    )
    torch.testing.assert_close(logits(reloaded, inputs), trained, atol=1e-5, rtol=1e-5)
    by_name = AutoModelForImageTextToText.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logits(by_name, inputs), trained, atol=1e-5, rtol=1e-5)

    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged, inputs), trained, atol=1e-5, rtol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    plain = FlashSlothForConditionalGeneration.from_pretrained(tmp_path / "merged")
    assert adapted(plain) == set()
    torch.testing.assert_close(logits(plain, inputs), trained, atol=1e-5, rtol=1e-5)


def test_an_adapter_in_a_fresh_process_that_has_not_imported_peft(base, inputs, tmp_path):
    model = get_peft_model(base, LoraConfig(modules_to_save=COMPRESSOR_MODULES))
    disturb(model)
    model.save_pretrained(tmp_path / "adapter")
    torch.save(inputs, tmp_path / "inputs")
    arguments = [tmp_path / name for name in ("adapter", "inputs", "logits")]

    process = subprocess.run([sys.executable, adapter_process.__file__, *arguments], capture_output=True, text=True)

    assert process.returncode == 0, process.stderr
    torch.testing.assert_close(torch.load(tmp_path / "logits"), logits(model, inputs), atol=1e-5, rtol=1e-5)


def test_adapters_are_switched(base, inputs, tmp_path):
    before, wanted = logits(base, inputs), {}
    for name in ("one", "two"):
        model = get_peft_model(copy.deepcopy(base), LoraConfig())
        disturb(model)
        wanted[name] = logits(model, inputs)
        model.save_pretrained(tmp_path / name)

    with_peft = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "one", adapter_name="one")
    with_peft.load_adapter(tmp_path / "two", adapter_name="two")
    native = copy.deepcopy(base)
    for name in ("one", "two"):
        native.load_adapter(str(tmp_path / name), adapter_name=name)
    for model in (with_peft, native):
        for name in ("two", "one"):
            try:
                model.set_adapter(name)
            except ValueError as error:  # transformers 5.24 wants a PEFT that there is not yet
                pytest.skip(str(error)) if "version of PEFT" in str(error) else pytest.fail(str(error))
            torch.testing.assert_close(logits(model, inputs), wanted[name])
    native.disable_adapters()
    torch.testing.assert_close(logits(native, inputs), before)


def test_compressors_of_several_layers_are_trained_and_saved(inputs, tmp_path):
    """`embq_layer` as a list, of which PEFT would refuse a list of modules."""
    base = reloadable(small_model(embq_layer=[0, 1]), tmp_path / "base").eval()
    model = get_peft_model(copy.deepcopy(base), LoraConfig(modules_to_save=COMPRESSOR_MODULES))
    trained = {part(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"language_model", "multi_modal_projector", "query_tokens", "embq"}
    before = logits(model, inputs)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embq" in name and parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    wanted = logits(model, inputs)
    assert (wanted - before).abs().max() > 1e-3
    model.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, tmp_path / "adapter"), inputs), wanted)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model, inputs), before)


@pytest.mark.parametrize("re_entrant", [True, False])
def test_checkpointed_gradients_of_adapters(processor, re_entrant):
    rows = ragged_rows()
    config = LoraConfig(modules_to_save=COMPRESSOR_MODULES, init_lora_weights=False)
    model = get_peft_model(small_model(), config).train()
    expected = gradients(model, masked_loss(model, processor, rows, answers_only=True))

    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": re_entrant})
    model.enable_input_require_grads()
    found = gradients(model, masked_loss(model, processor, rows, answers_only=True))

    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-4)
        assert found[name].any() == p.requires_grad or name.endswith(("k_proj.bias", "score_proj.bias")), name


@pytest.mark.parametrize("decoder_only", [False, True])
def test_adapters_over_four_bit_weights(tmp_path, inputs, decoder_only):
    """QLoRA: the decoder lies in 4 bits, the adapter learns over it, and answers the same when loaded again."""
    pytest.importorskip("bitsandbytes")
    reloadable(small_model(), tmp_path)
    others = ["vision_tower", "multi_modal_projector", "embq"]
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["lm_head", *(f"model.{name}" for name in others)] if decoder_only else None,
    )

    def load():
        return AutoModelForImageTextToText.from_pretrained(tmp_path / "model", quantization_config=quantization)

    base = load()
    packed = {name for name, p in base.named_parameters() if p.dtype == torch.uint8}
    assert {name.removesuffix(".weight") for name in packed} == linears(
        base, "language_model", *([] if decoder_only else others)
    )
    model = get_peft_model(peft.prepare_model_for_kbit_training(base), LoraConfig(init_lora_weights=False))
    assert adapted(model) == linears(small_model(), "language_model")
    loss = model.train()(**inputs, labels=inputs["input_ids"]).loss
    found = gradients(model, loss)
    assert all(found[name].any() == p.requires_grad for name, p in model.named_parameters())

    # In training mode: bitsandbytes' kernel for answers on a CPU takes no widths below its blocks of 64.
    trained = model.train()(**inputs).logits
    model.save_pretrained(tmp_path / "adapter")
    reloaded = PeftModel.from_pretrained(load(), tmp_path / "adapter")
    torch.testing.assert_close(reloaded.train()(**inputs).logits, trained, atol=1e-5, rtol=1e-5)


def layers_of_adapters(model: torch.nn.Module) -> Counter:
    """How many linears are adapted in each layer of the decoder; nothing else may be."""
    names = adapted(model)
    assert names and all(part(name) == "language_model" for name in names)
    return Counter(int(re.search(r"\.layers\.(\d+)\.", name)[1]) for name in names)


OPTIONS_OF_LAYERS = {
    "all": ({}, {0: 6, 1: 6}),
    "a list": ({"layers_to_transform": [0]}, {0: 6}),
    "a number": ({"layers_to_transform": 1}, {1: 6}),
    "with their pattern": ({"layers_to_transform": [0], "layers_pattern": "layers"}, {0: 6}),
    "excluded names": ({"exclude_modules": ["fc1"]}, {0: 5, 1: 5}),
    "an excluded expression": ({"exclude_modules": r".*\.layers\.0\..*"}, {1: 6}),
}


@pytest.mark.parametrize("case", OPTIONS_OF_LAYERS)
def test_options_beside_the_default_targets(tmp_path, case):
    """Those that PEFT takes for lists of names alone; what is trained is saved, and loads."""
    options, expected = OPTIONS_OF_LAYERS[case]
    base = reloadable(small_model(), tmp_path / "base").eval()
    model = get_peft_model(copy.deepcopy(base), LoraConfig(**options))
    assert layers_of_adapters(model) == expected
    disturb(model)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert adapted(again) == adapted(model)
    saved, loaded = (dict(one.named_parameters()) for one in (model, again))
    assert all(torch.equal(saved[name], parameter) for name, parameter in loaded.items() if "lora" in name)


def test_ranks_and_alphas_by_layer():
    model = get_peft_model(small_model(), LoraConfig(rank_pattern={"fc1": 4}, alpha_pattern={"layers.1.mlp.fc2": 32}))
    ranks = {name: module.r["default"] for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    assert {rank for name, rank in ranks.items() if name.endswith("fc1")} == {4}
    assert {rank for name, rank in ranks.items() if not name.endswith("fc1")} == {8}
    scales = {n: module.scaling["default"] for n, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    assert [n for n, scale in scales.items() if scale == 4.0] == [n for n in scales if n.endswith("layers.1.mlp.fc2")]


TUNERS_OF_PEFT = {
    "LoHaConfig": {},
    "LoKrConfig": {},
    "AdaLoraConfig": {"total_step": 10},
    "OFTConfig": {"oft_block_size": 8},
    "BOFTConfig": {"boft_block_size": 8},
    "VeraConfig": {},
    "FourierFTConfig": {},
    "HRAConfig": {},
    "RandLoraConfig": {},
    "VBLoRAConfig": {"vector_length": 8, "num_vectors": 4},
    "C3AConfig": {"block_size": 8},
    "MissConfig": {"r": 8},
    "ShiraConfig": {"r": 4},
}


@pytest.mark.parametrize("name", TUNERS_OF_PEFT)
def test_every_tuner_takes_layers_beside_the_default_targets(name):
    config_class = getattr(peft, name)
    options = TUNERS_OF_PEFT[name]
    assert layers_of_adapters(get_peft_model(small_model(), config_class(**options))) == {0: 6, 1: 6}
    if "layers_to_transform" in config_class.__dataclass_fields__:
        model = get_peft_model(small_model(), config_class(layers_to_transform=[1], **options))
        assert layers_of_adapters(model) == {1: 6}


def test_default_targets_are_those_of_the_model_that_is_read():
    """Models of other decoders in one process, and targets that somebody registered."""
    other = build(small("llama", TEXT))
    for model in (small_model(), other, small_model()):
        names = adapted(get_peft_model(copy.deepcopy(model), LoraConfig(layers_to_transform=[0])))
        linears = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and ".layers.0." in n}
        assert names == {n for n in linears if part(n) == "language_model"}
    table = peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    before = table["flashsloth"]
    try:
        table["flashsloth"] = ["q_proj"]
        names = adapted(get_peft_model(small_model(), LoraConfig(exclude_modules=OUTSIDE_THE_DECODER)))
        assert {name.rsplit(".", 1)[1] for name in names} == {"q_proj"}
    finally:
        table["flashsloth"] = before
