"""The benchmarks run, and count right. What they time is not asserted."""

import json
import mmap

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from benchmarks import (
    batches,
    building,
    compare,
    compare_report,
    compiled,
    dispatch,
    growth,
    overhead,
    preprocessing,
    quantised,
    report,
    reuse,
    rivals,
    sampling,
)
from benchmarks.measure import Clock, PeakMemory, count_flops, slope, summary
from benchmarks.ours import ask_flashsloth, build_flashsloth
from benchmarks.presets import PRESETS, flashsloth_config
from benchmarks.sampling import Sampler
from benchmarks.subjects import photo
from benchmarks.training_cost import peak_of
from benchmarks.worker import FLASHSLOTH_NAMES, Settings

TINY = Settings(tiny=True, dtype="float32", new_tokens=2, batch=3)
FLOPS = ("total", "vision", "compression")
QUICK = ["--tiny", "--dtype", "float32", "--new-tokens", "2"]


@pytest.fixture(scope="module")
def flashsloths() -> Sampler:
    return Sampler(list(FLASHSLOTH_NAMES), TINY)


@pytest.fixture(scope="module")
def facts(flashsloths) -> dict[str, dict]:
    return {name: flashsloths.facts(name) for name in FLASHSLOTH_NAMES}


class TestCounts:
    def test_visual_tokens(self, facts):
        assert {name: found["visual_tokens"] for name, found in facts.items()} == {
            "floor": 81, "floor-hd": 405, "ours": 81, "ours-hd": 405, "ours-window9": 9, "ours-hd-window9": 45,
        }  # fmt: skip

    @pytest.mark.parametrize(("suffix", "views"), [("", 1), ("-hd", 5)])
    def test_ours_computes_the_floor_and_sap_and_embq(self, facts, suffix, views):
        config = flashsloth_config("ours", tiny=True)
        width, vision_width, hidden = config.text_config.hidden_size, config.vision_config.hidden_size, 32
        patches, length = views * 729, facts[f"ours{suffix}"]["prompt_tokens"]
        queries = config.num_query_tokens
        sap = 2 * patches * vision_width * (vision_width + 2)
        question = length * hidden * (width + 2 * hidden) + queries * hidden * (hidden + 2 * length)
        image = patches * (vision_width * hidden + hidden**2 + vision_width**2)
        image += queries * (hidden**2 + patches * (hidden + vision_width) + vision_width * width)

        ours, floor = facts[f"ours{suffix}"]["flops"], facts[f"floor{suffix}"]["flops"]
        assert ours["total"] - floor["total"] == sap + 2 * (question + image)
        assert ours["compression"] - floor["compression"] == ours["total"] - floor["total"]
        assert ours["vision"] == floor["vision"] > 0
        assert ours["decoder"] == floor["decoder"] > 0

    def test_attention_on_the_cpu_is_counted(self):
        query = torch.zeros(1, 2, 5, 8)
        keys = torch.zeros(1, 2, 7, 8)
        flops = count_flops(lambda: torch.nn.functional.scaled_dot_product_attention(query, keys, keys))
        assert flops == 2 * 2 * 2 * 5 * 7 * 8

    def test_cache(self, facts):
        text = flashsloth_config("ours", tiny=True).text_config
        keys = text.num_hidden_layers * text.num_key_value_heads * text.head_dim
        assert facts["ours"]["kv_bytes"] == facts["floor"]["kv_bytes"] == 2 * keys * 152 * 4
        assert facts["ours"]["memory_bytes"] == 729 * 48 * 4
        assert facts["floor"]["memory_bytes"] == 0

    def test_a_decoding_step_runs_what_the_decoder_alone_runs_and_keeps_placeholders_out(self, flashsloths):
        steps = {}
        for name in ("ours", "floor"):
            subject = flashsloths.subjects[name]
            inputs = subject.inputs(photo())
            counts = [overhead.operations(subject, inputs, tokens) for tokens in (2, 3)]
            steps[name] = counts[1] - counts[0]
        assert steps["ours"] - steps["floor"] == {"aten.index_fill.int_Scalar": 1}
        assert steps["ours"].total() == steps["floor"].total() + 1 > 1

    def test_true_size(self):
        """Parameters of a model that is built without memory, in billions."""
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(flashsloth_config("ours"))
        assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e9, 2) == 3.2


class TestSamples:
    @pytest.mark.parametrize("name", ["ours", "floor"])
    def test_parts_make_the_time_to_first_token(self, flashsloths, name):
        sample = flashsloths.sample(name)
        parts = [sample[part]["wall"] for part in compare_report.PARTS]
        assert sum(parts) == pytest.approx(sample["ttft"]["wall"])
        assert min(parts) > 0
        assert sample["decode"]["wall"] > 0
        assert sample["decode_batch"]["wall"] > 0
        assert sample["peak_bytes"] > 0

    @pytest.mark.parametrize("name", ["lfm2.5-vl-450m-unsplit", "ours-qwen3.5-0.8b"])  # states, copied for a batch
    def test_other_models(self, name):
        sampler = Sampler([name], TINY)
        found = sampler.facts(name)
        assert found["flops"]["vision"] > 0
        assert found["flops"]["decoder"] > 0
        assert found["visual_tokens"] == (64 if name in PRESETS else 256)
        assert sampler.sample(name)["decode_batch"]["wall"] > 0

    @pytest.mark.slow
    @pytest.mark.parametrize("name", [name for name in (*rivals.RIVALS, *PRESETS) if name != "fastvlm-1.5b"])
    def test_every_model(self, name):
        sampler = Sampler([name], TINY)
        assert sampler.facts(name)["flops"]["compression"] > 0
        assert sampler.sample(name)["ttft"]["wall"] > 0


def fake_sample(seconds: float) -> dict:
    part = {"wall": seconds / 5, "cpu": seconds / 5}
    times = {name: part for name in compare_report.PARTS}
    whole = {"wall": seconds, "cpu": seconds}
    return times | {"ttft": whole, "decode": whole, "decode_batch": whole, "peak_bytes": 10**9}


class TestCompare:
    def test_command_runs_and_goes_on_where_it_stopped(self, tmp_path, capsys, monkeypatch):
        readme = tmp_path / "README.md"
        readme.write_text("a\n<!-- compare begin -->\nold\n<!-- compare end -->\nb\n")
        short = tmp_path / "SHORT.md"
        short.write_text("<!-- speed begin -->\n<!-- speed end -->\n")
        arguments = [*QUICK, "--models", "ours", "--repeats", "1", "--output", str(tmp_path / "out")]
        compare.main([*arguments, "--readme", str(readme), "--short-readmes", str(short)])
        row = json.loads((tmp_path / "out" / "ours.json").read_text())
        assert len(row["samples"]) == 1
        assert len(row["floors"]) == 2
        assert row["machine"]["dtype"] == "float32"
        assert "| FlashSloth | 81 |" in capsys.readouterr().out
        assert "| FlashSloth | 81 |" in readme.read_text()
        assert "old" not in readme.read_text()
        assert "| ≤ 3.2 B | FlashSloth | 81 | " in short.read_text() and "floor" not in short.read_text()

        def no_process(*args):
            raise AssertionError("measured again")

        monkeypatch.setattr(compare, "Worker", no_process)
        compare.main(arguments)
        with pytest.raises(AssertionError, match="measured again"):
            compare.main([*arguments, "--fresh"])

    def test_a_model_that_does_not_run_keeps_its_error(self, tmp_path, capsys, monkeypatch):
        class FakeWorker:
            def __init__(self, names, settings):
                self.fails = names == ["fastvlm-1.5b"]

            def ask(self, function, *args):
                if self.fails:
                    raise RuntimeError("ImportError: it needs timm")
                facts = {"visual_tokens": 81, "prompt_tokens": 152, "flops": dict.fromkeys(FLOPS, 1)}
                facts |= dict.fromkeys(("weight_bytes", "decoding_bytes", "kv_bytes", "memory_bytes"), 1)
                machine = {"gpu": "GPU", "threads": 1, "dtype": "float32", "torch": "2", "transformers": "5"}
                answers = {"facts": facts, "ceilings": {"flops": 1e12, "bytes": 1e9}, "machine": machine}
                return answers.get(function) or fake_sample(1.0)

            def close(self):
                pass

        monkeypatch.setattr(compare, "Worker", FakeWorker)
        speed, presets, neither = (tmp_path / name for name in ("SPEED.md", "PRESETS.md", "NEITHER.md"))
        speed.write_text("<!-- speed begin -->\n<!-- speed end -->\n")
        presets.write_text("<!-- presets begin -->\n<!-- presets end -->\n")
        neither.write_text("no marks\n")
        arguments = [*QUICK, "--models", "fastvlm-1.5b", "qwen3-vl-2b", "ours-lfm2-1.2b", "--output", str(tmp_path)]
        compare.main([*arguments, "--short-readmes", str(speed), str(presets)])
        printed = capsys.readouterr().out
        assert "fastvlm-1.5b did not run: ImportError: it needs timm" in printed
        assert "| qwen3-vl-2b | 81 | 1.00 (1.00-1.00) |" in printed
        assert "| ≤ 3.2 B | qwen3-vl-2b | 81 | 1.00 (1.00-1.00) |" in speed.read_text()
        assert "| ≤ 3.2 B | FlashSloth-lfm2-1.2b | 1.00 | 1.00 | 1.00 |" in presets.read_text()
        with pytest.raises(ValueError, match=r"NEITHER\.md needs the lines '<!-- speed begin -->'"):
            compare.main([*arguments, "--short-readmes", str(neither)])

    def test_a_machine_that_slows_down_changes_no_ratio(self):
        row = {"samples": [fake_sample(3.0), fake_sample(9.0)], "floors": [fake_sample(s) for s in (0.5, 1.5, 4.5)]}
        assert compare_report.ratios(row, "ttft", "wall") == [3.0, 3.0]


class TestOtherCommands:
    def test_batches(self, tmp_path, capsys):
        batches.main([*QUICK, "--rows", "1", "3", "--repeats", "1", "--output", str(tmp_path)])
        sizes = json.loads((tmp_path / "batches.json").read_text())["sizes"]
        assert list(sizes) == ["1", "3"]
        assert "by length / one by one" in capsys.readouterr().out

    def test_batches_of_equal_rows_alone(self, tmp_path, capsys):
        batches.main([*QUICK, "--rows", "2", "--repeats", "1", "--hd", "--equal", "--output", str(tmp_path)])
        (found,) = json.loads((tmp_path / "batches-hd.json").read_text())["sizes"].values()
        assert found["mixed"] is None and found["ttft_over_floor"]["n"] == 1
        assert "One by one" not in capsys.readouterr().out

    def test_mixed_rows_are_what_single_rows_are(self, flashsloths):
        subject = flashsloths.subjects["ours"]
        single = subject.inputs(photo())
        with torch.inference_mode():
            together = subject.model(**batches.mixed_rows(subject, single, [9, 20, 12])).logits[:, -1]
            for row, length in zip(together, [9, 20, 12], strict=True):
                alone = subject.model(**batches.mixed_rows(subject, single, [length])).logits[0, -1]
                torch.testing.assert_close(row, alone, rtol=1e-4, atol=1e-5)

    def test_growth(self, tmp_path, capsys):
        growth.main([*QUICK, "--points", "2", "--repeats", "1", "--output", str(tmp_path)])
        curves = json.loads((tmp_path / "growth.json").read_text())["curves"]
        assert set(curves) == set(growth.CURVES)
        one, two = curves["rows"]["flops"]
        assert two == pytest.approx(2 * one, rel=0.01)
        for share in curves["views"]["shares"]:
            assert 0 < share["sap"] < share["embq"] < 0.1
        assert "| new tokens |" in capsys.readouterr().out

    def test_overhead(self, tmp_path, capsys):
        overhead.main([*QUICK, "--output", str(tmp_path)])
        found = json.loads((tmp_path / "overhead.json").read_text())
        assert found["ours"]["step_operations"] == found["floor"]["step_operations"] + 1
        assert "| ours |" in capsys.readouterr().out

    def test_dispatch(self, tmp_path, capsys):
        dispatch.main([*QUICK, "--repeats", "1", "--output", str(tmp_path)])
        found = json.loads((tmp_path / "dispatch.json").read_text())
        for part in ("prefill", "step"):
            ratio = found["FlashSloth"][part]["median"] / found["floor"][part]["median"]
            assert found["FlashSloth"][f"{part}_over_floor"]["median"] == pytest.approx(ratio)
        assert "| FlashSloth |" in capsys.readouterr().out

    def test_dispatch_has_every_layer_of_the_real_model(self):
        real, narrow = flashsloth_config("ours"), dispatch.narrow_config(tiny=False)
        for part in ("text_config", "vision_config"):
            assert getattr(narrow, part).num_hidden_layers == getattr(real, part).num_hidden_layers
        assert narrow.embq_layer == real.embq_layer
        assert narrow.tokens_per_view == 1

    @pytest.mark.slow
    def test_compiled(self, tmp_path, capsys):
        compiled.main([*QUICK, "--repeats", "1", "--output", str(tmp_path)])
        found = json.loads((tmp_path / "compiled.json").read_text())
        assert list(found) == ["floor", "FlashSloth", "floor, compiled", "FlashSloth, compiled"]
        assert "| FlashSloth, compiled |" in capsys.readouterr().out

    def test_compiled_subjects_answer_alike_on_shared_weights(self, monkeypatch):
        monkeypatch.setattr(torch.nn.Module, "compile", lambda module: None)
        monkeypatch.setattr(torch, "compile", lambda function: function)
        asked = compiled.subjects(TINY, hd=False)
        pointers = {name: subject.embeddings.weight.data_ptr() for name, subject in asked.items()}
        assert len(set(pointers.values())) == 1
        with torch.inference_mode():
            plain, twin = (
                sampling.generate(subject, subject.inputs(photo()), 3, static=name.endswith("compiled")).sequences
                for name, subject in asked.items()
                if name.startswith("FlashSloth")
            )
        assert plain.tolist() == twin.tolist()

    def test_reuse(self, tmp_path, capsys):
        reuse.main([*QUICK, "--repeats", "1", "--output", str(tmp_path)])
        found = json.loads((tmp_path / "reuse.json").read_text())
        assert found["many"]["equal"] == found["many"]["questions"] == 20
        assert found["base"]["first question"]["wall"]["median"] == 1
        assert "| HD, prefix kept |" in capsys.readouterr().out

    def test_reuse_computes_a_second_question_alone(self):
        """Positions that enter the decoder, and images that enter the tower, in each way."""
        model = build_flashsloth("ours", "cpu", torch.float32, tiny=True)
        subject = ask_flashsloth(model, "cpu", torch.float32, hd=True)
        subject.stages.remove()
        positions, views = [], []
        model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: positions.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
        )
        model.model.vision_tower.register_forward_hook(lambda *_, **__: views.append(1))
        with torch.inference_mode():
            reuse.sample(subject, Clock("cpu"))
        before = 32 + 405 + 1
        assert positions == [476, 476, before, 476 - before] and len(views) == 1

    def test_preprocessing(self, tmp_path, capsys):
        preprocessing.main([*QUICK, "--repeats", "1", "--output", str(tmp_path)])
        found = json.loads((tmp_path / "preprocessing.json").read_text())
        assert found["base"]["grey_levels_off"] == found["HD"]["grey_levels_off"] == 0
        assert "| HD, draft mode |" in capsys.readouterr().out

    def test_quantised(self, tmp_path, capsys):
        try:
            import torchao  # noqa: F401
        except ImportError:
            with pytest.raises(SystemExit, match="pip install torchao"):
                quantised.main([*QUICK, "--output", str(tmp_path)])
            return
        quantised.main([*QUICK, "--repeats", "1", "--output", str(tmp_path)])
        found = json.loads((tmp_path / "quantised.json").read_text())
        assert found["int8, torchao"]["bytes_ratio"] < 0.4
        assert "| int8, torchao |" in capsys.readouterr().out


class TestMeasuring:
    def test_summary(self):
        assert summary([3.0, 1.0]) == {"median": 2.0, "low": 1.0, "high": 3.0, "n": 2}
        assert summary([1.0, 2.0, 3.0, 4.0, 100.0]) == {"median": 3.0, "low": 2.0, "high": 4.0, "n": 5}

    def test_slope(self):
        line = slope([1, 2, 4, 8], [5.0, 8.0, 14.0, 26.0])
        assert line == pytest.approx({"per_unit": 3.0, "intercept": 2.0, "exponent": 1.0})
        assert slope([0, 1, 2, 4], [7.0, 8.0, 11.0, 23.0])["exponent"] == pytest.approx(2.0)

    def test_peak_memory(self):
        memory = PeakMemory("cpu")
        memory.reset()
        before = memory.read()
        with mmap.mmap(-1, 2**26) as pages:  # pages of its own: the heap may have some to spare
            pages.write(bytes(2**26))
        assert memory.read() - before > 2**25

    def test_the_peak_of_a_call_is_its_own_however_much_was_freed_before(self):
        def call() -> None:
            blocks = [torch.ones(2**17) for _ in range(128)]  # half a megabyte each, which the heap keeps when freed
            assert len(blocks) == 128

        for _ in range(3):
            assert peak_of(call, "cpu") > 0.8 * 128 * 2**19

    def test_a_model_that_memory_cannot_hold_is_refused(self):
        building.check_memory(0)
        with pytest.raises(MemoryError, match="leave this model out"):
            building.check_memory(2**60)

    def test_figures_need_their_marks(self, tmp_path):
        document = tmp_path / "README.md"
        document.write_text("no marks")
        with pytest.raises(ValueError, match="compare begin"):
            report.put_between_marks(document, "compare", "text")

    def test_photo_is_an_image_of_that_size(self):
        assert isinstance(photo(30, 20), Image.Image)
        assert photo(30, 20).size == (30, 20)
