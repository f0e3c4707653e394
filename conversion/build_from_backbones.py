"""
Makes a new, untrained FlashSloth from a decoder and a vision tower.

    python conversion/build_from_backbones.py new-flashsloth
    python conversion/build_from_backbones.py small --decoder microsoft/phi-1_5 --vision google/siglip-base-patch16-224

Decoder, head and vision tower keep their weights; pooling, projector, queries and embedded query module start as the
release starts them. Then train the projector on captions and everything on questions. DECODER and VISION are
directories or Hub ids; their weights and the new model are in memory together.
"""

import argparse
from math import gcd
from pathlib import Path

import torch
from command_line import run
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, set_seed
from transformers import PreTrainedTokenizerBase as Tokenizer
from written_aside import written_aside

from transformers_flashsloth import (
    FlashSlothConfig,
    FlashSlothForConditionalGeneration,
    FlashSlothImageProcessor,
    FlashSlothProcessor,
)

DECODER = "microsoft/phi-2"
VISION = "google/siglip-so400m-patch14-384"
SPECIAL_TOKENS = ["<learnable>", "</s>", "<image>"]


def build(
    destination: Path,
    decoder: str = DECODER,
    vision: str = VISION,
    *,
    dtype: str = "auto",
    dropped_vision_layers: int = 1,
    image_hd: bool = False,
    seed: int = 0,
    **changes,
) -> FlashSlothForConditionalGeneration:
    """
    Builds a model and its processor and saves them.

    Args:
        destination (`Path`): directory that does not exist yet.
        decoder (`str`): causal language model of transformers, with its tokenizer.
        vision (`str`): SigLIP, whole or its vision part.
        dtype (`str`, defaults to `"auto"`): number type; by default the decoder's.
        dropped_vision_layers (`int`, defaults to 1): layers left out at the end of the vision tower.
        image_hd (`bool`, defaults to `False`): whether images are read in high definition.
        seed (`int`, defaults to 0): of the new parts.
        changes: of [`FlashSlothConfig`], such as `embq_layer` and `pooling_window`.

    Returns:
        [`FlashSlothForConditionalGeneration`], as saved.

    Raises:
        OSError: if a checkpoint is missing, `destination` exists or there is no space left.
        ValueError or StrictDataclassError: if the parts do not fit each other; the message says what would fit.
    """
    set_seed(seed)
    vision_config = AutoConfig.from_pretrained(vision)
    vision_config = getattr(vision_config, "vision_config", vision_config)
    if not 0 <= dropped_vision_layers < vision_config.num_hidden_layers:
        raise ValueError(f"The vision tower has {vision_config.num_hidden_layers} layers: drop fewer than that.")
    vision_config.num_hidden_layers -= dropped_vision_layers
    vision_config.vision_use_head = False
    tower = _load(AutoModel, vision, config=vision_config, dtype=dtype)
    language_model = _load(AutoModelForCausalLM, decoder, dtype=dtype)
    tokenizer = _extend(AutoTokenizer.from_pretrained(decoder))
    head = language_model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(f"{decoder} has a head of another kind than a linear layer.")
    if len(tokenizer) > head.out_features:
        language_model.resize_token_embeddings(len(tokenizer))
        head = language_model.get_output_embeddings()

    config = _configure(language_model, vision_config, tokenizer, **changes)
    model = FlashSlothForConditionalGeneration(config).to(language_model.dtype)
    model.model.language_model.load_state_dict(language_model.base_model.state_dict())
    model.lm_head.load_state_dict(head.state_dict())
    weights = {name: tensor for name, tensor in tower.state_dict().items() if "post_layernorm" not in name}
    model.model.vision_tower.load_state_dict(weights)
    _start_as_the_release(model)

    size = vision_config.image_size
    processor = FlashSlothProcessor(
        FlashSlothImageProcessor(size={"height": size, "width": size}, image_hd=image_hd),
        tokenizer,
        num_query_tokens=config.num_query_tokens,
        patch_size=vision_config.patch_size,
        pooling_window=config.pooling_window,
    )
    with written_aside(destination, sum(tensor.nbytes for tensor in model.state_dict().values())) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
    return model


def _load(auto_class, name: str, **options) -> PreTrainedModel:
    model, report = auto_class.from_pretrained(name, output_loading_info=True, **options)
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(f"{name} lacks {len(missing)} weights, such as {missing[0]}.")
    return model


def _extend(tokenizer: Tokenizer) -> Tokenizer:
    """Adds the special tokens that are missing; answers end with `</s>`."""
    padding = tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in SPECIAL_TOKENS if token not in known], special_tokens=True)
    tokenizer.eos_token, tokenizer.pad_token = "</s>", padding
    return tokenizer


def _configure(
    language_model: PreTrainedModel, vision_config: AutoConfig, tokenizer: Tokenizer, **changes
) -> FlashSlothConfig:
    text_config = language_model.config
    text_config.eos_token_id, text_config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    query_id, _, image_id = tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS)
    start = tokenizer(" .", add_special_tokens=False).input_ids
    half = vision_config.hidden_size // 2
    fitting = {
        "image_token_id": image_id,
        "query_token_id": query_id,
        "query_init_token_id": start[0] if len(start) == 1 else None,
        "user_prefix_ids": tokenizer("</s>USER:", add_special_tokens=False).input_ids,
        "embq_hidden_size": half,
        "embq_num_heads": gcd(half, text_config.num_attention_heads),
        "lm_head_bias": language_model.get_output_embeddings().bias is not None,
        "tie_word_embeddings": text_config.tie_word_embeddings,
    }
    return FlashSlothConfig(text_config=text_config, vision_config=vision_config, **fitting | changes)


@torch.no_grad()
def _start_as_the_release(model: FlashSlothForConditionalGeneration) -> None:
    """
    The release adds pooling and projector to a loaded model, so they start from PyTorch's defaults. Queries and
    embedded query module are part of it and start from transformers' (our `_init_weights`).
    """
    for module in model.model.multi_modal_projector.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()


def main() -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("destination", metavar="DST", type=Path, help="directory that does not exist yet")
    parser.add_argument("--decoder", default=DECODER, help="directory or Hub id (default: %(default)s)")
    parser.add_argument("--vision", default=VISION, help="directory or Hub id (default: %(default)s)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    parser.add_argument(
        "--dropped-vision-layers", type=int, default=1, metavar="N", help="left out at the end (default: %(default)s)"
    )
    parser.add_argument("--image-hd", action="store_true", help="read images in high definition")
    parser.add_argument("--seed", type=int, default=0, help="of the new parts (default: %(default)s)")
    for name in ("num_query_tokens", "pooling_window", "embq_layer", "embq_hidden_size", "embq_num_heads"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=argparse.SUPPRESS, metavar="N")
    options = vars(parser.parse_args())
    destination = options["destination"]
    model = build(options.pop("destination"), options.pop("decoder"), options.pop("vision"), **options)
    return f"Wrote a new FlashSloth of {model.num_parameters():,} parameters ({model.dtype}) to {destination}."


if __name__ == "__main__":
    run(main)
