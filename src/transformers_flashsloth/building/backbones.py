"""A new, untrained FlashSloth from a decoder and a vision tower: which weights are kept, and how new parts start."""

import torch
from torch import nn
from transformers import (
    MODEL_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    GgufConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.image_processing_utils import BaseImageProcessor

from ..model.decoder_seam import open_seam
from ..model.decoders import layers_of
from ..model.image_processing_flashsloth import FlashSlothImageProcessor
from ..model.modeling_flashsloth import FlashSlothForConditionalGeneration
from ..model.processing_flashsloth import FlashSlothProcessor
from ..model.vision_towers import config_of_layers, cut_tower
from .accepted_decoders import check_decoder
from .plan import plan

# What an image processor says of pixel values, and nothing of sizes: a view is the whole image, squashed.
PIXEL_OPTIONS = ("do_normalize", "do_rescale", "image_mean", "image_std", "resample", "rescale_factor")


def from_backbones(
    text: str, vision: str, *, dtype: str = "auto", image_hd: bool = False, **choices
) -> tuple[FlashSlothForConditionalGeneration, FlashSlothProcessor]:
    """
    Builds an untrained FlashSloth of a decoder and a vision tower, which keep their weights, and its processor: the
    decoder's tokenizer with placeholders added, its own chat template extended by images, queries and marks of answers
    (the release's where it has none), and views of the size and with the mean and deviation of the vision tower.

    In an extended template queries end a user turn only behind an image or video: text alone is the decoder's own
    prompt. The release's has them in every turn.

    Args:
        text (`str`): directory or Hub id of a causal language model with its tokenizer.
        vision (`str`): directory or Hub id of a vision tower, or of a model that has one as its vision part.
        dtype (`str`, defaults to `"auto"`): number type; by default the decoder's.
        image_hd (`bool`, defaults to `False`): whether images are read in high definition.
        choices: fields of [`FlashSlothConfig`], and `text_options` and `vision_options`; see `plan`.

    Returns:
        the model, in evaluation mode as `from_pretrained` gives it, and the processor.

    Raises:
        OSError: if a checkpoint is missing.
        ValueError or StrictDataclassError: if the parts do not fit each other, with what would fit, or a checkpoint
            lacks weights.

    Example:

    ```python
    >>> from transformers_flashsloth import from_backbones

    >>> text, vision = "HuggingFaceTB/SmolLM2-135M-Instruct", "google/siglip-base-patch16-384"
    >>> model, processor = from_backbones(text, vision, pooling_window=4)
    ```
    """
    processor = _processor(text, vision, image_hd, choices)  # refuses what does not fit before weights are read
    return _model(text, vision, dtype, choices), processor


def _processor(text: str, vision: str, image_hd: bool, choices: dict) -> FlashSlothProcessor:
    config, tokenizer, chat_template = plan(text, vision, **choices)
    height, width = config.view_size
    image_processor = FlashSlothImageProcessor(
        size={"height": height, "width": width},
        image_hd=image_hd,
        **pixel_options(vision, choices.get("vision_options")),
    )
    return FlashSlothProcessor(
        image_processor,
        tokenizer,
        num_query_tokens=config.num_query_tokens,
        patch_size=config.vision_config.patch_size,
        pooling_window=1 if config.pooling == "none" else config.pooling_window,
        chat_template=chat_template,
    )


def _model(text: str, vision: str, dtype: str, choices: dict) -> FlashSlothForConditionalGeneration:
    """
    The model of two checkpoints. Decoder, head and vision tower are taken as they are loaded, without a copy, so
    that nothing but the layers that are left out is ever in memory beside the result. Of a GGUF file, upstream unpacks
    tensor by tensor, which takes some 1.4 times the largest of them for a moment: with the embeddings of
    SmolLM2-135M 1.3 times the result, in upstream's loader alone as here.
    """
    language_model = _load_language_model(text, dtype, choices.get("text_options") or {})
    decoder, head = _decoder_of(language_model), language_model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(f"{text} has a head of another kind than a linear layer.")
    check_decoder(decoder)
    config, tokenizer, _ = plan(text, vision, text_config=decoder.config, **choices)
    if len(tokenizer) > head.out_features:
        _grow_embeddings(language_model, len(tokenizer))
        head = language_model.get_output_embeddings()
    decoder.config.vocab_size = config.text_config.vocab_size = head.out_features
    config.lm_head_bias = head.bias is not None

    kept = config_of_layers(config.vision_config, config.num_vision_layers)
    tower = cut_tower(
        _load(AutoModel, vision, dtype=language_model.dtype, config=kept, **(choices.get("vision_options") or {})),
        config.vision_config,
    )
    with torch.device("meta"):
        model = FlashSlothForConditionalGeneration(config)
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
