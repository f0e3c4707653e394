"""An export with several pooling windows answers in each as the model does, and holds its weights once."""

import copy
import json
import shutil
from collections import Counter

import pytest
import torch
import transformers
from packaging.version import Version

pytest.importorskip("onnx", reason="needs the extra `export`")
pytest.importorskip("onnxscript", reason="needs the extra `export`")
pytest.importorskip("onnxruntime", reason="needs the extra `export`")
if Version(transformers.__version__).release < (5, 23):
    pytest.skip("transformers' exporter changed in 5.23", allow_module_level=True)

import onnx
import onnx_ir
from PIL import Image

from flashsloth_command import main
from tests.export.test_export import CLEAR, QUESTIONS, assert_alike, assert_explained_alike, exported
from tests.tiny_backbones import TEXT, VISION, build, inputs_of, small
from transformers_flashsloth import FlashSlothConfig, FlashSlothForConditionalGeneration, FlashSlothProcessor
from transformers_flashsloth.checkpoints.opening import InputError
from transformers_flashsloth.export import graphs, writing
from transformers_flashsloth.export.precisions import PRECISIONS
from transformers_flashsloth.export.tracing import trace_image_encoder
from transformers_flashsloth.exported.manifest import MANIFEST, read_manifest
from transformers_flashsloth.exported.onnx_flashsloth import OnnxFlashSloth

# Of 4 x 4 patches, by the tokens that they leave; the model's own first.
WINDOWS = {4: (2, 2), 1: (4, 4), 16: (1, 1)}


def in_window(model, window) -> FlashSlothForConditionalGeneration:
    """The same weights in a model whose own window it is."""
    config = FlashSlothConfig.from_dict(model.config.to_dict() | {"pooling_window": list(window)})
    other = FlashSlothForConditionalGeneration(config).eval()
    other.load_state_dict(model.state_dict())
    other.generation_config = copy.deepcopy(model.generation_config)
    return other


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("windows")


@pytest.fixture(scope="module")
def phi(directory):
    model = build(small("phi", TEXT, **CLEAR))
    return model, exported(model, directory, WINDOWS)


@pytest.mark.parametrize("window", WINDOWS.values())
def test_each_window_answers_and_explains_as_the_model(phi, window):
    model, other = in_window(phi[0], window), phi[1]
    assert_alike(model, other)
    assert_explained_alike(model, other)


@pytest.mark.slow  # its threads stay in the process, where later tests fork
def test_openvino_knows_them_too(phi, directory):
    pytest.importorskip("openvino", reason="needs the extra `openvino`")
    other = OnnxFlashSloth.from_pretrained(directory, threads=1, runtime="openvino")
    for window in WINDOWS.values():
        assert_alike(in_window(phi[0], window), other)
        assert_explained_alike(in_window(phi[0], window), other)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["average", "none"])
def test_windows_without_learned_weights(tmp_path, pooling):
    model = build(small("llama", TEXT, **CLEAR), pooling=pooling)
    tokens = model.config.tokens_per_view
    windows = {tokens: model.config.window} | WINDOWS
    other = exported(model, tmp_path, windows)
    inputs = inputs_of(in_window(build(small("llama", TEXT, **CLEAR)), (4, 4)), *QUESTIONS)  # one token a view
    options = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **options), other.generate(**inputs, **options))
    assert_explained_alike(model, other)
    torch.testing.assert_close(other.explain(**inputs).pooling_weights, model.explain(**inputs).pooling_weights)


def test_only_what_is_needed_is_computed(phi, monkeypatch):
    model, other = phi
    asked, run = [], other.encoder.run
    monkeypatch.setattr(other.encoder, "run", lambda names, feed: asked.append(names) or run(names, feed))
    pixels = inputs_of(model, QUESTIONS[0])["pixel_values"]
    images = [other.encode(pixels, [1], tokens) for tokens in (None, 16, 1)]
    assert asked == [
        ["image_tokens", "image_features", "pooling_weights"],
        ["image_tokens_16", "image_features", "pooling_weights_16"],
        ["image_tokens_1", "image_features", "pooling_weights_1"],
    ]
    assert [one.tokens.shape[1] for one in images] == [4, 16, 1]
    with pytest.raises(ValueError, match="no 9 visual tokens a view here: this was exported for 4, 1, 16 visual"):
        other.encode(pixels, [1], 9)


def test_other_numbers_and_mixtures_are_refused(phi):
    model, other = phi
    both = inputs_of(in_window(model, (1, 1)), *QUESTIONS[:2])
    few = inputs_of(model, *QUESTIONS[:2])
    width = both["input_ids"].shape[1] - few["input_ids"].shape[1]
    for name in ("input_ids", "attention_mask"):  # a row in windows of 1 x 1, a row in windows of 2 x 2
        both[name] = torch.stack([both[name][0], torch.nn.functional.pad(few[name][1], (width, 0))])
    numbers = r"exported for 4, 1, 16 visual tokens a view, the same for all images of a call"
    for call in (other.generate, other.explain):
        with pytest.raises(
            ValueError, match=rf"2 images of 1 views each, and \[16, 4\] placeholders a row; .*{numbers}"
        ):
            call(**both)
    two = inputs_of(in_window(model, (2, 4)), QUESTIONS[0])
    with pytest.raises(ValueError, match=rf"1 images of 1 views each, and \[2\] placeholders a row; .*{numbers}"):
        other.generate(**two)


def weights(path) -> Counter:
    """The bytes of what is large, and how often they are there."""
    return Counter(one.raw_data for one in onnx.load(path).graph.initializer if len(one.raw_data) > 1000)


@pytest.mark.parametrize("precision", ["fp32", "uint8"])
def test_weights_are_stored_once_and_as_small(tmp_path, precision):
    # Wider than what the exporter folds wherever it stands.
    model = build(small("phi", TEXT), small("siglip_vision_model", VISION | {"hidden_size": 64}))
    files = {}
    for count in (1, 3):
        files[count] = tmp_path / f"{count}.onnx"
        onnx_ir.save(trace_image_encoder(model, dict([*WINDOWS.items()][:count])), files[count])
        if convert := PRECISIONS[precision]:
            convert(files[count])
    assert weights(files[3]) == weights(files[1]) and max(weights(files[3]).values()) == 1
    products = [Counter(node.op_type for node in onnx.load(files[count]).graph.node) for count in files]
    for kind in ("MatMul", "MatMulInteger"):
        assert products[0][kind] == products[1][kind]


def test_exports_from_before_there_were_several_open(phi, directory, tmp_path):
    older = tmp_path / "older"
    shutil.copytree(directory, older)
    manifest = json.loads((older / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["version"] == 2 and manifest["pooling_window"] == [2, 2]
    assert manifest["windows"][:2] == [
        {"visual_tokens": 4, "window": [2, 2]},
        {"visual_tokens": 1, "window": [4, 4]},
    ]
    (older / MANIFEST).write_text(
        json.dumps({name: value for name, value in manifest.items() if name != "windows"} | {"version": 1})
    )
    other = OnnxFlashSloth.from_pretrained(older, threads=1)
    assert other.windows == {4: (2, 2)}
    assert_alike(phi[0], other)
    with pytest.raises(ValueError, match="exported for 4 visual tokens a view"):
        other.generate(**inputs_of(in_window(phi[0], (1, 1)), QUESTIONS[0]))


@pytest.fixture(scope="module")
def listing(tmp_path_factory, tiny_checkpoint):
    """The tiny checkpoint, whose config lists the windows of its 3 x 3 patches."""
    directory = tmp_path_factory.mktemp("listing") / "checkpoint"
    shutil.copytree(tiny_checkpoint, directory)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps(config | {"pooling_windows": [1, [3, 3]]}))
    return directory


@pytest.fixture(scope="module")
def whole(listing, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "exported"
    assert main(["export", str(output), "--model", str(listing)]) == 0
    return output


def test_ask_chooses_among_the_numbers(whole, listing, tmp_path, capsys):
    image = tmp_path / "blue.png"
    Image.linear_gradient("L").convert("RGB").resize((20, 10)).save(image)

    def ask(checkpoint, *options, questions=("What?",)):
        command = ["ask", str(image), *[part for one in questions for part in ("--question", one)]]
        status = main([*command, "--model", str(checkpoint), "--max-new-tokens", "5", *options])
        return status, capsys.readouterr()

    for options in ([], ["--visual-tokens", "9"], ["--visual-tokens", "9", "--hd"]):
        for questions in (["What?"], ["What?", "Where is it?"]):
            (status, said), (_, expected) = [
                ask(checkpoint, *options, questions=questions) for checkpoint in (whole, listing)
            ]
            assert status == 0 and said.out == expected.out
    drawings = []
    for checkpoint in (whole, listing):
        assert ask(checkpoint, "--visual-tokens", "9", "--explain", str(tmp_path / "drawing.png"))[0] == 0
        drawings.append(torch.tensor(bytearray(Image.open(tmp_path / "drawing.png").convert("RGB").tobytes())).int())
    assert (drawings[0] - drawings[1]).abs().max() <= 2  # a rounding of the heat's level


def test_a_processor_chooses_too(whole, listing):
    processor, model = FlashSlothProcessor.from_pretrained(whole), OnnxFlashSloth.from_pretrained(whole)
    torch_model = FlashSlothForConditionalGeneration.from_pretrained(listing, dtype="float32")
    answers = set()
    for window in (None, 1, [3, 3]):
        options = {} if window is None else {"pooling_window": window}
        image = Image.linear_gradient("L").convert("RGB")
        inputs = processor(images=image, text="<image>What?<learnable>", return_tensors="pt", **options)
        output = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        assert torch.equal(output, torch_model.generate(**inputs, max_new_tokens=5, do_sample=False))
        answers.add(inputs["input_ids"].shape[1])
    assert len(answers) == 2


def test_what_the_export_shall_know_can_be_one_number(listing, whole, tmp_path, capsys):
    output = tmp_path / "exported"
    assert main(["export", str(output), "--model", str(listing), "--visual-tokens", "9"]) == 0
    assert "for 9 visual tokens a view" in capsys.readouterr().out
    manifest = read_manifest(output)
    assert manifest["windows"] == [{"visual_tokens": 9, "window": [1, 1]}] and manifest["version"] == 1
    assert [one["visual_tokens"] for one in read_manifest(whole)["windows"]] == [1, 9]
    Image.new("RGB", (20, 10)).save(tmp_path / "image.png")
    question = ["ask", str(tmp_path / "image.png"), "What?", "--model", str(output), "--visual-tokens"]
    assert main([*question, "1"]) == 2
    assert "was exported for 9 visual tokens a view, not 1: choose among these" in capsys.readouterr().err
    assert main([*question, "9"]) == 0


def test_an_export_that_differs_in_a_further_window_is_refused(listing, tmp_path, monkeypatch):
    forward = graphs.ImageEncoder.forward

    def wrong(self, pixel_values):
        first, patches, shares, tokens, others = forward(self, pixel_values)
        return first, patches, shares, -tokens, others

    monkeypatch.setattr(graphs.ImageEncoder, "forward", wrong)
    with pytest.raises(InputError, match=r"answers in fp32, with 9 visual tokens a view, equal those of the model"):
        writing.export_checkpoint(str(listing), tmp_path / "exported")
    assert not list(tmp_path.iterdir())
