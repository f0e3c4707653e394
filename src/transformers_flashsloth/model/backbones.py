"""A new, untrained FlashSloth from a decoder and a vision tower: what is kept, what is chosen, how new parts start."""

from typing import NamedTuple

import torch
from torch import nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.image_processing_utils import BaseImageProcessor

from .configuration_flashsloth import FlashSlothConfig
from .decoder_chat import extend_chat_template, user_prefix_ids
from .decoder_seam import open_seam
from .decoders import check_decoder, layers_of
from .vision_towers import config_of_layers, cut_tower

IMAGE, QUERY, END = "<image>", "<learnable>", "</s>"
# What an image processor says of pixel values, and nothing of sizes: a view is the whole image, squashed.
PIXEL_OPTIONS = ("do_normalize", "do_rescale", "image_mean", "image_std", "resample", "rescale_factor")
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


def assemble(model_class: type[PreTrainedModel], text: str, vision: str, *, dtype: str = "auto", **options):
    """
    Builds a model of two checkpoints. Decoder, head and vision tower are taken as they are loaded, without a copy, so
    that nothing but the layers that are left out is ever in memory beside the result. Of a GGUF file, upstream unpacks
    tensor by tensor, which takes some 1.4 times the largest of them for a moment: with the embeddings of
    SmolLM2-135M 1.3 times the result, in upstream's loader alone as here.

    Args:
        model_class (`type[PreTrainedModel]`): `FlashSlothForConditionalGeneration`.
        text, vision (`str`): as for `plan`.
        dtype (`str`, defaults to `"auto"`): number type; by default the decoder's.
        options: those of `plan`.

    Returns:
        the model, in evaluation mode as `from_pretrained` gives it.

    Raises:
        OSError, ValueError or StrictDataclassError: as `plan`; also if a checkpoint lacks weights.
    """
    language_model = _load_language_model(text, dtype, options.get("text_options") or {})
    decoder, head = _decoder_of(language_model), language_model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(f"{text} has a head of another kind than a linear layer.")
    check_decoder(decoder)
    config, tokenizer, _ = plan(text, vision, text_config=decoder.config, **options)
    if len(tokenizer) > head.out_features:
        _grow_embeddings(language_model, len(tokenizer))
        head = language_model.get_output_embeddings()
    decoder.config.vocab_size = config.text_config.vocab_size = head.out_features
    config.lm_head_bias = head.bias is not None

    kept = config_of_layers(config.vision_config, config.num_vision_layers)
    tower = cut_tower(
        _load(AutoModel, vision, dtype=language_model.dtype, config=kept, **(options.get("vision_options") or {})),
        config.vision_config,
    )
    with torch.device("meta"):
        model = model_class(config)
    core = model.model
    for part in (core.multi_modal_projector, core.query_tokens, core.embq):
        if part is not None:
            part.to_empty(device=decoder.device).to(language_model.dtype)
            part.apply(model._init_weights)
    _start_as_the_release(core.multi_modal_projector)
    open_seam(layers_of(decoder))
    core.language_model, core.vision_tower, model.lm_head = decoder, tower, head
    config.dtype = language_model.dtype
    model.tie_weights()
    _end_as_the_decoder(model, language_model, tokenizer)
    return model.eval()


def pixel_options(vision: str, options: dict | None = None) -> dict:
    """What the image processor of a vision tower's checkpoint says of pixel values; nothing if it has none."""
    try:
        found, _ = BaseImageProcessor.get_image_processor_dict(vision, **(options or {}))
    except OSError:
        return {}
    return {name: found[name] for name in PIXEL_OPTIONS if found.get(name) is not None}


def _load_language_model(text: str, dtype: str, options: dict) -> PreTrainedModel:
    if options.get("gguf_file") is None:
        return _load(AutoModelForCausalLM, text, dtype=dtype, **options)
    # Weights left in blocks could neither be trained nor saved.
    options = options | {"quantization_config": GgufConfig(dequantize=True)}
    language_model = _load(AutoModelForCausalLM, text, dtype=dtype, **options)
    # Where the weights came from is no property of the result, which would be read as a GGUF file for it.
    for config in (language_model.config, language_model.config.get_text_config()):
        vars(config).pop("quantization_config", None)
    return language_model


@torch.no_grad()
def _grow_embeddings(language_model: PreTrainedModel, size: int) -> None:
    """
    Adds rows around the mean of the others, whose logits then stand out nowhere. Upstream's own way to do so holds two
    more copies of the embeddings, and its rows can be equal in half precision, where placeholders have to differ.
    """
    old = language_model.get_input_embeddings().num_embeddings
    language_model.resize_token_embeddings(size, mean_resizing=False)
    head = language_model.get_output_embeddings()
    weights = {id(tensor): tensor for tensor in (language_model.get_input_embeddings().weight, head.weight, head.bias)}
    for weight in weights.values():
        if weight is not None:
            weight[old:] += weight[:old].mean(0)


def _load(auto_class, name: str, **options) -> PreTrainedModel:
    model, report = auto_class.from_pretrained(name, output_loading_info=True, **options)
    # Parts that are cut off need no weights.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(("pooler.", "head.")))
    if missing:
        raise ValueError(f"{name} lacks {len(missing)} weights, such as {missing[0]}.")
    return model


def _decoder_of(language_model: PreTrainedModel) -> PreTrainedModel:
    decoder_class = MODEL_MAPPING[type(language_model.config.get_text_config())]
    return next(module for module in language_model.modules() if type(module) is decoder_class)


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


@torch.no_grad()
def _start_as_the_release(projector: nn.Module) -> None:
    """
    The release adds pooling and projector to a loaded model, so they start from PyTorch's defaults. Queries and
    embedded query module are part of it and start from transformers' (our `_init_weights`).
    """
    for module in projector.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()


def _end_as_the_decoder(model: PreTrainedModel, language_model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Generation goes on as the decoder's own, but ends where the tokenizer's answers end, too."""
    ends = language_model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends] if ends is not None else []
    ends = [tokenizer.eos_token_id, *(end for end in ends if end != tokenizer.eos_token_id)]
    model.generation_config = language_model.generation_config
    model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
