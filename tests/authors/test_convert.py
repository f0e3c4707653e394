"""Conversion from the authors' format to ours and back."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flashsloth_command import main
from tests.authors_directory import authors_weights, write_authors_checkpoint, write_json, write_shards
from tests.golden_model import load_case
from transformers_flashsloth import FlashSlothConfig, FlashSlothForConditionalGeneration, FlashSlothProcessor
from transformers_flashsloth.authors import command
from transformers_flashsloth.authors.convert import convert
from transformers_flashsloth.authors.format import to_our_name
from transformers_flashsloth.checkpoints.weights import CheckpointFiles


@pytest.fixture(scope="module")
def converted(authors_directory, tmp_path_factory):
    """The summary of a conversion; its destination is not to be changed."""
    return convert(str(authors_directory), tmp_path_factory.mktemp("converted") / "ours", max_shard_size="20MB")


def read_all(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same_bytes(tensors: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return tensors.keys() == others.keys() and all(
        tensor.dtype == others[name].dtype and torch.equal(tensor.view(torch.uint8), others[name].view(torch.uint8))
        for name, tensor in tensors.items()
    )


def test_tensors_are_equal_under_our_names(converted):
    weights = {to_our_name(name): tensor for name, tensor in authors_weights().items()}
    assert same_bytes(read_all(converted.destination), weights)


def test_loads_as_the_source_and_answers_as_the_release(converted, authors_directory):
    model, report = FlashSlothForConditionalGeneration.from_pretrained(converted.destination, output_loading_info=True)
    assert not any(report.values())
    source = FlashSlothForConditionalGeneration.from_pretrained(authors_directory)
    assert model.config.to_diff_dict() == source.config.to_diff_dict() | {"auto_map": model.config.auto_map}
    assert model.generation_config.to_diff_dict() == source.generation_config.to_diff_dict()
    case = load_case("sd_single")
    generated = model.generate(**case.inputs, max_new_tokens=16, do_sample=False, eos_token_id=None)
    assert generated[0, -16:].tolist() == case.golden["generated"].flatten().tolist()[-16:]
    processors = [FlashSlothProcessor.from_pretrained(path) for path in (converted.destination, authors_directory)]
    assert processors[0].tokenizer.get_vocab() == processors[1].tokenizer.get_vocab()


def test_shards_and_summary(converted):
    shards = sorted(converted.destination.glob("*.safetensors"))
    assert len(shards) == 6 and all(shard.stat().st_size < 20_100_000 for shard in shards)
    index = json.loads((converted.destination / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in authors_weights().values())
    assert converted.num_tensors == len(index["weight_map"]) == 213
    assert "Read 213 tensors, 102,769,412 bytes" in str(converted) and "Read them back: equal." in str(converted)
    assert not list(converted.destination.parent.glob("*.partial"))


@pytest.mark.parametrize("image_hd", [False, True])
def test_back_to_the_authors_format(tmp_path, image_hd, authors_directory):
    source = tmp_path / "source"
    shutil.copytree(authors_directory, source, copy_function=os.link)
    config = json.loads((source / "config.json").read_text()) | {"image_hd": image_hd}
    (source / "config.json").unlink()
    write_json(source / "config.json", config)

    convert(str(source), tmp_path / "ours", verify=False)
    convert(str(tmp_path / "ours"), tmp_path / "back", to_authors_format=True, max_shard_size="50MB")
    assert same_bytes(read_all(tmp_path / "back"), authors_weights())
    for name in ("merges.txt", "vocab.json", "added_tokens.json"):
        files = [(directory / name).read_text(encoding="utf-8") for directory in (tmp_path / "back", source)]
        assert files[0] == files[1] if name == "merges.txt" else json.loads(files[0]) == json.loads(files[1])

    configs = [FlashSlothConfig.from_pretrained(directory).to_diff_dict() for directory in (tmp_path / "back", source)]
    assert configs[0] == configs[1]
    processors = [FlashSlothProcessor.from_pretrained(directory) for directory in (tmp_path / "back", source)]
    assert processors[0].to_dict() == processors[1].to_dict()
    assert processors[0].image_processor.image_hd is image_hd


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_number_type(authors_directory, tmp_path, dtype):
    convert(str(authors_directory), tmp_path / "ours", dtype=dtype)
    weights = {to_our_name(name): tensor.to(getattr(torch, dtype)) for name, tensor in authors_weights().items()}
    assert same_bytes(read_all(tmp_path / "ours"), weights)
    assert FlashSlothForConditionalGeneration.from_pretrained(tmp_path / "ours").dtype == getattr(torch, dtype)


def test_mixed_number_types_stay_aligned(tmp_path):
    weights = dict(authors_weights(torch.float16))
    weights["lm_head.bias"] = weights["lm_head.bias"].float() + 1e-5  # pooling's bias has 2 bytes
    source = write_authors_checkpoint(tmp_path / "source", weights, shards=1)
    convert(str(source), tmp_path / "ours")
    assert same_bytes(read_all(tmp_path / "ours"), {to_our_name(name): tensor for name, tensor in weights.items()})
    assert all(
        tensor.start % tensor.dtype.itemsize == 0 for tensor in CheckpointFiles(tmp_path / "ours").tensors.values()
    )


def test_trusted_pickles(authors_directory, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(authors_directory, source, ignore=shutil.ignore_patterns("model*"))
    torch.save(authors_weights(), source / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"can run any code.*add --trust-pickles"):
        convert(str(source), tmp_path / "ours")
    convert(str(source), tmp_path / "ours", trust_pickles=True)
    assert len(read_all(tmp_path / "ours")) == 213


class TestNothingHalfWritten:
    """Whatever goes wrong, DST and what stands beside it are as before."""

    @pytest.fixture
    def place(self, tmp_path):
        """A directory to write to, which must be empty at the end."""
        place = tmp_path / "place"
        place.mkdir()
        yield place
        assert not list(place.iterdir())

    def test_destination_exists(self, authors_directory, tmp_path):
        (tmp_path / "ours").mkdir()
        (tmp_path / "ours" / "mine.txt").write_text("keep")
        with pytest.raises(FileExistsError, match="exists already"):
            convert(str(authors_directory), tmp_path / "ours")
        assert [file.name for file in (tmp_path / "ours").iterdir()] == ["mine.txt"]

    def test_wrong_way(self, authors_directory, converted, place):
        with pytest.raises(ValueError, match="in the authors' format already"):
            convert(str(authors_directory), place / "x", to_authors_format=True)
        with pytest.raises(ValueError, match="add --to-authors-format"):
            convert(str(converted.destination), place / "x")

    def test_bad_source(self, authors_directory, tmp_path, place):
        with pytest.raises(NotADirectoryError, match="is a file"):
            convert(str(authors_directory / "config.json"), place / "x")
        with pytest.raises(FileNotFoundError, match="neither a directory nor a Hub id"):
            convert(str(tmp_path / "nowhere" / "at" / "all"), place / "x")
        source = tmp_path / "source"
        shutil.copytree(authors_directory, source, ignore=shutil.ignore_patterns("model*"))
        write_shards(source, {"model.learnable_tokens.token": torch.zeros(9, 80)}, shards=1)
        with pytest.raises(ValueError, match="and 209 more are missing"):
            convert(str(source), place / "x")
        file = source / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(ValueError, match="damaged or cut short"):
            convert(str(source), place / "x")

    def test_no_space_left(self, authors_directory, place, monkeypatch):
        usage = namedtuple("usage", "free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000))
        with pytest.raises(OSError, match=r"No space left for .*: 122,769,412 bytes are needed, 1,000 are free"):
            convert(str(authors_directory), place / "x")

    def test_disk_full_half_way(self, authors_directory, place):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write fails instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000_000, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                convert(str(authors_directory), place / "x")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)

    def test_verification_notices_a_flipped_bit(self, authors_directory, place, monkeypatch):
        read = CheckpointFiles.read

        def faulty_read(files, name):
            tensor = read(files, name)
            if name == "model.embq.up_proj.bias":
                tensor.view(torch.uint8)[5] ^= 1
            return tensor

        monkeypatch.setattr(CheckpointFiles, "read", faulty_read)
        with pytest.raises(ValueError, match=r"embq.up_proj.bias in .* is not what was written"):
            convert(str(authors_directory), place / "x")

    def test_kill_and_start_again(self, authors_directory, tmp_path):
        """A killed run leaves DST untouched; the next one clears up after it."""
        script = (
            "import os, signal, sys\n"
            "from pathlib import Path\n"
            "from transformers_flashsloth.authors import convert\n"
            "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
            "class Files(convert.CheckpointFiles):\n"
            "    def read(self, name): return die() if 'lm_head' in name else super().read(name)\n"
            "convert.CheckpointFiles = Files\n"
            "convert.convert(*map(Path, sys.argv[1:]))\n"
        )
        ours = tmp_path / "ours"
        process = subprocess.run([sys.executable, "-c", script, authors_directory, ours])
        assert process.returncode == -signal.SIGKILL
        assert [file.name for file in tmp_path.iterdir()] == ["ours.partial"]
        assert (tmp_path / "ours.partial" / "model.safetensors").stat().st_size > 1_000_000
        convert(str(authors_directory), ours)
        assert [file.name for file in tmp_path.iterdir()] == ["ours"]


class TestCommand:
    def run(self, *arguments) -> int:
        try:
            return main(["convert", *map(str, arguments)])
        except SystemExit as exit:
            return exit.code

    def test_summary_and_one_line_errors(self, authors_directory, tmp_path, monkeypatch, capsys):
        assert self.run(authors_directory, tmp_path / "ours", "--dtype", "float16") == 0
        output = capsys.readouterr()
        assert "51,384,706 bytes of float16" in output.out and "Read them back: equal.\n" in output.out
        assert self.run(authors_directory, tmp_path / "ours") == 2
        output = capsys.readouterr()
        assert not output.out
        assert (
            output.err == f"flashsloth: error: {tmp_path / 'ours'} exists already: remove it or choose another place.\n"
        )

    def test_the_authors_format_is_not_pushed(self, tmp_path, monkeypatch, capsys):
        options = ("--push-to-hub", "me/sloth", "--to-authors-format")
        assert self.run(tmp_path, tmp_path / "theirs", *options) == 2
        assert "leave --to-authors-format out" in capsys.readouterr().err

    def test_push_to_hub(self, authors_directory, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(command, "push_to_hub", lambda *arguments, **options: f"{arguments} {options}")
        ours = tmp_path / "ours"
        options = ("--push-to-hub", "me/sloth", "--private", "--scores", "hd", "--no-verify")
        assert self.run(authors_directory, ours, *options) == 0
        output = capsys.readouterr().out
        given = {"private": True, "scores": "hd", "results": None}
        assert output.endswith(f"Uploaded it to {(ours, 'me/sloth')} {given}.\n")
        assert "Not read back." in output
