"""The directory that a reader of a page works in: with everything that pages name, on tiny checkpoints."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, SiglipVisionModel

from tests.chat_tokenizers import build_chat_tokenizer
from tests.pages.blocks import ROOT
from tests.tiny_backbones import TEXT, VISION, small
from transformers_flashsloth import EXAMPLES, from_backbones

BACKBONES = "HuggingFaceTB/SmolLM2-135M-Instruct", "google/siglip-base-patch16-384"
QUESTIONS = "image,question,answer\nfox.png,What is this?,fox\nshapes.png,What color is the triangle?,blue\n"


def write_backbones(text: Path, vision: Path) -> None:
    """A tiny decoder with a tokenizer, and a tiny vision tower of 12 x 12 patches."""
    sizes = TEXT | {"vocab_size": 300, "max_position_embeddings": 256}
    AutoModelForCausalLM.from_config(small("llama", sizes)).save_pretrained(text)
    build_chat_tokenizer("chatml").save_pretrained(text)
    tower = small("siglip_vision_model", VISION | {"image_size": 24, "patch_size": 2})
    SiglipVisionModel(tower).save_pretrained(vision)


@pytest.fixture(scope="session")
def furnished(tmp_path_factory, authors_directory):
    """What pages name: pictures, a table of questions, LLaVA's files, backbones, and checkpoints under their names."""
    desk = tmp_path_factory.mktemp("furnished")
    shutil.copytree(EXAMPLES, desk, dirs_exist_ok=True)
    shutil.copytree(EXAMPLES, desk / "images")
    shutil.copy(desk / "fox.png", desk / "photo.jpg")
    frames = [Image.open(desk / name).convert("RGB").resize((96, 96)) for name in ("fox.png", "zoo.png")]
    frames[0].save(desk / "clip.gif", save_all=True, append_images=frames[1:], duration=500)
    (desk / "questions.csv").write_text(QUESTIONS)
    turns = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "fox"}]
    for name in ("captions.json", "instructions.json"):
        (desk / name).write_text(json.dumps([{"image": "fox.png", "conversations": turns}] * 4))
    write_backbones(*(desk / name for name in BACKBONES))
    shutil.copytree(authors_directory, desk / "Tongbo/FlashSloth-3.2B")
    return desk


@pytest.fixture(scope="session")
def furnished_further(furnished):
    """The same with what earlier pages made: an untrained model, and one converted."""
    from transformers_flashsloth.authors.convert import convert

    text, vision = (str(furnished / name) for name in BACKBONES)
    model, processor = from_backbones(text, vision, pooling_window=4)
    for part in (model, processor):
        part.save_pretrained(furnished / "untrained")
    convert(str(furnished / "Tongbo/FlashSloth-3.2B"), furnished / "flashsloth-3.2b")
    return furnished


@pytest.fixture
def desk(furnished_further, tmp_path, monkeypatch):
    """A copy to work in; `src`, `docs` and `conversion` are the repository's."""
    shutil.copytree(furnished_further, tmp_path, dirs_exist_ok=True)
    for name in ("src", "docs", "conversion"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)
