"""Upload and download over HTTP, against a Hub on the loopback."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoModelForCausalLM

from tests.chat_tokenizers import build_chat_tokenizer
from tests.publishing import hub_process
from tests.publishing.hub_server import TOKEN, Hub, Repository
from tests.tiny_backbones import TEXT, VISION, small
from transformers_flashsloth.authors.convert import convert
from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT
from transformers_flashsloth.publishing import push
from transformers_flashsloth.publishing.push import push_to_hub

SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """A decoder with its tokenizer, and a vision tower."""
    text, vision = (tmp_path_factory.mktemp(name) for name in ("text", "vision"))
    AutoModelForCausalLM.from_config(small("llama", TEXT | {"vocab_size": 320})).save_pretrained(text)
    build_chat_tokenizer("llama_3").save_pretrained(text)
    AutoModel.from_config(small("siglip_vision_model", VISION)).save_pretrained(vision)
    return {"text": text, "vision": vision}


@pytest.fixture(scope="module")
def hub(authors_directory, backbones):
    """A Hub with the authors' checkpoint: open, gated, and with a shard too few. Two transfers will be cut."""
    with Hub() as hub:
        files = {file.name: file.read_bytes() for file in authors_directory.iterdir()}
        hub.repositories["them/authors"] = Repository(commits=[files])
        hub.repositories["them/gated"] = Repository(gated=True, commits=[files])
        incomplete = {name: content for name, content in files.items() if name != SHARD}
        hub.repositories["them/incomplete"] = Repository(commits=[incomplete])
        for name, directory in backbones.items():
            files = {file.name: file.read_bytes() for file in directory.iterdir()}
            hub.repositories[f"them/{name}"] = Repository(commits=[files])
        hub.cuts = {"upload": 100_000, "model-00001-of-00004.safetensors": 15_000_000}
        yield hub


@pytest.fixture(scope="module")
def checkpoint(authors_directory, tmp_path_factory):
    return convert(str(authors_directory), tmp_path_factory.mktemp("hub") / "ours", max_shard_size="30MB").destination


@pytest.fixture(scope="module")
def report(hub, checkpoint, tmp_path_factory):
    """What the steps of hub_process.py found."""
    process = subprocess.run(
        [sys.executable, hub_process.__file__, checkpoint],
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path_factory.mktemp("hf_home")),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",  # the loopback Hub stores plain LFS files
        },
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_push_and_load(report, hub, checkpoint):
    assert report["push"] == f"{hub.url}/me/sloth"
    assert report["load"] is True
    files = hub.repositories["me/sloth"].find("main")[1]
    assert files == {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    assert {
        "modeling_flashsloth.py",
        "processing_flashsloth.py",
        "chat_template.jinja",
        "tokenizer.json",
    } <= files.keys()
    assert len(hub.repositories["me/sloth"].commits) == 2  # the empty one and ours


def test_backbones_of_the_hub_make_a_model(report, backbones):
    assert report["build"] == AutoModel.from_pretrained(backbones["text"]).num_parameters()


def test_a_cut_connection_is_resumed(report, hub):
    assert report["push"].startswith("http") and report["load"] is True
    assert not hub.cuts
    assert any(request.endswith("model-00001-of-00004.safetensors bytes=10485760-") for request in hub.requests)


def test_model_card(report, checkpoint):
    card = ModelCard.load(checkpoint / "README.md")
    data = card.data
    assert (data.license, data.pipeline_tag, data.library_name) == ("apache-2.0", "image-text-to-text", "transformers")
    assert {"flashsloth", "custom_code"} <= set(data.tags)
    scores = {result.dataset_name: result.metric_value for result in data.eval_results}
    assert scores["POPE"] == 86.3 and scores["MME"] == 1702 and len(scores) == 14
    assert 'AutoProcessor.from_pretrained("me/sloth", trust_remote_code=True)' in card.text
    assert "spatial attention pooling" in card.text.lower()


def test_methods_of_transformers_push_the_code_too(report, hub):
    assert report["push from model"].startswith(f"{hub.url}/me/direct")
    assert report["load what the model pushed"] is True
    files = hub.repositories["me/direct"].find("main")[1]
    assert {"modeling_flashsloth.py", "image_processing_flashsloth.py", "foreign_formats.py"} <= files.keys()
    assert "AutoModelForImageTextToText" in json.loads(files["config.json"])["auto_map"]


def test_the_authors_format_loads_from_the_hub(report, hub):
    assert report["load the authors' format"] is True and report["convert from the Hub"] is True
    shards = [request for request in hub.requests if request.startswith("GET /them/authors/") and SHARD in request]
    assert len(shards) == 1  # checked, loaded and converted with one download


@pytest.mark.parametrize("part", ["model", "processor"])
@pytest.mark.parametrize(
    ("step", "fault"),
    [
        ("missing", "me/nothing is not a local folder and is not a valid model identifier"),
        ("gated", "gated repo"),
        ("revision", "v9 is not a valid git identifier"),
    ],
)
def test_what_is_not_there_is_said(report, step, part, fault):
    assert report[f"{step}, {part}"].startswith("OSError") and fault in report[f"{step}, {part}"]


def test_shard_missing_in_the_repository(report):
    assert report["shard missing"].startswith("FileNotFoundError") and f"names {SHARD}" in report["shard missing"]


def test_push_without_a_token(report, hub):
    assert "401" in report["push without a token"] and "me/other" not in hub.repositories


def test_only_whole_checkpoints_in_our_format_are_pushed(authors_directory, checkpoint, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="convert it first"):
        push_to_hub(authors_directory, "me/sloth")
    with pytest.raises(NotADirectoryError):
        push_to_hub(authors_directory / "config.json", "me/sloth")
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy, copy_function=os.link)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps({name: value for name, value in config.items() if name != "auto_map"}))
    for without_code in (copy, Path(DEFAULT_CHECKPOINT)):
        with pytest.raises(ValueError, match="does not carry the code"):
            push_to_hub(without_code, "me/sloth")
    (copy / "model-00001-of-00004.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="which is not there"):
        push_to_hub(copy, "me/sloth")


def test_a_lost_connection_is_said(checkpoint, monkeypatch):
    def lose(*_, **__):
        raise RuntimeError("Error while uploading 'model.safetensors' to the Hub.")

    monkeypatch.setattr(push.HfApi, "create_repo", lose)
    with pytest.raises(ConnectionError, match=r"upload to me/sloth broke off .* run it again"):
        push_to_hub(checkpoint, "me/sloth")
