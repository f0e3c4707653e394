"""The same FlashSloth on many vision towers, and by name and reason not on others."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoModel, SwinConfig

from tests.tiny_backbones import TEXT, VISION, build, generate, inputs_of, small
from transformers_flashsloth import FlashSlothConfig, FlashSlothForConditionalGeneration
from transformers_flashsloth.model.vision_towers import config_of_layers, cut_tower

# What their configs need, and the tokens that stand before the patches.
FAMILIES = {
    "aimv2_vision_model": ({}, 0),
    "ijepa": ({}, 0),  # of those that are tried out
    "clip_vision_model": ({}, 1),
    "deit": ({}, 2),
    "dinov2": ({}, 1),
    "dinov2_with_registers": ({"num_register_tokens": 3}, 4),
    "dinov3_vit": ({"num_register_tokens": 2}, 3),
    "siglip2_vision_model": ({"num_patches": 16}, 0),
    "siglip_vision_model": ({}, 0),
    "vit": ({}, 1),
}
# Others of those that are tried out, some with relative positions or class tokens of their own.
UNLISTED = ("beit", "chinese_clip_vision_model", "data2vec-vision", "mlcd_vision_model")
TEXT_CONFIG = small("llama", TEXT)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def tower_config(family, **changes):
    return small(family, VISION, **FAMILIES[family][0] | changes)


def reached(model, patches):
    """For each of these patches of an image, which features and which tokens change with its pixels."""
    rows, columns = model.config.patch_grid
    images = torch.randn(1, 1, 3, *model.config.view_size).repeat(1 + len(patches), 1, 1, 1, 1)
    side = model.config.vision_config.patch_size
    for image, patch in zip(images[1:], patches, strict=True):
        top, left = patch // columns * side, patch % columns * side
        image[..., top : top + side, left : left + side] += 1
    with torch.no_grad():
        outputs = model.get_image_features(images)
    assert outputs.last_hidden_state.shape[1] == rows * columns
    return [
        [((image - states[0]).abs().amax(-1) > 1e-6).nonzero()[:, 0].tolist() for image in states[1:]]
        for states in (outputs.last_hidden_state, outputs.pooler_output)
    ]


def layers_of_tower(tower):
    """All its layers: the one list that is as long as its config says."""
    return max((module for module in tower.modules() if isinstance(module, nn.ModuleList)), key=len)


@pytest.mark.parametrize(("feature_layer", "num_layers"), [(-1, 2), (-2, 1), (1, 1)])
def test_features_are_the_patches_of_the_layer(family, feature_layer, num_layers):
    config = tower_config(family)
    whole = AutoModel.from_config(config).eval()
    model = build(TEXT_CONFIG, config, vision_feature_layer=feature_layer)
    tower = model.model.vision_tower
    missing, _ = tower.load_state_dict(whole.state_dict(), strict=False)
    assert not missing
    assert len(layers_of_tower(tower)) == num_layers

    recorded = []
    layer = layers_of_tower(whole)[num_layers - 1]
    layer.register_forward_hook(lambda module, args, output: recorded.append(output))
    views = torch.randn(2, 3, 16, 16)
    inputs = {"pixel_values": views}
    if family == "siglip2_vision_model":  # patches, as its own image processor lays them out
        patches = [
            view[:, r : r + 4, c : c + 4].permute(1, 2, 0).flatten()
            for view in views
            for r in range(0, 16, 4)
            for c in range(0, 16, 4)
        ]
        inputs = {
            "pixel_values": torch.stack(patches).unflatten(0, (2, 16)),
            "pixel_attention_mask": torch.ones(2, 16, dtype=torch.long),
            "spatial_shapes": torch.tensor([[4, 4]] * 2),
        }
    with torch.no_grad():
        whole(**inputs)
        (expected,) = recorded
        expected = expected[0] if isinstance(expected, tuple) else expected
        features = model.get_image_features(views[:, None]).last_hidden_state
    torch.testing.assert_close(features, expected[:, FAMILIES[family][1] :])
    assert features.shape == (2, 16, 32)


def test_trains_generates_and_loads(family, tmp_path):
    model = build(TEXT_CONFIG, tower_config(family)).train()
    inputs = inputs_of(model, [20, 21], [22] * 4, views=5)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not without  # distributed training waits for every gradient
    assert model.model.vision_tower.get_input_embeddings() is not None
    model.eval().save_pretrained(tmp_path)
    loaded, report = FlashSlothForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(generate(loaded, inputs), generate(model, inputs))


@pytest.mark.parametrize("family", ["clip_vision_model", "dinov2", "dinov3_vit", "siglip_vision_model", "vit"])
def test_views_and_windows_need_not_be_square(family):
    model = build(TEXT_CONFIG, tower_config(family), image_size=[24, 16], pooling_window=[3, 2])
    config = model.config
    assert (config.view_size, config.patch_grid, config.tokens_per_view) == ((24, 16), (6, 4), 4)
    inputs = inputs_of(model, [20, 21])
    features = model.get_image_features(inputs["pixel_values"])
    assert features.last_hidden_state.shape == (1, 24, 32) and features.pooler_output.shape == (1, 4, 32)
    explanation = model.explain(**inputs)
    assert explanation.pooling_weights.shape == (1, 1, 6, 4)
    assert explanation.query_attention.shape == (1, 1, 2, 1, 6, 4)
    # A window pools its own patches: changing the last row of patches changes the last two tokens alone.
    patches = torch.randn(1, 24, 32)
    changed = patches.clone()
    changed[:, 20:] += 1
    tokens, others = model.model.multi_modal_projector(patches), model.model.multi_modal_projector(changed)
    assert (tokens == others).all(-1).tolist() == [[True, True, False, False]]


def test_pairs_of_the_towers_own():
    model = build(TEXT_CONFIG, tower_config("vit", image_size=[8, 16]))
    assert model.config.tokens_per_view == 2
    assert generate(model, inputs_of(model, [20, 21])).shape == (1, 5)
    with pytest.raises(ValueError, match=r"'siglip_vision_model': it cannot be built with .* \[8, 16\]"):
        build(TEXT_CONFIG, tower_config("siglip_vision_model", image_size=[8, 16]))


@pytest.mark.parametrize(("patch_size", "grid", "window"), [(14, 16, 4), (16, 14, 2), (32, 7, 7)])
def test_the_class_token_of_clip_at_224(patch_size, grid, window):
    config = tower_config("clip_vision_model", image_size=224, patch_size=patch_size)
    model = build(TEXT_CONFIG, config, pooling_window=window, vision_feature_layer=0)
    assert model.config.patch_grid == (grid, grid)
    assert model.config.tokens_per_view == (grid // window) ** 2
    features, tokens = reached(model, [0, grid - 1, grid * (grid - 1) - 1])
    assert features == [[0], [grid - 1], [grid * (grid - 1) - 1]]
    side = grid // window
    assert tokens == [[0], [side - 1], [side * ((grid - 2) // window) + side - 1]]
    with pytest.raises(StrictDataclassError, match=f"does not tile the {grid}x{grid} patch grid"):
        FlashSlothConfig(vision_config=config, pooling_window=3, embq_num_heads=1)


@pytest.mark.parametrize("family", [*FAMILIES, *UNLISTED])
def test_a_patch_of_the_image_reaches_its_own_token(family):
    """In what enters the first layer; behind it, attention spreads everything."""
    config = small(family, VISION, **FAMILIES[family][0]) if family in FAMILIES else small(family, VISION)
    model = build(TEXT_CONFIG, config, vision_feature_layer=0)
    features, tokens = reached(model, range(16))
    assert features == [[patch] for patch in range(16)]
    assert tokens == [[2 * (patch // 8) + patch % 4 // 2] for patch in range(16)]
    assert generate(model, inputs_of(model, [20, 21])).shape == (1, 5)


def test_final_norms_and_poolers_are_cut(family):
    config = tower_config(family)
    tower = cut_tower(AutoModel.from_config(config_of_layers(config, 1), attn_implementation="eager"), config)
    assert tower.config is config and config._attn_implementation == "eager"
    names = set(tower.state_dict())
    assert not any(name.startswith(("post_layernorm", "layernorm", "norm.", "pooler")) for name in names)


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("yolos", {"image_size": [16, 16]}, "'yolos': its detection tokens stand behind"),
        ("clip", {}, "'clip': it is a model of several parts"),
        ("convnext", {}, "'convnext': its config does not say `hidden_size`"),
        ("vit_mae", {}, "'vit_mae': it hides a random part of the patches"),
        ("resnet", {}, "'resnet': its config does not say"),
        ("sam_vision_model", {}, r"'sam_vision_model': it does not run .* have the shape \(2, 256, 4, 4\)"),
        ("pixtral", {}, r"'pixtral': it does not run .* have the shape \(1, 32, 32\)"),
        ("blip_vision_model", {}, "'blip_vision_model': transformers has no AutoModel for it"),
    ],
)
def test_what_cannot_work_is_refused_by_name_and_reason(family, changes, reason):
    with pytest.raises((ValueError, StrictDataclassError), match=reason):
        build(TEXT_CONFIG, small(family, VISION, **changes), embq_num_heads=1)


def test_towers_of_stages_are_refused():
    """Where patches are merged on the way, or where layers cannot be left out."""
    sizes = {"image_size": 16, "patch_size": 4, "window_size": 2}
    merges = SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[2, 2], **sizes)
    with pytest.raises(ValueError, match=r"'swin': it does not run .* \(2, 4, 16\) for 2 views of 4x4 patches"):
        build(TEXT_CONFIG, merges, embq_num_heads=1)
    one_stage = SwinConfig(embed_dim=16, depths=[2], num_heads=[2], **sizes)
    with pytest.raises(ValueError, match="'swin': its config says `num_hidden_layers`, but not so that fewer"):
        build(TEXT_CONFIG, one_stage, embq_num_heads=1, vision_feature_layer=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_feature_layer": -4}, "choose one of -3 to 2"),
        ({"pooling_window": [2, 3]}, r"\[2, 3\] does not tile the 4x4 patch grid .* \[1, 2, 4\]"),
        ({"image_size": [24, 16], "pooling_window": 5}, r"6x4 .* \[1, 2, 3, 6\] high, \[1, 2, 4\] wide"),
        ({"image_size": 3}, "has no patch of `patch_size`=4"),
        ({"pooling": "max"}, "choose one of attention, average, none"),
    ],
)
def test_impossible_views_are_refused(changes, message):
    with pytest.raises(StrictDataclassError, match=message):
        build(TEXT_CONFIG, **changes)
