"""A saved checkpoint carries the code: it works in a process that does not have this package."""

import json
import os
import subprocess
import sys

import pytest
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, set_seed

from tests.chat_tokenizers import build_chat_tokenizer
from tests.model import remote_code_process
from tests.tiny_backbones import TEXT, VISION, small
from transformers_flashsloth import (
    FlashSlothForConditionalGeneration,
    FlashSlothImageProcessor,
    FlashSlothProcessor,
    from_backbones,
)

# Decoder, its kind of chat, and tower.
BACKBONES = [
    ("llama", "llama_3", "siglip_vision_model"),
    ("qwen2", "chatml", "clip_vision_model"),
    ("qwen3", "chatml", "siglip2_vision_model"),
    ("gemma3_text", "gemma", "dinov2"),
]


@pytest.fixture(scope="module")
def saved(authors_directory, tmp_path_factory):
    """The tiny model of the goldens and its processor, saved."""
    directory = tmp_path_factory.mktemp("saved")
    FlashSlothForConditionalGeneration.from_pretrained(authors_directory).save_pretrained(directory)
    FlashSlothProcessor.from_pretrained(authors_directory).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def other_backbones(tmp_path_factory) -> list[str]:
    """FlashSloths on other decoders and towers, with their processors, saved."""
    directories = []
    for text, chat, vision in BACKBONES:
        directory = tmp_path_factory.mktemp(text)
        set_seed(0)
        config = small(text, TEXT | {"vocab_size": 320, "max_position_embeddings": 512}, initializer_range=0.5)
        AutoModelForCausalLM.from_config(config).save_pretrained(directory / "text")
        build_chat_tokenizer(chat).save_pretrained(directory / "text")
        AutoModel.from_config(small(vision, VISION)).save_pretrained(directory / "vision")
        for part in from_backbones(str(directory / "text"), str(directory / "vision")):
            part.save_pretrained(directory / "whole")
        directories.append(str(directory / "whole"))
    return directories


def test_every_class_is_mapped_to_a_file_that_is_there(saved):
    processor = json.loads((saved / "processor_config.json").read_text())
    maps = [json.loads((saved / f"{name}.json").read_text())["auto_map"] for name in ("config", "tokenizer_config")]
    maps += [processor["auto_map"], processor["image_processor"]["auto_map"]]
    assert maps[0].keys() == {"AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"}
    assert maps[1].keys() == {"AutoProcessor"}
    assert {"AutoProcessor", "AutoImageProcessor"} == maps[2].keys() | maps[3].keys()
    for reference in {reference for entries in maps for reference in entries.values()}:
        module, name = reference.split(".")
        assert f"class {name}(" in (saved / f"{module}.py").read_text()


def test_same_tokens_without_the_package(saved, other_backbones, tmp_path):
    process = subprocess.run(
        [sys.executable, remote_code_process.__file__, saved, tmp_path / "again", *other_backbones],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout)
    assert report["base"] == ["transformers_modules", "FlashSlothModel"]
    assert report["answer"] == report["answer of what was saved again"] == remote_code_process.answer(saved)
    assert report["answers of others"] == [remote_code_process.answer(directory) for directory in other_backbones]
    assert len({str(answer) for answer in report["answers of others"]}) == len(BACKBONES)


def test_the_package_wins(saved):
    model = AutoModelForImageTextToText.from_pretrained(saved, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(saved, trust_remote_code=True)
    assert type(model) is FlashSlothForConditionalGeneration
    assert type(processor) is FlashSlothProcessor and type(processor.image_processor) is FlashSlothImageProcessor
