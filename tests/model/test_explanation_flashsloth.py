import pytest
import torch
from PIL import Image

from tests.golden_model import tiny_model
from tests.model.test_modeling_flashsloth import inputs_of
from transformers_flashsloth.asking.drawing import HEAT, draw_explanation
from transformers_flashsloth.model.explanation_flashsloth import FlashSlothExplanation


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_pooling_weights_sum_to_one_in_every_window(model):
    weights = model.explain(**inputs_of([0, 1, 2])).pooling_weights
    assert weights.shape == (3, 1, 9, 9)
    windows = weights.unflatten(2, (3, 3)).unflatten(4, (3, 3)).sum(dim=(3, 5))
    torch.testing.assert_close(windows, torch.ones(3, 1, 3, 3))


def test_queries_share_what_they_see(model):
    attention = model.explain(**inputs_of([0, 1, 2])).query_attention
    assert attention.shape == (3, 2, 9, 1, 9, 9)
    shares = attention.sum(dim=(3, 4, 5))  # (N, R, Q)
    one = torch.ones(9)
    torch.testing.assert_close(shares[0, 0], one)  # the first row's only run
    torch.testing.assert_close(shares[1, 0], one)  # the second row's first turn sees its first image alone,
    torch.testing.assert_close(shares[2, 0], one * 0)
    torch.testing.assert_close(shares[1, 1] + shares[2, 1], one)  # its second turn both


def test_attention_is_what_embq_reads(model):
    # Patches that get no attention do not matter: the answer follows the shares.
    inputs = inputs_of([0])
    shares = model.explain(**inputs).query_attention[0, 0].mean(dim=(0, 1)).flatten()
    images = model.get_image_features(inputs.pop("pixel_values"))
    with torch.no_grad():
        before = model(**inputs, mm_encoder_outputs={"image": images}).logits[0, -1]
        effects = []
        for patch in (shares.argmax(), shares.argmin()):
            changed = type(images)(**images)
            changed.last_hidden_state = images.last_hidden_state.clone()
            changed.last_hidden_state[0, patch] *= 1.5
            effects.append((model(**inputs, mm_encoder_outputs={"image": changed}).logits[0, -1] - before).norm())
    assert effects[0] > effects[1]


def test_the_picture_is_hot_where_a_query_looks():
    attention = torch.zeros(1, 1, 2, 1, 4, 4)
    attention[0, 0, :, 0, 1, 2] = 1
    explanation = FlashSlothExplanation(pooling_weights=torch.ones(1, 1, 4, 4) / 4, query_attention=attention)
    picture = draw_explanation(Image.new("RGBA", (64, 48), "white"), explanation)
    hottest = tuple(round(255 * 0.4 + heat * 0.6) for heat in HEAT[-1])
    pixels = {colour for _, colour in picture.getcolors(10**6)}
    assert any(max(abs(a - b) for a, b in zip(colour, hottest, strict=True)) <= 2 for colour in pixels)
