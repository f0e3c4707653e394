"""Rivals and presets have their published sizes, classes and tokens, and run; counting needs no clock, no weights."""

import json

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from benchmarks import compare, counting, training_rivals
from benchmarks.building import without_values
from benchmarks.compare_rows import CLASSES, GROUPS
from benchmarks.counting import NoProducts
from benchmarks.lfm2_vl_images import Lfm2VlImages
from benchmarks.presets import PRESETS, flashsloth_config
from benchmarks.rivals import RIVALS, build_rival, rival_config
from benchmarks.sampling import Sampler
from benchmarks.short_report import ahead_table, in_classes, short_table
from benchmarks.subjects import photo
from benchmarks.worker import Settings

TINY = Settings(tiny=True, dtype="float32", new_tokens=2, batch=3)
QUICK = ["--tiny", "--dtype", "float32", "--new-tokens", "2"]
VISUAL_TOKENS = {
    "lfm2.5-vl-450m": 1280,
    "lfm2.5-vl-450m-unsplit": 256,
    "smolvlm2-500m": 1088,
    "qwen3.5-0.8b": 576,
    "minicpm-v-4.6": 320,
    "fastvlm-1.5b": 256,
    "lfm2.5-vl-1.6b": 1280,
    "lfm2.5-vl-1.6b-unsplit": 256,
    "qwen3.5-2b": 576,
    "qwen3-vl-2b": 576,
    "gemma-4-e2b": 256,
    "smolvlm2-2.2b": 1377,
}
# As the Hub shows them; of Gemma 4 E2B without audio, of Qwen3.5 without the layer that predicts a second token.
PARAMETERS = {
    "lfm2.5-vl-450m": 448_718_848,
    "smolvlm2-500m": 507_482_304,
    "qwen3.5-0.8b": 852_985_920,
    "lfm2.5-vl-1.6b": 1_596_625_904,
    "qwen3-vl-2b": 2_127_532_032,
    "smolvlm2-2.2b": 2_246_784_880,
    "ours-gemma3-270m": 268_098_176,
    "ours-lfm2-350m": 354_483_968,
    "ours-lfm2-700m": 742_489_344,
    "ours-lfm2-1.2b": 1_170_340_608,
    "ours-smollm3-3b": 3_075_098_624,
}


def known(name: str) -> None:
    if RIVALS[name].config["model_type"] not in CONFIG_MAPPING:
        pytest.skip("this transformers does not know it yet")
    if name == "fastvlm-1.5b":
        pytest.importorskip("timm")  # its tower


def model_of(name: str):
    """The model at its true size, without memory."""
    config = flashsloth_config(name) if name in PRESETS else rival_config(RIVALS[name], tiny=False)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def count_of(*modules) -> int:
    return sum({id(parameter): parameter.numel() for part in modules for parameter in part.parameters()}.values())


@pytest.mark.parametrize("name", RIVALS)
def test_a_tiny_one_runs_on_as_many_visual_tokens_as_the_true_one(name):
    known(name)
    subject = build_rival(name, "cpu", torch.float32, tiny=True)
    inputs = subject.inputs(photo())
    assert subject.num_visual_tokens(inputs) == VISUAL_TOKENS[name]
    sampler = Sampler.__new__(Sampler)
    sampler.settings, sampler.subjects, sampler.image = TINY, {name: subject}, photo()
    with NoProducts():
        facts = sampler.facts(name)
    flops = facts["flops"]
    assert min(flops["vision"], flops["compression"], flops["decoder"]) > 0
    assert flops["other"] < 0.01 * flops["total"]
    assert facts["kv_bytes"] > 0 < facts["decoding_bytes"] <= facts["weight_bytes"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_true_sizes(name):
    if name in RIVALS:
        known(name)
        assert count_of(model_of(name)) == PARAMETERS[name]
    else:  # the decoder's own
        model = model_of(name)
        assert count_of(model.model.language_model, model.lm_head) == PARAMETERS[name]


@pytest.mark.slow
@pytest.mark.parametrize("billions", CLASSES)
def test_classes_are_by_parameters(billions):
    smaller = max([size for size in CLASSES if size < billions], default=0)
    for name in {row.removesuffix("-hd") for row in CLASSES[billions]} - {"fastvlm-1.5b"}:
        model = model_of(name)
        tables = [model.get_submodule(path) for path in RIVALS[name].tables] if name in RIVALS else []
        assert smaller < round((count_of(model) - count_of(*tables)) / 1e9, 1) <= billions, name


def test_classes_hold_rows_that_are_measured():
    rows = [row for names in CLASSES.values() for row in names]
    assert len(rows) == len(set(rows)) and set(rows) <= {row for group in GROUPS.values() for row in group}
    assert {*RIVALS} <= set(rows)


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("size", [(768, 768), (300, 200), (1600, 500), (90, 90), (512, 1024)])
def test_lfm2_vl_reads_images_as_transformers_does_with_torchvision(split, size):
    pytest.importorskip("torchvision")
    from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor

    expected = Lfm2VlImageProcessor(do_image_splitting=split)(photo(*size), return_tensors="pt")
    found = Lfm2VlImages(split)(photo(*size))
    assert found["spatial_shapes"].tolist() == expected["spatial_shapes"].tolist()
    assert torch.equal(found["pixel_attention_mask"], expected["pixel_attention_mask"])
    # A grey level, by which the two may round apart.
    torch.testing.assert_close(found["pixel_values"], expected["pixel_values"], rtol=0, atol=1.01 / 127.5)


def test_lfm2_vl_splits_a_large_image_and_pads_a_small_one():
    large, small = Lfm2VlImages()(photo(1600, 500)), Lfm2VlImages()(photo(300, 200))
    assert large["spatial_shapes"].tolist() == [[32, 32]] * 3 + [[16, 56]]
    assert small["spatial_shapes"].tolist() == [[14, 20]] and small["pixel_attention_mask"].sum() == 14 * 20


class TestCounting:
    def test_counts_are_those_of_a_run_with_values(self):
        expected = Sampler(["ours-lfm2-350m"], TINY).facts("ours-lfm2-350m")
        with without_values(), NoProducts():
            found = Sampler(["ours-lfm2-350m"], TINY).facts("ours-lfm2-350m")
        assert found == expected

    def test_command_fills_what_needs_no_clock_and_counts_a_group_once(self, tmp_path, capsys, monkeypatch):
        short = tmp_path / "SHORT.md"
        kept = "<!-- presets begin -->\nmeasured before\n<!-- presets end -->\n"
        short.write_text(f"<!-- speed begin -->\nold\n<!-- speed end -->\n{kept}")
        arguments = [*QUICK, "--count", "--models", "ours", "ours-lfm2-350m", "--output", str(tmp_path / "out")]
        compare.main([*arguments, "--short-readmes", str(short)])
        assert "| ≤ 3.2 B | FlashSloth | 81 | 152 |" in capsys.readouterr().out
        assert "| ≤ 0.6 B | FlashSloth-lfm2-350m | 64 |  |  |" in short.read_text() and "old" not in short.read_text()
        assert short.read_text().endswith(kept)

        def again(*args):
            raise AssertionError("counted again")

        monkeypatch.setattr(counting, "count_group", again)
        compare.main(arguments)
        with pytest.raises(AssertionError, match="counted again"):
            compare.main([*arguments[:-2], "--threads", "1", *arguments[-2:]])

    def test_a_model_that_cannot_be_built_keeps_its_error(self, tmp_path, monkeypatch):
        def fails(*args):
            raise ImportError("it needs timm\nand more")

        monkeypatch.setattr("benchmarks.sampling.build_rival", fails)
        found = counting.count(tmp_path, ["fastvlm-1.5b"], TINY)
        assert found == {"fastvlm-1.5b": {"error": "ImportError: it needs timm"}}
        assert json.loads((tmp_path / "counts.json").read_text())["rows"] == found


class TestShort:
    def found(self, ttft: float | None, decode: float, cache: int, flops: float = 1e12) -> dict:
        facts = {"kv_bytes": cache - 1, "memory_bytes": 1, "weight_bytes": 10**9, "visual_tokens": 64}
        found = {"facts": facts | {"flops": {"total": flops}}}
        if ttft is not None:
            spread = {"low": 0.0, "high": 9.0}
            found |= {"ttft": {}, "ttft_over_floor": {"median": ttft} | spread}
            found["decode_over_floor"] = {"median": decode} | spread
        return found

    def test_a_preset_is_held_against_the_best_rival_of_its_class_in_each_column(self):
        summaries = {
            "ours-lfm2-350m": self.found(1.0, 3.0, 30),
            "lfm2.5-vl-450m": self.found(2.0, 1.5, 120),
            "smolvlm2-500m": self.found(4.0, 2.0, 60),
            "qwen3-vl-2b": self.found(0.1, 99.0, 1),  # of another class
            "lfm2.5-vl-450m-unsplit": self.found(None, 0, 1),  # counted alone
        }
        lines = ahead_table(summaries).splitlines()
        assert lines[2:] == ["| ≤ 0.6 B | FlashSloth-lfm2-350m | 0.50 | 1.50 | 0.50 |"]

    def test_the_quickest_of_a_class_comes_first_and_what_was_only_counted_last(self):
        summaries = {
            "ours-lfm2-350m": self.found(2.0, 1.0, 1),
            "smolvlm2-500m": self.found(None, 1.0, 1, flops=2.0),
            "lfm2.5-vl-450m": self.found(None, 1.0, 1, flops=1.0),
            "ours-gemma3-270m": self.found(1.0, 1.0, 1),
        }
        names = [name for _, name, _ in in_classes(summaries)]
        assert names == ["ours-gemma3-270m", "ours-lfm2-350m", "lfm2.5-vl-450m", "smolvlm2-500m"]
        assert short_table(summaries).splitlines()[-1].startswith("| ≤ 0.6 B | smolvlm2-500m | 64 |  |  | 0.0 |")


class TestTraining:
    def test_a_lora_step_of_ours_and_of_a_rival(self, tmp_path, capsys, monkeypatch):
        pytest.importorskip("peft", reason="needs the extra `train`")
        arguments = ["--tiny", "--dtype", "float32", "--steps", "1", "--output", str(tmp_path)]
        models = ["--models", "ours-lfm2-350m", "lfm2.5-vl-450m-unsplit"]
        training_rivals.main([*arguments, *models])
        rows = [json.loads((tmp_path / f"{name}.json").read_text())["row"] for name in models[1:]]
        assert [row["positions"] for row in rows] == [135 + 64, 291 + 64]
        assert all(row["seconds"][0] > 0 < row["kept_bytes"] for row in rows)
        assert "| FlashSloth-lfm2-350m | 199 |" in capsys.readouterr().out
        monkeypatch.setattr(training_rivals, "measure", None)  # is kept
        training_rivals.main([*arguments, *models])

    def test_only_adapters_on_the_decoder_learn(self):
        pytest.importorskip("peft", reason="needs the extra `train`")
        options = training_rivals.argparse.Namespace(device="cpu", dtype="float32", tiny=True, checkpointing=False)
        subject = training_rivals.build("ours", options)
        trained = {name for name, parameter in subject.model.named_parameters() if parameter.requires_grad}
        assert all("language_model" in name and "lora_" in name for name in trained)
        assert len(trained) == 3 * 6 * 2
        batch = training_rivals.batch_of(subject)
        assert (batch["labels"] != -100).sum() == training_rivals.ANSWER
        subject.model(**batch).loss.backward()
        gradients = [parameter.grad for parameter in subject.model.parameters() if parameter.requires_grad]
        assert sum(gradient.abs().sum() for gradient in gradients) > 0
