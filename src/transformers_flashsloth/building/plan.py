"""The config, tokenizer and chat template of a new model: what of its two backbones is kept, and what is chosen."""

from typing import NamedTuple

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from ..model.configuration_flashsloth import FlashSlothConfig
from .decoder_chat import extend_chat_template, user_prefix_ids

IMAGE, QUERY, END = "<image>", "<learnable>", "</s>"
RELEASED_EMBQ_LAYER = 7


class Plan(NamedTuple):
    """
    Attributes:
        config ([`FlashSlothConfig`]): of the new model.
        tokenizer (`PreTrainedTokenizerBase`): the decoder's, with the placeholders.
        chat_template (`str`, *optional*): the decoder's, extended; `None` for the release's.
    """

    config: FlashSlothConfig
    tokenizer: Tokenizer
    chat_template: str | None


def plan(
    text: str,
    vision: str,
    *,
    text_options: dict | None = None,
    vision_options: dict | None = None,
    text_config: PreTrainedConfig | None = None,
    **choices,
) -> Plan:
    """
    Chooses the config of a new model, the same for model and processor.

    Args:
        text (`str`): directory or Hub id of a causal language model with its tokenizer.
        vision (`str`): directory or Hub id of a vision tower, or of a model that has one as its vision part.
        text_options, vision_options (`dict`, *optional*): of `from_pretrained`, such as `revision`. With `gguf_file`
            the decoder is read of that file (needs the package `gguf`), its weights as the numbers they stand for.
        text_config (`PreTrainedConfig`, *optional*): of the decoder, where it is loaded already.
        choices: fields of [`FlashSlothConfig`]. What is not chosen follows the release as far as the parts allow.

    Raises:
        OSError: if a checkpoint is missing.
        ValueError or StrictDataclassError: if the parts do not fit each other; the message says what would fit.
    """
    text_options, vision_options = text_options or {}, vision_options or {}
    text_config = text_config or AutoConfig.from_pretrained(text, **text_options).get_text_config()
    vision_config = _vision_config(vision, vision_options)
    tokenizer = AutoTokenizer.from_pretrained(text, **text_options)
    has_template = bool(tokenizer.chat_template)
    _add_placeholders(tokenizer, has_template)
    chat_template = extend_chat_template(tokenizer) if has_template else None
    prefix = tokenizer(f"{END}USER:", add_special_tokens=False).input_ids
    full_stop = tokenizer(" .", add_special_tokens=False).input_ids
    text_config.vocab_size = max(text_config.vocab_size, len(tokenizer))
    if not has_template:
        text_config.eos_token_id, text_config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    num_layers = text_config.num_hidden_layers
    fitting = {
        "image_token_id": tokenizer.convert_tokens_to_ids(IMAGE),
        "query_token_id": tokenizer.convert_tokens_to_ids(QUERY),
        "query_init_token_id": full_stop[0] if len(full_stop) == 1 else None,
        "user_prefix_ids": user_prefix_ids(tokenizer, IMAGE) if has_template else prefix,
        "embq_layer": RELEASED_EMBQ_LAYER if num_layers > RELEASED_EMBQ_LAYER else num_layers // 2,
        "embq_hidden_size": vision_config.hidden_size // 2,
        "vision_feature_layer": -2,
    } | choices
    if "pooling_window" not in choices and choices.get("pooling") != "none":
        fitting["pooling_window"] = _fitting_window(vision_config, fitting)
    config = FlashSlothConfig(text_config=text_config, vision_config=vision_config, **fitting)
    return Plan(config, tokenizer, chat_template)


def _vision_config(vision: str, options: dict) -> PreTrainedConfig:
    config = AutoConfig.from_pretrained(vision, **options)
    return getattr(config, "vision_config", config)


def _add_placeholders(tokenizer: Tokenizer, has_template: bool) -> None:
    """Adds the special tokens that are missing; with the release's template, answers end with `</s>`."""
    padding = tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token
    wanted = [QUERY, IMAGE] if has_template else [QUERY, END, IMAGE]
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in wanted if token not in known], special_tokens=True)
    tokenizer.pad_token = padding
    if not has_template:
        tokenizer.eos_token = END


def _fitting_window(vision_config: PreTrainedConfig, choices: dict) -> int:
    """The release's window of 3 patches a side, or the nearest that tiles the tower's grid."""
    image_size = choices.get("image_size")
    grid = FlashSlothConfig(
        vision_config=vision_config, image_size=image_size, pooling="none", embq_hidden_size=1, embq_num_heads=1
    ).patch_grid
    fitting = [window for window in (3, 2, 4) if not any(side % window for side in grid)]
    return fitting[0] if fitting else 3
