from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig

from tests.golden_model import tiny_config
from transformers_flashsloth import FlashSlothConfig


def test_defaults_are_the_released_model():
    config = FlashSlothConfig()
    assert (config.text_config.model_type, config.vision_config.model_type) == ("phi", "siglip_vision_model")
    assert (config.patch_grid, config.tokens_per_view) == ((27, 27), 81)
    assert config.embq_num_heads == config.text_config.num_attention_heads == 32
    assert config.text_config.rope_parameters["partial_rotary_factor"] == 0.4


def test_round_trip(tmp_path):
    config = tiny_config(pooling_window=9, embq_layer=3, query_init_token_id=None)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, FlashSlothConfig)
    assert loaded.to_json_string() == config.to_json_string()


def test_other_parts_are_allowed():
    config = FlashSlothConfig(
        text_config=LlamaConfig(hidden_size=96, num_attention_heads=6, num_hidden_layers=8),
        vision_config=CLIPVisionConfig(hidden_size=96, image_size=96, patch_size=8),
        embq_hidden_size=48,
        image_token_id=7,
        query_token_id=8,
        query_init_token_id=None,
        user_prefix_ids=[2, 9],
    )
    assert config.embq_num_heads == 6
