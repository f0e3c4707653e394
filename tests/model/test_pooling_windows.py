"""The number of visual tokens, chosen in a call by the window that pooling turns into one token."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from tests.small_model import NUM_QUERIES, small_model
from transformers_flashsloth import FlashSlothConfig, FlashSlothForConditionalGeneration, FlashSlothProcessor
from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT
from transformers_flashsloth.model.spatial_attention_pooling import SpatialAttentionPooling, square_windows

# Of the small model's 12 x 12 patches: windows and the tokens that they leave.
TOKENS = {1: 144, 2: 36, 3: 16, 4: 9, 6: 4, 12: 1}
QUESTIONS = ["What is in the top left corner?", "How many are there?", "What is this?"]


@pytest.fixture(scope="module")
def processor():
    return FlashSlothProcessor.from_pretrained(DEFAULT_CHECKPOINT)


@pytest.fixture(scope="module")
def model():
    return FlashSlothForConditionalGeneration.from_pretrained(DEFAULT_CHECKPOINT, dtype="float32")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (70, 90, 3), dtype=np.uint8))


def messages(*turns: tuple[int, str]) -> list[dict]:
    """User turns of so many images and a question each, answered with "no" between."""
    chat, seed = [], 0
    for num_images, question in turns:
        content = [{"type": "image", "image": picture(seed + i)} for i in range(num_images)]
        seed += num_images
        chat += [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        chat += [{"role": "assistant", "content": [{"type": "text", "text": "no"}]}]
    return chat[:-1]


def encode(processor, chats: list, **options):
    return processor.apply_chat_template(
        chats,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"} | options,
    )


def new_tokens(model, inputs, **options) -> torch.Tensor:
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0} | options
    return model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]


def with_window(model, window: int) -> FlashSlothForConditionalGeneration:
    """The same weights in a model whose own window it is."""
    config = FlashSlothConfig.from_dict(model.config.to_dict() | {"pooling_window": window})
    other = FlashSlothForConditionalGeneration(config).float().eval()
    other.load_state_dict(model.state_dict())
    other.generation_config = copy.deepcopy(model.generation_config)
    return other


def test_square_windows():
    assert square_windows((27, 27)) == {729: (1, 1), 81: (3, 3), 9: (9, 9), 1: (27, 27)}
    assert square_windows((6, 4)) == {24: (1, 1), 6: (2, 2)}
    assert {tokens: window for window, tokens in TOKENS.items()} == {
        tokens: side for tokens, (side, _) in square_windows((12, 12)).items()
    }


def test_a_score_is_a_patchs_own():
    pooling = SpatialAttentionPooling(16, (3, 3), (12, 12)).eval()
    views = torch.randn(2, 144, 16)
    for window in (2, 4, 12):
        other = SpatialAttentionPooling(16, (window, window), (12, 12)).eval()
        other.load_state_dict(pooling.state_dict())
        assert torch.equal(pooling(views, (window, window)), other(views))


@pytest.mark.parametrize("hd", [False, True])
@pytest.mark.parametrize("window", TOKENS)
def test_any_window_is_as_the_models_own(model, processor, window, hd):
    """Ragged rows of none, one and two images: `generate` and `forward`."""
    if hd and window == 1:
        pytest.skip("longer than the context")
    chats = [messages((1, QUESTIONS[0])), messages((0, QUESTIONS[1])), messages((1, QUESTIONS[1]), (1, QUESTIONS[2]))]
    inputs = encode(processor, chats, pooling_window=window, image_hd=hd)
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 3 * (5 if hd else 1) * TOKENS[window]

    own = with_window(model, window)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, own(**inputs).logits, atol=1e-5, rtol=1e-5)
    assert new_tokens(model, inputs).tolist() == new_tokens(own, inputs).tolist()
    alone = [new_tokens(model, encode(processor, [chat], pooling_window=window, image_hd=hd)) for chat in chats]
    assert new_tokens(model, inputs).tolist() == torch.cat(alone).tolist()


def test_beams_and_several_sequences(model, processor):
    inputs = encode(processor, [messages((1, QUESTIONS[0])), messages((2, QUESTIONS[1]))], pooling_window=6)
    own = with_window(model, 6)
    for options in ({"num_beams": 3, "num_return_sequences": 2}, {"num_return_sequences": 1, "num_beams": 2}):
        assert new_tokens(model, inputs, **options).tolist() == new_tokens(own, inputs, **options).tolist()


def test_frames_of_videos(processor):
    video = [picture(seed) for seed in range(3)]
    content = [{"type": "video", "video": video}, {"type": "text", "text": QUESTIONS[1]}]
    for window in (3, 6):
        inputs = encode(
            processor,
            [[{"role": "user", "content": content}]],
            pooling_window=window,
            videos_kwargs={"do_sample_frames": False},
        )
        assert (inputs["input_ids"] == processor.image_token_id).sum() == 3 * TOKENS[window]


def test_a_kept_cache(model, processor):
    """A later turn in the same window answers as the whole conversation; in another it is refused."""
    first, both = messages((1, QUESTIONS[0])), messages((1, QUESTIONS[0]), (1, QUESTIONS[1]))
    inputs = encode(processor, [first], pooling_window=6)
    out = model.generate(**inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, eos_token_id=None)
    cache = out.past_key_values
    whole = encode(processor, [both], pooling_window=6)
    kept = copy.deepcopy(cache)
    assert new_tokens(model, whole | {"past_key_values": kept}).tolist() == new_tokens(model, whole).tolist()

    other = encode(processor, [both], pooling_window=4)
    length = encode(processor, [first], pooling_window=4)["input_ids"].shape[1]
    ids = torch.cat([inputs["input_ids"], other["input_ids"][:, length:]], dim=1)
    mixed = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": other["pixel_values"][1:]}
    with pytest.raises(ValueError, match=r"takes 9 tokens, those of the earlier turns 4.*`pooling_window`"):
        new_tokens(model, mixed | {"past_key_values": cache})


def test_explanation(model, processor):
    inputs = encode(processor, [messages((2, QUESTIONS[0]))], pooling_window=6)
    explanation = model.explain(**inputs)
    windows = explanation.pooling_weights.unflatten(3, (2, 6)).unflatten(2, (2, 6))
    torch.testing.assert_close(windows.sum(dim=(3, 5)), torch.ones(2, 1, 2, 2))
    expected = with_window(model, 6).explain(**inputs)
    torch.testing.assert_close(explanation.query_attention, expected.query_attention)


def test_training_in_another_window(model, processor):
    """Loss and gradients are those of a model whose own window it is, also where only the processor was told."""
    processor = copy.deepcopy(processor)
    processor.pooling_window = 6  # as a collator that passes no options is told
    inputs = encode(processor, [messages((1, QUESTIONS[0])), messages((2, QUESTIONS[1]))])
    assert inputs["pixel_values"].shape[0] == 3
    models = [copy.deepcopy(model), with_window(model, 6)]
    for one in models:
        one(**inputs, labels=inputs["input_ids"].clone()).loss.backward()
    ours, own = (dict(one.named_parameters()) for one in models)
    for name, parameter in ours.items():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, own[name].grad, atol=1e-5, rtol=1e-4)
    assert ours["model.multi_modal_projector.pooling.score_proj.weight"].grad.any()


@pytest.mark.parametrize("window", [5, 24, [2, 3], -3])
def test_a_window_that_does_not_tile_is_refused(processor, window):
    with pytest.raises(ValueError, match=r"no square window that tiles the 12 x 12 .* choose one of 1, 2, 3, 4, 6, 12"):
        encode(processor, [messages((1, QUESTIONS[0]))], pooling_window=window)


def test_a_contradiction_is_refused_with_its_numbers(model, processor):
    inputs = encode(processor, [messages((1, QUESTIONS[0]))], pooling_window=6)
    ids = inputs["input_ids"]
    where = (ids[0] == processor.image_token_id).nonzero()[0]
    cut = {"input_ids": torch.cat([ids[:, :where], ids[:, where + 1 :]], dim=1), "pixel_values": inputs["pixel_values"]}
    for run in (model, model.generate):
        with pytest.raises(ValueError, match="do not match: 1 images of 16 tokens each, 3 image tokens"):
            run(**cut)
    images = {"image": model.get_image_features(inputs["pixel_values"], pooling_window=(4, 4))}
    with pytest.raises(ValueError, match="do not match: 1 images of 9 tokens each, 4 image tokens"):
        model(input_ids=ids, mm_encoder_outputs=images)


def test_windows_of_rows_must_agree(model, processor):
    """Four images of nine tokens are no nine images of four."""
    one, other = (encode(processor, [messages((1, QUESTIONS[0]))], pooling_window=window) for window in (4, 6))
    length = max(one["input_ids"].shape[1], other["input_ids"].shape[1])
    pad = [torch.nn.functional.pad(x["input_ids"], (length - x["input_ids"].shape[1], 0)) for x in (one, other)]
    pixels = torch.cat([one["pixel_values"], other["pixel_values"]])
    with pytest.raises(ValueError, match="do not match"):
        model(input_ids=torch.cat(pad), pixel_values=pixels)


def test_an_untrained_window_is_said_once(processor, monkeypatch):
    said = []
    monkeypatch.setattr("transformers_flashsloth.model.placeholders.logger.warning_once", said.append)
    model = FlashSlothForConditionalGeneration.from_pretrained(DEFAULT_CHECKPOINT, dtype="float32")
    model.config.pooling_windows = [3, 6]
    for window in (3, 6):
        model(**encode(processor, [messages((1, QUESTIONS[0]))], pooling_window=window))
    assert not said
    model(**encode(processor, [messages((1, QUESTIONS[0]))], pooling_window=4))
    assert "windows of 4 x 4 patches" in said[0] and "[(3, 3), (6, 6)]" in said[0]


def test_the_config_lists_windows_that_tile():
    with pytest.raises(Exception, match=r"`pooling_windows` lists 5; it can list \[\(1, 1\), \(3, 3\)"):
        FlashSlothConfig(pooling_windows=[3, 5])
    assert FlashSlothConfig(pooling_windows=[3, 9]).to_dict()["pooling_windows"] == [3, 9]


def test_the_processors_own_options_are_not_saved_with_it(processor, tmp_path):
    encode(processor, [messages((1, QUESTIONS[0]))], pooling_window=6)
    processor.save_pretrained(tmp_path)
    assert FlashSlothProcessor.from_pretrained(tmp_path).pooling_window == 3
    assert "pooling_window" not in processor.image_processor.to_dict()


def test_compiled_forward_refuses_another_window():
    model = small_model()
    ids = torch.tensor([[9, 1, 6, 20, 21, *[2] * NUM_QUERIES, 7, 8]])
    pixels = torch.randn(1, 1, 3, 24, 24)
    model(input_ids=ids, pixel_values=pixels)  # one token of the whole grid
    compiled = torch.compile(model.forward, backend="eager", fullgraph=True)
    with pytest.raises(RuntimeError, match="do not match"), torch.no_grad():
        compiled(input_ids=ids, pixel_values=pixels)
