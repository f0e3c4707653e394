"""A new FlashSloth from tiny stock checkpoints."""

import build_from_backbones
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.phi_tokenizer import build_phi_tokenizer
from transformers_flashsloth import FlashSlothForConditionalGeneration, FlashSlothProcessor
from transformers_flashsloth.building.checkpoint import build_checkpoint

VISION = {"hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
VISION |= {"image_size": 84, "patch_size": 14}
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 9, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    """A whole SigLIP, text part included, as `google/siglip-so400m-patch14-384` is."""
    directory = tmp_path_factory.mktemp("siglip")
    text = {"hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def phi(tmp_path_factory):
    """A stock phi: no FlashSloth token in its vocabulary, and unused embeddings."""
    directory = tmp_path_factory.mktemp("phi")
    PhiForCausalLM(PhiConfig(**TEXT, vocab_size=51200, initializer_range=0.5)).save_pretrained(directory)
    stock_tokenizer(directory)
    return directory


def stock_tokenizer(directory):
    tokenizer = build_phi_tokenizer(image_token=None)
    vocabulary = tokenizer.get_vocab()
    stock = type(tokenizer)(
        vocab={token: i for token, i in vocabulary.items() if i < 50257}, merges=list(tokenizer._merges)
    )
    runs = sorted((i, token) for token, i in vocabulary.items() if 50257 <= i < 50295)
    stock.add_tokens([token for _, token in runs])
    stock.save_pretrained(directory)


@pytest.fixture(scope="module")
def built(phi, vision, tmp_path_factory):
    directory = tmp_path_factory.mktemp("built") / "new"
    build_checkpoint(directory, str(phi), str(vision))
    return directory


def test_ids_are_the_released_ones(built):
    config = FlashSlothForConditionalGeneration.from_pretrained(built).config
    assert (config.query_token_id, config.image_token_id, config.query_init_token_id) == (50295, 50297, 764)
    assert config.user_prefix_ids == [50296, 29904, 25]
    assert (config.text_config.eos_token_id, config.text_config.pad_token_id) == (50296, 50256)
    assert (config.embq_hidden_size, config.embq_num_heads, config.lm_head_bias) == (24, 4, True)
    assert config.num_vision_layers == 2


def test_backbones_keep_their_weights(built, phi, vision):
    model = FlashSlothForConditionalGeneration.from_pretrained(built)
    decoder = PhiForCausalLM.from_pretrained(phi)
    ids = torch.arange(12)[None] * 7
    assert torch.equal(model(input_ids=ids).logits, decoder(input_ids=ids).logits)
    tower = SiglipVisionModel.from_pretrained(vision)
    pixels = torch.rand(1, 1, 3, 84, 84)
    hidden = tower(pixels[0], output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(model.get_image_features(pixels, return_dict=True).last_hidden_state, hidden)


def test_new_parts_start_as_the_release(built):
    model = FlashSlothForConditionalGeneration.from_pretrained(built).model
    # PyTorch's linear layers start uniformly within 1/sqrt(fan_in), weights and biases.
    for linear, fan_in in (
        (model.multi_modal_projector.pooling.hidden_proj, 48),
        (model.multi_modal_projector.linear_1, 48),
        (model.multi_modal_projector.linear_2, 32),
    ):
        bound = fan_in**-0.5
        assert 0.9 * bound < linear.weight.abs().max() <= bound
        assert 0 < linear.bias.abs().max() <= bound
    assert 0.9 * 32**-0.5 < model.query_tokens.weight.abs().max() <= 32**-0.5
    assert 0.3 < model.embq.text_down_proj.weight.std() < 0.7  # the decoder's `initializer_range`
    assert not model.embq.up_proj.bias.any() and (model.embq.query_norm.weight == 1).all()


def test_answers_and_is_seeded(built, phi, vision, tmp_path):
    model = FlashSlothForConditionalGeneration.from_pretrained(built)
    processor = FlashSlothProcessor.from_pretrained(built)
    inputs = processor(
        text="USER: <image>\nHm?<learnable> ASSISTANT:", images=torch.zeros(3, 9, 9), return_tensors="pt"
    )
    assert model.generate(**inputs, max_new_tokens=3).shape[1] > inputs.input_ids.shape[1]
    build_checkpoint(tmp_path / "same", str(phi), str(vision))
    build_checkpoint(tmp_path / "other", str(phi), str(vision), seed=1)
    same, other = (FlashSlothForConditionalGeneration.from_pretrained(tmp_path / name) for name in ("same", "other"))
    assert all(map(torch.equal, same.state_dict().values(), model.state_dict().values()))
    assert not torch.equal(other.model.query_tokens.weight, model.model.query_tokens.weight)


def test_another_decoder_with_a_full_vocabulary(vision, tmp_path):
    """Tied head without bias, grouped heads, RMS norms; its embeddings grow."""
    config = Qwen2Config(**TEXT, num_key_value_heads=2, vocab_size=50257, tie_word_embeddings=True)
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "qwen")
    stock_tokenizer(tmp_path / "qwen")
    build_checkpoint(
        tmp_path / "new", str(tmp_path / "qwen"), str(vision), image_hd=True, embq_layer=2, num_query_tokens=3
    )
    model = FlashSlothForConditionalGeneration.from_pretrained(tmp_path / "new")
    assert model.get_input_embeddings().num_embeddings == model.lm_head.out_features == 50298
    assert model.lm_head.weight is model.get_input_embeddings().weight
    processor = FlashSlothProcessor.from_pretrained(tmp_path / "new")
    inputs = processor(
        text="USER: <image>\nHm?<learnable> ASSISTANT:", images=torch.zeros(3, 9, 9), return_tensors="pt"
    )
    assert inputs.pixel_values.shape[1] == 5 and (inputs.input_ids == model.config.query_token_id).sum() == 3
    model.generate(**inputs, max_new_tokens=2)


def test_parts_that_do_not_fit(phi, vision, tmp_path):
    with pytest.raises(StrictDataclassError, match="is no layer of the decoder"):
        build_checkpoint(tmp_path / "new", str(phi), str(vision), embq_layer=9)
    with pytest.raises(StrictDataclassError, match="does not tile the 6x6 patch grid"):
        build_checkpoint(tmp_path / "new", str(phi), str(vision), pooling_window=4)
    with pytest.raises(StrictDataclassError, match=r"`vision_feature_layer`=-5 is no layer .* choose one of -4 to 3"):
        build_checkpoint(tmp_path / "new", str(phi), str(vision), vision_feature_layer=-5)
    SiglipVisionModel(SiglipVisionConfig(**VISION | {"num_hidden_layers": 1})).save_pretrained(tmp_path / "shallow")
    config = SiglipVisionConfig(**VISION)
    config.save_pretrained(tmp_path / "shallow")
    with pytest.raises(ValueError, match=r"lacks 16 weights, such as encoder\.layers\.1"):
        build_checkpoint(tmp_path / "new", str(phi), str(tmp_path / "shallow"))
    assert not (tmp_path / "new").exists()


def test_what_fails_half_way_leaves_nothing(phi, vision, tmp_path, monkeypatch):
    def fails(self, directory):
        assert (directory / "model.safetensors").exists()
        raise OSError("the disk is gone")

    monkeypatch.setattr(FlashSlothProcessor, "save_pretrained", fails)
    with pytest.raises(OSError, match="the disk is gone"):
        build_checkpoint(tmp_path / "new", str(phi), str(vision))
    assert not list(tmp_path.iterdir())
    (tmp_path / "new").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        build_checkpoint(tmp_path / "new", "no such decoder", str(vision))  # said before anything is read


def test_the_command_of_conversion(phi, vision, tmp_path, monkeypatch, capsys):
    options = ["--decoder", str(phi), "--vision", str(vision), "--embq-layer", "3", "--pooling", "average"]
    monkeypatch.setattr("sys.argv", ["build_from_backbones.py", str(tmp_path / "new"), *options])
    assert build_from_backbones.main() == 0
    assert "Wrote a new FlashSloth of" in capsys.readouterr().out
    config = FlashSlothForConditionalGeneration.from_pretrained(tmp_path / "new").config
    assert (config.embq_layer, config.pooling) == (3, "average")
