"""What a user would pick instead, at its published size (`rival_sizes.py`), with random weights."""

import math

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from .building import build
from .rival_sizes import RIVALS, Rival
from .subjects import QUESTION_TOKENS, Subject, text_ids


def rival_config(rival: Rival, tiny: bool):
    """
    The rival's config; a tiny one keeps image sizes and vocabulary, and so all counts of tokens.

    Raises:
        ValueError: if this transformers does not know the model yet.
    """
    values = dict(rival.config)
    for name, change in rival.tiny.items() if tiny else ():
        values[name] = {**values.get(name, {}), **change} if isinstance(change, dict) else change
    return AutoConfig.for_model(**values)


def build_rival(name: str, device: str, dtype: torch.dtype, tiny: bool) -> Subject:
    """The subject of a rival with random weights."""
    rival = RIVALS[name]
    config = rival_config(rival, tiny)
    model = build(lambda: AutoModelForImageTextToText.from_config(config, dtype=dtype), device)
    return ask_rival(rival, model, device, dtype)


def ask_rival(rival: Rival, model, device: str, dtype: torch.dtype) -> Subject:
    """The subject of a built model."""
    image_processor, image_token_id = rival.image_processor(), model.config.image_token_id
    compression = []
    for path in rival.compression:
        module = model.get_submodule(path.removesuffix(".*"))
        compression += list(module) if path.endswith(".*") else [module]
    counted = []  # visual tokens of the image that was read last, as some processors say

    def read_image(image) -> dict:
        pixels = dict(image_processor(image, return_tensors="pt"))
        counted[:] = [rival.image_tokens(pixels)]
        pixels.pop("num_patches", None)
        return {key: value for key, value in pixels.items() if key not in rival.unused}

    def prompt(pixels: dict) -> torch.Tensor:
        half = math.ceil(rival.text_tokens / 2)
        image = [image_token_id] * counted[0]
        return torch.tensor([text_ids(half) + image + text_ids(rival.text_tokens - half + QUESTION_TOKENS)])

    return Subject(
        model=model,
        read_image=read_image,
        prompt=prompt,
        image_token_id=image_token_id,
        modules={
            "vision": [model.get_submodule(rival.vision)],
            "compression": compression,
            "decoder": [model.get_submodule(rival.decoder), model.lm_head],
        },
        embeddings=model.get_input_embeddings(),
        tables=[model.get_submodule(path) for path in rival.tables],
        device=device,
        dtype=dtype,
        types_tokens=rival.types_tokens,
    )
