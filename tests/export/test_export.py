"""Exported graphs answer as the model does: rows, lengths, images, views and caches other than those traced."""

import copy
import json
import shutil
import sys

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version

pytest.importorskip("onnxscript", reason="needs the extra `export`")
pytest.importorskip("onnxruntime", reason="needs the extra `export`")
if Version(transformers.__version__).release < (5, 23):
    pytest.skip("transformers' exporter changed in 5.23", allow_module_level=True)

from flashsloth_command import main
from tests.tiny_backbones import IMAGE, TEXT, build, inputs_of, small
from transformers_flashsloth import FlashSlothProcessor
from transformers_flashsloth.checkpoints.opening import InputError
from transformers_flashsloth.export import precisions, tracing, writing
from transformers_flashsloth.exported.manifest import MANIFEST, read_manifest
from transformers_flashsloth.exported.onnx_flashsloth import OnnxFlashSloth

QUESTIONS = [10, 11, 12], [20, 21, 22, 23, 24], [30]
# Random weights so large that no answer hangs on a rounding.
CLEAR = {"initializer_range": 0.5}
DECODERS = {
    "llama": ("llama", {}, {"embq_layer": [0, 2]}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}, {"query_init_token_id": None}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 8, "sliding_window": 64}, {}),
    "granite": ("granite", {}, {}),
    "llama without queries": ("llama", {}, {"num_query_tokens": 0}),
    "llama without pooling": ("llama", {}, {"pooling": "none"}),
    "llama, oblong windows": ("llama", {}, {"pooling_window": [1, 2]}),
}


def exported(model, directory, windows=None) -> OnnxFlashSloth:
    directory.mkdir(exist_ok=True)
    writing.write_graphs(model, windows or {model.config.tokens_per_view: model.config.window}, directory)
    return OnnxFlashSloth.from_pretrained(directory, threads=1)


def assert_alike(model, other, **options):
    """Single rows, ragged batches, beams, text alone, several views, several images, and turns over a cache."""
    options = {"max_new_tokens": 6, "do_sample": False} | options
    prompts = [inputs_of(model, *QUESTIONS), inputs_of(model, QUESTIONS[1]), inputs_of(model, QUESTIONS[0], views=2)]
    text = {name: value for name, value in prompts[1].items() if name != "pixel_values"}
    text["input_ids"] = text["input_ids"].masked_fill(text["input_ids"] == IMAGE, 9)
    first = prompts[1]["input_ids"]
    two = {
        "input_ids": torch.cat([first, first], dim=1),
        "attention_mask": torch.ones(1, 2 * first.shape[1], dtype=torch.long),
        "pixel_values": torch.cat([prompts[1]["pixel_values"], -prompts[1]["pixel_values"]]),
    }
    for inputs in (*prompts, text, two):
        assert torch.equal(model.generate(**inputs, **options), other.generate(**inputs, **options))
    cache = transformers.DynamicCache()
    turn = {"input_ids": first, "pixel_values": prompts[1]["pixel_values"]}
    other.generate(**turn, past_key_values=cache, max_new_tokens=1)
    assert cache.get_seq_length() == first.shape[1]
    assert torch.equal(model.generate(**two, **options), other.generate(**two, **options, past_key_values=cache))


@pytest.fixture(scope="module")
def phi_directory(tmp_path_factory):
    return tmp_path_factory.mktemp("phi")


@pytest.fixture(scope="module")
def phi(phi_directory):
    model = build(small("phi", TEXT, **CLEAR))
    return model, exported(model, phi_directory)


def test_answers_equal_the_models(phi):
    assert_alike(*phi)


@pytest.mark.slow  # its threads stay in the process, where later tests fork
def test_openvino_answers_alike(phi, phi_directory):
    pytest.importorskip("openvino", reason="needs the extra `openvino`")
    assert_alike(phi[0], OnnxFlashSloth.from_pretrained(phi_directory, threads=1, runtime="openvino"))


@pytest.mark.usefixtures("phi")
def test_runtimes_that_are_not_there_are_named(phi_directory, monkeypatch):
    with pytest.raises(ValueError, match="no runtime 'tensorrt': choose one of onnxruntime, openvino"):
        OnnxFlashSloth.from_pretrained(phi_directory, runtime="tensorrt")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match="pip install openvino"):
        OnnxFlashSloth.from_pretrained(phi_directory, runtime="openvino")


def test_beams_are_followed(phi):
    """Scored among tokens that can be answered: placeholders have no share in a graph, where they have in the model."""
    model, other = phi
    inputs = inputs_of(model, *QUESTIONS)
    beams = {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **beams), other.generate(**inputs, **beams))


@torch.no_grad()
def test_embq_is_in_the_graph(phi):
    """Logits equal those of the model, and not those of the model without what its EmbQ finds."""
    model, other = phi
    inputs = inputs_of(model, *QUESTIONS)
    images = other._images(inputs["input_ids"], inputs["pixel_values"])
    logits = other.forward(inputs["input_ids"], images, inputs["attention_mask"]).logits
    kept = torch.isfinite(logits)
    torch.testing.assert_close(logits[kept], model(**inputs).logits[:, -1:][kept], atol=1e-4, rtol=1e-4)
    without = copy.deepcopy(model)
    for module in without.model.embq_modules:
        module.up_proj.weight.zero_(), module.up_proj.bias.zero_()
    assert (logits - without(**inputs).logits[:, -1:])[kept].abs().max() > 0.1


def test_images_that_do_not_match_are_refused(phi):
    model, other = phi
    inputs = inputs_of(model, QUESTIONS[0])
    with pytest.raises(ValueError, match=r"1 images of 1 views each, and \[3\] placeholders .* for 4 visual"):
        ids = inputs["input_ids"].clone()
        ids[0, (ids[0] == IMAGE).nonzero()[0]] = 9
        other.generate(input_ids=ids, pixel_values=inputs["pixel_values"], max_new_tokens=2)
    with pytest.raises(ValueError, match="4 image placeholders and no image"):
        other.generate(input_ids=inputs["input_ids"], max_new_tokens=2)


def test_sampling_draws_the_same(phi):
    model, other = phi
    inputs = inputs_of(model, *QUESTIONS)
    options = {"do_sample": True, "temperature": 5.0, "num_return_sequences": 3, "max_new_tokens": 6}
    drawn = []
    for one in (model, other):
        torch.manual_seed(0)
        drawn.append(one.generate(**inputs, **options))
    assert torch.equal(*drawn) and len({tuple(row.tolist()) for row in drawn[0]}) > 3


def test_a_size_that_was_fixed_is_not_written(phi, monkeypatch):
    model, _ = phi
    monkeypatch.setattr(tracing, "Dim", type("Fixed", (), {"AUTO": None}))
    with pytest.raises(RuntimeError, match=r"`pixel_values` was traced for .*, but images, views must be dynamic"):
        tracing.trace_image_encoder(model, {4: model.config.window})


def assert_explained_alike(model, other):
    """Several images and turns in a row, views, and rows of different lengths."""
    one, two = inputs_of(model, *QUESTIONS), inputs_of(model, QUESTIONS[0], views=2)
    first = inputs_of(model, QUESTIONS[1])
    turns = {
        "input_ids": torch.cat([first["input_ids"], first["input_ids"]], dim=1),
        "pixel_values": torch.cat([first["pixel_values"], -first["pixel_values"]]),
    }
    for inputs in (one, two, turns):
        expected, found = model.explain(**inputs), other.explain(**inputs)
        torch.testing.assert_close(found.pooling_weights, expected.pooling_weights)
        if model.model.embq is None:
            assert found.query_attention is None
            continue
        torch.testing.assert_close(found.query_attention, expected.query_attention[:, -1:])


def test_what_was_looked_at_equals_the_models(phi):
    model, other = phi
    assert_explained_alike(model, other)
    inputs = inputs_of(model, QUESTIONS[0])
    assert other.explain(**inputs).query_attention.sum().isclose(torch.tensor(float(model.config.num_query_tokens)))
    older = copy.copy(other)
    older.manifest = {name: value for name, value in other.manifest.items() if name != "explains"}
    with pytest.raises(ValueError, match="exported before exports explained what they answer: export it anew"):
        older.explain(**inputs)


def test_what_is_no_export_is_said(phi, tmp_path):
    with pytest.raises(ValueError, match=r"is no exported checkpoint, which has a export.json"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps({"version": 99, "files": []}))
    with pytest.raises(ValueError, match="was exported in version 99, this package reads up to 2"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps({"version": 1, "files": ["decoder.onnx"]}))
    with pytest.raises(ValueError, match=r"lacks decoder.onnx, which its export.json names"):
        read_manifest(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", DECODERS)
def test_other_decoders_and_shapes(tmp_path, decoder):
    kind, extra, choices = DECODERS[decoder]
    model = build(small(kind, TEXT, **CLEAR | extra), **choices)
    other = exported(model, tmp_path)
    assert_alike(model, other)
    assert_explained_alike(model, other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_checkpoint):
    """An export by the command."""
    output = tmp_path_factory.mktemp("whole") / "exported"
    assert main(["export", str(output), "--model", str(tiny_checkpoint)]) == 0
    return output


def test_ask_opens_an_export(whole, tiny_checkpoint, tmp_path, capsys):
    from PIL import Image

    image = tmp_path / "blue.png"
    Image.new("RGB", (20, 10), "blue").save(image)
    answers = []
    for checkpoint in (tiny_checkpoint, whole):
        assert main(["ask", str(image), "What is it?", "--model", str(checkpoint), "--max-new-tokens", "5"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    drawings = []
    for checkpoint in (tiny_checkpoint, whole):
        drawing = tmp_path / f"{len(drawings)}.png"
        assert main(["ask", str(image), "What?", "--model", str(checkpoint), "--explain", str(drawing)]) == 0
        drawings.append(np.asarray(Image.open(drawing)).astype(int))
    assert abs(drawings[0] - drawings[1]).max() <= 2 and capsys.readouterr()  # a rounding of the heat's level
    windows = FlashSlothProcessor.from_pretrained(tiny_checkpoint).windows
    other = next(tokens for tokens, window in windows.items() if [*window] != read_manifest(whole)["pooling_window"])
    for option, said in (
        (["--dtype", "bfloat16"], "was exported in fp32, for ONNX Runtime: leave `dtype` out"),
        (["--visual-tokens", str(other)], "export it again with `--visual-tokens`"),
    ):
        assert main(["ask", str(image), "What?", "--model", str(whole), *option]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["fp16", "uint8", "q4"])
def test_no_weights_of_another_precision_stay_beside_a_large_graph(
    phi, phi_directory, tmp_path, monkeypatch, precision
):
    """The limit is lowered instead: first all weights get a file of their own, then none, or those in fp16."""
    import onnx

    model, _ = phi
    shutil.copytree(phi_directory, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(precisions, "LARGEST_FILE", 2**10)
    for graph in tmp_path.glob("*.onnx"):
        precisions._rewrite(onnx.load(graph), graph)
    large = [file.stat().st_size for file in sorted(tmp_path.glob("*.data"))]
    assert len(large) == 2
    monkeypatch.setattr(precisions, "LARGEST_FILE", 2**10 if precision == "fp16" else 2**31)
    manifest = writing.convert_graphs(tmp_path, {model.config.tokens_per_view: model.config.window}, precision)
    files = sorted(file.name for file in tmp_path.glob("*.onnx*"))
    assert manifest["files"] == files and len(files) == (4 if precision == "fp16" else 2)
    for file, size in zip(sorted(tmp_path.glob("*.data")), large, strict=False):
        assert file.stat().st_size < 0.7 * size
    other = OnnxFlashSloth.from_pretrained(tmp_path, threads=1)
    inputs = inputs_of(model, QUESTIONS[0])
    assert other.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 1


def test_nothing_is_left_of_an_export_that_differs(tiny_checkpoint, tmp_path, monkeypatch):
    def wrong(model, windows, directory, *args):
        with torch.no_grad():
            model.lm_head.weight.mul_(-1)
        try:
            return write(model, windows, directory, *args)
        finally:
            with torch.no_grad():
                model.lm_head.weight.mul_(-1)

    write = writing.write_graphs
    monkeypatch.setattr(writing, "write_graphs", wrong)
    with pytest.raises(InputError, match=r"only \d+ of \d+ answers in fp32, with 1 visual tokens a view, equal those"):
        writing.export_checkpoint(str(tiny_checkpoint), tmp_path / "exported")
    assert not list(tmp_path.iterdir())


def test_there_is_no_such_precision_or_number_of_tokens(tiny_checkpoint, tmp_path):
    with pytest.raises(InputError, match="no precision 'fp8'; choose one of fp32, fp16, uint8, q4"):
        writing.export_checkpoint(str(tiny_checkpoint), tmp_path / "exported", precision="fp8")
    with pytest.raises(InputError, match="a view cannot become 7 visual tokens"):
        writing.export_checkpoint(str(tiny_checkpoint), tmp_path / "exported", visual_tokens=7)
    assert not list(tmp_path.iterdir())
