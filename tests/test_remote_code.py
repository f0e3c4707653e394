"""A saved checkpoint carries the code: it works in a process that does not have this package."""

import json
import os
import subprocess
import sys

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests import remote_code_process
from transformers_flashsloth import (
    FlashSlothForConditionalGeneration,
    FlashSlothImageProcessor,
    FlashSlothProcessor,
)


@pytest.fixture(scope="module")
def saved(authors_directory, tmp_path_factory):
    """The tiny model of the goldens and its processor, saved."""
    directory = tmp_path_factory.mktemp("saved")
    FlashSlothForConditionalGeneration.from_pretrained(authors_directory).save_pretrained(directory)
    FlashSlothProcessor.from_pretrained(authors_directory).save_pretrained(directory)
    return directory


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


def test_same_tokens_without_the_package(saved, tmp_path):
    process = subprocess.run(
        [sys.executable, remote_code_process.__file__, saved, tmp_path / "again"],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout)
    assert report["base"] == ["transformers_modules", "FlashSlothModel"]
    assert report["answer"] == report["answer of what was saved again"] == remote_code_process.answer(saved)


def test_the_package_wins(saved):
    model = AutoModelForImageTextToText.from_pretrained(saved, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(saved, trust_remote_code=True)
    assert type(model) is FlashSlothForConditionalGeneration
    assert type(processor) is FlashSlothProcessor and type(processor.image_processor) is FlashSlothImageProcessor
