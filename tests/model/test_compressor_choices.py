"""The compressor's own choices: each combination trains, generates, is saved and loaded."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from tests.tiny_backbones import TEXT, build, generate, inputs_of, row_of, small
from transformers_flashsloth import FlashSlothForConditionalGeneration
from transformers_flashsloth.model.spatial_attention_pooling import SpatialAveragePooling

TEXT_CONFIG = small("llama", TEXT)


@pytest.mark.parametrize("embq", [{"num_query_tokens": 0}, {}, {"embq_layer": [0, 2]}, {"num_query_tokens": 1}])
@pytest.mark.parametrize("pooling", ["attention", "average", "none"])
def test_each_combination_trains_generates_and_loads(pooling, embq, tmp_path):
    model = build(TEXT_CONFIG, pooling=pooling, **embq)
    assert model.config.tokens_per_view == (16 if pooling == "none" else 4)
    inputs = inputs_of(model, [20, 21, 22], [25] * 6)
    together = generate(model, inputs)
    assert all(torch.equal(together[i : i + 1], generate(model, row_of(inputs, i))) for i in range(2))

    model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    text["input_ids"] = text["input_ids"].clamp(min=11)
    model(**text, labels=text["input_ids"]).loss.backward()  # a batch of text alone
    assert all(p.grad is not None for p in model.parameters())

    model.eval().save_pretrained(tmp_path)
    loaded, report = FlashSlothForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name in ("pooling", "pooling_window", "num_query_tokens", "embq_layer"):
        assert getattr(loaded.config, name) == getattr(model.config, name)
    assert torch.equal(generate(loaded, inputs), together)


def test_average_pooling_is_the_mean_of_each_window():
    patches = torch.arange(24.0).reshape(1, 24, 1)  # 4 rows of 6
    pooled = SpatialAveragePooling((2, 3), (4, 6))(patches)
    grid = patches.reshape(4, 6)
    expected = [grid[r : r + 2, c : c + 3].mean() for r in (0, 2) for c in (0, 3)]
    assert pooled.flatten().tolist() == expected
    weights = SpatialAveragePooling((2, 3), (4, 6)).weights(patches)
    assert weights.shape == (1, 2, 2, 2, 3) and (weights == 1 / 6).all()


def test_no_pooling_gives_every_patch_to_the_projector():
    model = build(TEXT_CONFIG, pooling="none").model
    patches = torch.randn(2, 16, 32)
    projector = model.multi_modal_projector
    assert torch.equal(projector(patches), projector.linear_2(projector.act(projector.linear_1(patches))))


def test_names_of_embedded_query_modules():
    def names(**changes):
        return {
            name.split(".")[2] for name in build(TEXT_CONFIG, **changes).state_dict() if name.startswith("model.embq")
        }

    assert "up_proj" in names() and not names(num_query_tokens=0)
    assert names(embq_layer=[2]) == {"0"} and names(embq_layer=[0, 2]) == {"0", "1"}
    without = build(TEXT_CONFIG, num_query_tokens=0).model
    assert without.query_tokens is None and without.embq is None


def test_each_module_runs_before_its_own_layer():
    model = build(TEXT_CONFIG, embq_layer=[2, 0])
    entering = {}
    for index, module in enumerate(model.model.embq_modules):
        module.register_forward_hook(lambda module, args, output, index=index: entering.update({index: args[0]}))
    row = row_of(inputs_of(model, [20, 21, 22]), 0)
    with torch.no_grad():
        outputs = model(**row, output_hidden_states=True)
    torch.testing.assert_close(entering[0], outputs.hidden_states[2])
    is_image = (row["input_ids"] == model.config.image_token_id)[0]
    torch.testing.assert_close(entering[1][0, is_image], outputs.image_hidden_states[0])
    assert model.explain(row["input_ids"], row["pixel_values"]).query_attention.shape == (1, 1, 2, 1, 4, 4)


def test_without_queries_there_is_no_placeholder_to_count():
    model = build(TEXT_CONFIG, num_query_tokens=0)
    inputs = inputs_of(model, [20, 21])
    assert model.explain(**inputs).query_attention is None
    assert not (inputs["input_ids"] == model.config.query_token_id).any()


@torch.no_grad()
def test_without_queries_their_id_is_a_word_like_any_other():
    """Learned from labels, and generated where it is the likeliest; with queries it is neither."""
    for num_queries in (0, 9):
        model = build(TEXT_CONFIG, num_query_tokens=num_queries, lm_head_bias=True)
        word = model.config.query_token_id
        model.lm_head.bias[word] = 100.0
        inputs = {"input_ids": torch.tensor([[20, 21, 22]])}
        answer = model.generate(**inputs, max_new_tokens=1, do_sample=False)[0, -1]
        assert (answer == word) == (num_queries == 0)
        ids = torch.tensor([[20, 21] + [word] * max(num_queries, 1)])
        loss = model(input_ids=ids, labels=torch.where(ids == word, word, -100)).loss
        assert loss.isnan() if num_queries else loss < 1e-3


@pytest.mark.parametrize("embq_layer", [[], [1, 1], [0, 3]])
def test_impossible_layers_are_refused(embq_layer):
    with pytest.raises(StrictDataclassError, match="embq_layer"):
        build(TEXT_CONFIG, embq_layer=embq_layer)
