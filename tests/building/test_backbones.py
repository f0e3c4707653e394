"""Two checkpoints in, an untrained FlashSloth out."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPConfig, CLIPModel, Dinov2Model, SiglipVisionModel

from flashsloth_command import main
from tests.building.building_process import memory_of_building
from tests.chat_tokenizers import build_chat_tokenizer
from tests.tiny_backbones import TEXT, VISION, generate, small
from transformers_flashsloth import FlashSlothForConditionalGeneration, FlashSlothProcessor, from_backbones

# Decoder family, kind of chat, embeddings in its checkpoint; the tokenizers have 257 to 260 ids.
DECODERS = {
    "phi": ("none", 320, {}),
    "llama": ("llama_3", 260, {}),
    "qwen3": ("chatml", 320, {"tie_word_embeddings": True}),
    "gemma3_text": ("gemma", 259, {}),
    "gpt_neox": ("none", 300, {}),
}
QUESTION = [
    {"role": "user", "content": [{"type": "image", "image": torch.zeros(3, 9, 9)}, {"type": "text", "text": "Hm?"}]}
]


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request, tmp_path_factory):
    chat, vocab_size, changes = DECODERS[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    config = small(request.param, TEXT | {"vocab_size": vocab_size, "max_position_embeddings": 256}, **changes)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    build_chat_tokenizer(chat).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    """A whole CLIP, text part included, that says what its pixels are."""
    directory = tmp_path_factory.mktemp("clip")
    sizes = {name: TEXT[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")}
    CLIPModel(CLIPConfig(text_config=sizes, vision_config=VISION)).save_pretrained(directory)
    options = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "resample": 2, "do_center_crop": True}
    (directory / "preprocessor_config.json").write_text(json.dumps(options))
    return directory


@pytest.fixture(scope="module")
def built(decoder, vision):
    return from_backbones(str(decoder), str(vision))


def test_weights_are_kept_byte_for_byte(built, decoder, vision):
    model, processor = built
    language_model = AutoModelForCausalLM.from_pretrained(decoder)
    rows = language_model.get_input_embeddings().num_embeddings
    assert model.lm_head.out_features == max(rows, len(processor.tokenizer))  # grown only if the placeholders need it
    new = model.model.language_model.state_dict()
    for name, tensor in language_model.base_model.state_dict().items():
        assert torch.equal(new[name][: len(tensor)], tensor)
    assert torch.equal(model.lm_head.weight[:rows], language_model.get_output_embeddings().weight)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == model.config.tie_word_embeddings
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits[..., :rows], language_model(input_ids=ids).logits)
    tower = CLIPModel.from_pretrained(vision).vision_model
    pixels = torch.rand(1, 3, 16, 16)
    features = model.get_image_features(pixels[None]).last_hidden_state
    torch.testing.assert_close(features, tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:])


def test_answers_saves_and_loads(built, tmp_path):
    model, processor = built
    inputs = processor.apply_chat_template(
        QUESTION, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    config = model.config
    assert (inputs["input_ids"] == config.image_token_id).sum() == config.tokens_per_view == 4
    assert (inputs["input_ids"] == config.query_token_id).sum() == config.num_query_tokens
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, report = FlashSlothForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(generate(loaded, inputs), generate(model, inputs))
    assert FlashSlothProcessor.from_pretrained(tmp_path).chat_template == processor.chat_template
    end = processor.tokenizer.eos_token_id
    ends = model.generation_config.eos_token_id
    assert end in (ends if isinstance(ends, list) else [ends])


def test_the_towers_pixels(built):
    image_processor = built[1].image_processor
    assert list(image_processor.image_mean) == [0.4, 0.5, 0.6] and list(image_processor.image_std) == [0.2, 0.3, 0.4]
    assert image_processor.resample == 2 and image_processor.size["height"] == 16
    hd = image_processor(torch.zeros(3, 4, 12), image_hd=True, return_tensors="pt", do_normalize=False).pixel_values
    # The square around the image is grey as the mean is: 255 times it, rounded down.
    torch.testing.assert_close(hd[0, 1, :, 0, 0] * 255, torch.tensor([102.0, 127.0, 153.0]))


def test_no_parameter_stays_without_a_value(built):
    assert all(p.device.type == "cpu" and p.isfinite().all() for p in built[0].parameters())
    assert all(b.device.type == "cpu" for b in built[0].buffers())
    assert not built[0].training


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    directory = tmp_path_factory.mktemp("plain")
    AutoModelForCausalLM.from_config(small("llama", TEXT | {"vocab_size": 320})).save_pretrained(directory)
    build_chat_tokenizer("chatml").save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    ("choices", "tokens", "queries"),
    [
        ({"pooling": "none", "num_query_tokens": 0}, 36, 0),
        ({"pooling": "average", "embq_layer": [0, 2], "vision_feature_layer": -1}, 4, 9),
        ({"image_size": [16, 32], "pooling_window": [2, 4]}, 4, 9),
    ],
)
def test_choices_reach_model_and_processor(llama, tmp_path, choices, tokens, queries):
    config = small("dinov2", VISION | {"image_size": 24})
    Dinov2Model(config).save_pretrained(tmp_path)
    model, processor = from_backbones(str(llama), str(tmp_path), **choices)
    inputs = processor.apply_chat_template(
        QUESTION, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert (inputs["input_ids"] == processor.image_token_id).sum() == tokens
    assert (inputs["input_ids"] == processor.query_token_id).sum() == queries
    assert generate(model, inputs).shape == (1, 5)


def test_the_command(llama, vision, tmp_path, capsys):
    arguments = ["build", str(llama), str(vision), "--output", str(tmp_path / "new"), "--set", "num_query_tokens=3"]
    assert main(arguments) == 0
    model = FlashSlothForConditionalGeneration.from_pretrained(tmp_path / "new")
    assert FlashSlothProcessor.from_pretrained(tmp_path / "new").num_query_tokens == model.config.num_query_tokens == 3
    assert main(arguments) == 2 and "exists already" in capsys.readouterr().err
    arguments[4:] = [str(tmp_path / "other"), "--set", "pooling_window=3"]
    assert main(arguments) == 2 and "windows that do: [1, 2, 4]" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--set", "poolin=none"])


def test_text_alone_is_the_decoders_own(llama, vision):
    """In answering, and in training, where parts that only images need still take part."""
    model, processor = from_backbones(str(llama), str(vision))
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    turns = [{"role": "user", "content": "Hm?"}]
    inputs = processor.apply_chat_template(turns, **options)
    own = AutoTokenizer.from_pretrained(llama).apply_chat_template(turns, **options)
    assert torch.equal(inputs["input_ids"], own["input_ids"])
    language_model = AutoModelForCausalLM.from_pretrained(llama)
    assert torch.equal(generate(model, inputs), generate(language_model, own))
    mixed = processor.apply_chat_template([turns, QUESTION], processor_kwargs={"padding": True}, **options)
    model.train()
    for batch in (inputs, mixed):
        model.zero_grad()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        grads = [p.grad for p in model.parameters()]
        used = [
            grad.abs().sum() > 0 for grad in (model.model.query_tokens.weight.grad, model.model.embq.up_proj.bias.grad)
        ]
        assert all(used) == any(used) == (batch is mixed)
        assert all(grad is None or grad.isfinite().all() for grad in grads)


def test_new_rows_are_like_the_others_but_differ(vision, tmp_path):
    """In half precision too: placeholders are told apart by their embeddings."""
    decoder = AutoModelForCausalLM.from_config(small("llama", TEXT | {"vocab_size": 258}), dtype=torch.bfloat16)
    decoder.get_input_embeddings().weight.data += 1
    decoder.save_pretrained(tmp_path)
    build_chat_tokenizer("chatml").save_pretrained(tmp_path)
    model, _ = from_backbones(str(tmp_path), str(vision))
    weight = model.get_input_embeddings().weight
    assert len(weight) == 260 and weight.dtype == torch.bfloat16
    assert not torch.equal(weight[-1], weight[-2])
    torch.testing.assert_close(weight[-2:].mean(), weight[:-2].mean(), atol=0.02, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("vocab_size", [300, 258])
def test_memory_is_that_of_the_result(llama, tmp_path, vocab_size):
    """Whether the embeddings suffice or grow."""
    config = small("llama", TEXT | {"vocab_size": vocab_size, "num_hidden_layers": 16}, hidden_size=1024)
    config.intermediate_size = 4096
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "large", max_shard_size="100MB")
    build_chat_tokenizer("chatml").save_pretrained(tmp_path / "large")
    SiglipVisionModel(small("siglip_vision_model", VISION)).save_pretrained(tmp_path / "vision")
    assert memory_of_building(tmp_path / "large", tmp_path / "vision", llama) < 1.2
