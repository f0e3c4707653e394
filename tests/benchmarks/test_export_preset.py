"""An export of a preset is measured beside PyTorch. What is timed is not asserted."""

import json

import pytest
import torch
import transformers
from packaging.version import Version

pytest.importorskip("onnxscript", reason="needs the extra `export`")
pytest.importorskip("onnxruntime", reason="needs the extra `export`")
if Version(transformers.__version__).release < (5, 23):
    pytest.skip("transformers' exporter changed in 5.23", allow_module_level=True)

from benchmarks import export, export_preset
from benchmarks.presets import flashsloth_config

COMMAND = ["--preset", "ours-qwen3-0.6b", "--tiny", "--new-tokens", "3", "--repeats", "1"]


def test_the_table_has_its_place(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- export-preset begin -->\nold\n<!-- export-preset end -->\n")
    where = ["--output", str(tmp_path), "--readme", str(readme)]
    export.main([*COMMAND, "--layers", "2", "--precisions", "fp32", "uint8", *where])
    found = json.loads((tmp_path / "export-preset.json").read_text())["found"]
    whole, bf16, exact, small = found.values()
    assert list(found) == ["PyTorch, fp32", "PyTorch, bf16", "ONNX, fp32", "ONNX, uint8"]
    assert whole["off"] == 0 and exact["off"] < 1e-3 < small["off"]
    assert whole["equal"] == exact["equal"] == 3
    assert bf16["bytes"] * 2 == whole["bytes"] and small["bytes"] < 0.5 * exact["bytes"]
    assert whole["first"]["over"]["median"] == whole["step"]["over"]["median"] == 1
    assert exact["first"]["over"]["n"] == 1 and whole["first"]["over"]["n"] == 2  # once beside each export
    text = readme.read_text()
    assert "old" not in text and "tiny ours-qwen3-0.6b with 2 layers" in text and "| ONNX, uint8 |" in text
    assert text.split("\n", 1)[1].startswith(capsys.readouterr().out.strip())


def test_a_precision_that_fails_says_why(tmp_path, monkeypatch, capsys):
    def fails(model, whole, precision):
        raise ValueError(f"no {precision}\nand more")

    monkeypatch.setattr(export_preset, "export", fails)
    export.main([*COMMAND, "--precisions", "q4", "--output", str(tmp_path)])
    assert "ONNX, q4: ValueError: no q4" in capsys.readouterr().out


def test_tokens_count_until_the_first_that_differs(monkeypatch):
    logits = torch.tensor([0.0, 2.0, float("-inf"), 4.0])
    answers = {"whole": (torch.tensor([1, 2, 3, 4]), logits), "other": (torch.tensor([1, 2, 5, 4]), logits + 1)}
    monkeypatch.setattr(export_preset, "answer", lambda subject, new_tokens: answers[subject])
    assert export_preset.compare("whole", "other", 4) == {"off": pytest.approx(0.5), "equal": 2}


def test_layers_are_cut_with_their_kinds():
    config = flashsloth_config("ours-gemma3-270m")
    export_preset.cut(config, 7)
    assert config.text_config.layer_types == ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    assert config.text_config.num_hidden_layers == 7
