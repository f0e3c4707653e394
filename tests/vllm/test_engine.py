"""vLLM's answers, offline, equal those of `generate` token by token; each is made in a process of its own."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.chat_tokenizers import build_chat_tokenizer
from tests.tiny_backbones import small
from tests.vllm.cases import BASE, CASES, image, user
from transformers_flashsloth import FlashSlothForConditionalGeneration
from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed")

# vLLM's kernels for CPUs want heads of 32, 64 ...
TEXT = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION |= {"image_size": 32, "patch_size": 8}
GRANITE = {
    "embedding_multiplier": 12.0,
    "logits_scaling": 8.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.2,
}
DECODERS = {
    "llama": ("llama", {}, {}),
    "granite": ("granite", GRANITE, {}),
    "qwen3, two modules": ("qwen3", {}, {"embq_layer": [0, 2]}),
    "qwen3, tied": ("qwen3", {"tie_word_embeddings": True}, {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 32, "sliding_window": 4096}, {}),
    "llama, no queries": ("llama", {}, {"num_query_tokens": 0}),
    "llama, oblong windows": ("llama", {}, {"pooling_window": [1, 2]}),
    "llama, average pooling": ("llama", {}, {"pooling": "average"}),
    "llama, no pooling": ("llama", {}, {"pooling": "none"}),
}
TOWERS = ("clip_vision_model", "dinov2_with_registers", "siglip2_vision_model")
SAME = 2e-3
"""Log probabilities that differ by less are the same."""


def run(module: str, *arguments, **environment) -> dict:
    """What a process wrote."""
    out = Path(arguments[1])
    process = subprocess.run(
        [sys.executable, "-m", f"tests.vllm.{module}", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )
    assert process.returncode == 0, process.stderr[-5000:]
    return json.loads(out.read_text())


def refusal(module: str, *arguments) -> str:
    process = subprocess.run(
        [sys.executable, "-m", f"tests.vllm.{module}", *map(str, arguments)], capture_output=True, text=True
    )
    assert process.returncode
    return process.stderr


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The cases on the small trained checkpoint, and its answers."""
    directory = tmp_path_factory.mktemp("shipped")
    cases = directory / "cases.json"
    cases.write_text(json.dumps({"checkpoint": DEFAULT_CHECKPOINT, "cases": CASES}))
    reference = run("reference_process", cases, directory / "reference.json")
    assert len({tuple(answer) for answer in reference["answers"]}) > 5
    assert sum(a != b for a, b in zip(reference["answers"], reference["without EmbQ"], strict=True)) >= 12
    return cases, reference["answers"]


def test_answers_equal_generate(shipped, tmp_path):
    """Also where the user asks for chunks and prefix caching: prompts stay whole."""
    cases, expected = shipped
    options = {"enable_chunked_prefill": True, "max_num_batched_tokens": 64, "enable_prefix_caching": True}
    found = run("engine_process", cases, tmp_path / "answers.json", json.dumps(options))
    assert found["answers"] == expected
    logprobs = json.loads(cases.with_name("reference.json").read_text())["logprobs"]
    for own, of_generate in zip(found["logprobs"], logprobs, strict=True):
        assert own == pytest.approx(of_generate, abs=SAME)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"enforce_eager": False}, {"dtype": "bfloat16"}, {"dtype": "float16"}])
def test_compiled_and_in_half_precision(shipped, tmp_path, options):
    cases, expected = shipped
    found = run("engine_process", cases, tmp_path / "answers.json", json.dumps(options))["answers"]
    if "dtype" in options:  # of another rounding
        assert sum(a == b for a, b in zip(found, expected, strict=True)) >= len(expected) - 2
    else:
        assert found == expected


@pytest.mark.slow
def test_quantising_on_load_is_the_decoders_affair(shipped, tmp_path):
    cases, expected = shipped
    options = json.dumps({"quantization": "fp8_per_channel", "dtype": "bfloat16"})
    found = run("engine_process", cases, tmp_path / "answers.json", options)
    assert found["quantised"] == ["language_model"]
    assert sum(a == b for a, b in zip(found["answers"], expected, strict=True)) >= len(expected) - 3


@pytest.mark.slow
def test_a_question_that_fills_the_context(tmp_path):
    """1,900 tokens of it, in one step, beside short ones."""
    long = "Look at this. " * 312 + "What is it?"
    cases = tmp_path / "cases.json"
    messages = [[user(image(0), long)], [user(image(1), "What is this?")], [user(long)]]
    cases.write_text(json.dumps({"checkpoint": DEFAULT_CHECKPOINT, "cases": [{"messages": m} for m in messages]}))
    reference = run("reference_process", cases, tmp_path / "reference.json")
    found = run("engine_process", cases, tmp_path / "answers.json", json.dumps({"max_model_len": 2048}))
    assert found["answers"] == reference["answers"]


def build(directory: Path, decoder: str, tower: str = "siglip_vision_model") -> Path:
    """A random model on a decoder, and the cases, those of high definition left out: they would not fit."""
    from transformers import AutoModel, AutoModelForCausalLM, set_seed

    from transformers_flashsloth import from_backbones

    kind, extra, choices = DECODERS[decoder]
    set_seed(0)
    AutoModelForCausalLM.from_config(small(kind, TEXT, **extra)).save_pretrained(directory / "text")
    build_chat_tokenizer("llama_3").save_pretrained(directory / "text")
    AutoModel.from_config(small(tower, VISION)).save_pretrained(directory / "vision")
    options = {"pooling_window": 2, "embq_layer": 1} | choices
    model, processor = from_backbones(str(directory / "text"), str(directory / "vision"), **options)
    for module in model.model.embq_modules:
        torch.nn.init.normal_(module.up_proj.weight, std=4.0)
    for part in (model, processor):
        part.save_pretrained(directory / "whole")
    cases = directory / "cases.json"
    cases.write_text(json.dumps({"checkpoint": str(directory / "whole"), "cases": BASE[:16]}))
    return cases


@pytest.mark.slow
@pytest.mark.parametrize("decoder", DECODERS)
def test_other_decoders(tmp_path, decoder):
    cases = build(tmp_path, decoder)
    reference = run("reference_process", cases, tmp_path / "reference.json")
    if "no queries" not in decoder:
        assert reference["answers"] != reference["without EmbQ"]
    found = run("engine_process", cases, tmp_path / "answers.json")
    assert found["answers"] == reference["answers"]
    for own, expected in zip(found["logprobs"], reference["logprobs"], strict=True):  # a decoder's scales are in them
        assert own == pytest.approx(expected, abs=SAME)


@pytest.mark.slow
@pytest.mark.parametrize("tower", TOWERS)
def test_other_towers(tmp_path, tower):
    cases = build(tmp_path, "llama", tower)
    reference = run("reference_process", cases, tmp_path / "reference.json")
    assert reference["answers"] != reference["without EmbQ"]
    assert run("engine_process", cases, tmp_path / "answers.json")["answers"] == reference["answers"]


@pytest.mark.slow
def test_two_tensor_parallel_ranks(tmp_path):
    cases = build(tmp_path, "llama")
    reference = run("reference_process", cases, tmp_path / "reference.json")
    options = json.dumps({"tensor_parallel_size": 2, "distributed_executor_backend": "mp"})
    found = run("engine_process", cases, tmp_path / "answers.json", options, VLLM_CPU_OMP_THREADS_BIND="0|1")
    assert found["answers"] == reference["answers"]


def test_two_adapters_at_once(shipped, tmp_path):
    peft = pytest.importorskip("peft")
    cases, plain = shipped
    answers = {None: plain}
    for seed in (1, 2):
        torch.manual_seed(seed)
        base = FlashSlothForConditionalGeneration.from_pretrained(DEFAULT_CHECKPOINT, dtype="float32")
        model = peft.get_peft_model(base, peft.LoraConfig())
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=1.0)
        adapter = str(tmp_path / f"adapter{seed}")
        model.save_pretrained(adapter)
        answers[adapter] = run("reference_process", cases, tmp_path / f"{seed}.json", adapter)["answers"]
        assert answers[adapter] != plain
    adapters = [[*answers][number % 3] for number in range(len(plain))]
    options = json.dumps({"enable_lora": True, "max_loras": 2, "adapters": adapters})
    found = run("engine_process", cases, tmp_path / "answers.json", options)["answers"]
    assert found == [answers[adapter][number] for number, adapter in enumerate(adapters)]


def test_pipeline_parallelism_is_refused(shipped, tmp_path):
    options = {"pipeline_parallel_size": 2, "distributed_executor_backend": "mp"}
    said = refusal("engine_process", shipped[0], tmp_path / "none.json", json.dumps(options))
    assert "cannot run with a --pipeline-parallel-size above 1" in said and "--tensor-parallel-size" in said


def test_the_authors_format_is_refused_with_the_command_that_converts(authors_directory, tmp_path):
    cases = tmp_path / "cases.json"
    cases.write_text(json.dumps({"checkpoint": str(authors_directory), "cases": BASE[:1]}))
    said = refusal("engine_process", cases, tmp_path / "none.json", json.dumps({"max_model_len": 512}))
    assert f"flashsloth convert {authors_directory} DIRECTORY" in said


def test_another_window_is_refused(tmp_path):
    cases = tmp_path / "cases.json"
    cases.write_text(json.dumps({"checkpoint": DEFAULT_CHECKPOINT, "cases": BASE[:1]}))
    options = json.dumps({"mm_processor_kwargs": {"pooling_window": 6}})
    assert "`pooling_window` cannot be chosen here" in refusal("engine_process", cases, tmp_path / "none.json", options)
