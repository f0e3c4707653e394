"""The graphs of a model, traced with transformers' own exporter, and held to be as dynamic as they have to be."""

from functools import partial
from itertools import chain

import torch
from onnx_ir import Model
from torch import nn
from torch.export import Dim
from transformers.exporters.configs import OnnxConfig
from transformers.exporters.exporter_onnx import OnnxExporter

from ..exported.manifest import IMAGE_FEATURES, IMAGE_TOKENS, QUERY_ATTENTION, outputs_of
from ..model.configuration_flashsloth import FlashSlothConfig
from ..model.modeling_flashsloth import FlashSlothForConditionalGeneration
from ..model.prompt_memory import CACHE
from .graphs import Decoder, ImageEncoder
from .quiet import quietly

# Sizes of what is traced: no two of one kind alike and none of them 1, or a graph would hold for these alone.
ROWS, VIEWS, CACHED, QUESTION, PADDING = 2, 3, 7, 5, 2


def trace_image_encoder(model: FlashSlothForConditionalGeneration, windows: dict[int, tuple[int, int]]) -> Model:
    """
    `pixel_values` `(images, views, 3, H, W)` to `image_tokens`, `image_features` and `pooling_weights` of the first
    window, and what `outputs_of` names for each other one; `windows` are by the tokens that they leave of a view.
    """
    pixels = torch.randn(ROWS + 1, VIEWS, 3, *model.config.view_size, dtype=model.dtype)
    first, *others = [
        [(tokens, ("images", tokens)), (weights, ("images", "image_patches"))]
        for tokens, weights in map(partial(outputs_of, windows), windows)
    ]
    return _trace(
        ImageEncoder(model, list(windows.values())),
        {"pixel_values": pixels},
        {"pixel_values": {0: Dim.AUTO, 1: Dim.AUTO}},
        [("pixel_values", ("images", "views"))],
        [first[0], (IMAGE_FEATURES, ("images", "image_patches")), first[1], *chain(*others)],
    )


def trace_decoder(model: FlashSlothForConditionalGeneration) -> Model:
    """Ids, mask, encoded images, keys and values to `logits`, the present keys and values, and `query_attention`."""
    keys = _keys(model)
    names = [f"{layer}.{part}" for layer in range(len(keys)) for part in ("key", "value")]
    past = [torch.zeros(shape, dtype=model.dtype) for shape in keys for _ in range(2)]
    looked = [] if model.model.embq is None else [(QUERY_ATTENTION, ("images", None, "image_patches"))]
    along, prompt = ("rows", "length"), _prompt(model.config, model.dtype)
    return _trace(
        Decoder(model),
        prompt | {"past": past},
        {name: {0: Dim.AUTO, 1: Dim.AUTO} for name in prompt} | {"past": [{0: Dim.AUTO, 2: Dim.AUTO}] * len(past)},
        [
            ("input_ids", along),
            ("attention_mask", along),
            (IMAGE_TOKENS, ("images", "image_tokens")),
            (IMAGE_FEATURES, ("images", "image_patches")),
            *[(f"past_key_values.{name}", ("rows", None, "cached")) for name in names],
        ],
        [("logits", ("rows",)), *[(f"present.{name}", ("rows", None, "length")) for name in names], *looked],
    )


def _prompt(config: FlashSlothConfig, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A row of two images and one of an image and padding, each with a question, behind some cached positions."""
    tokens = VIEWS * config.tokens_per_view
    other = next(number for number in range(10, 100) if number not in config.placeholder_ids)
    image, queries = [config.image_token_id] * tokens, [config.query_token_id] * config.num_query_tokens
    question = [other] * QUESTION + queries + [other]
    rows = [[other, *image, other, *image, *question], [other, *image, *question]]
    length = CACHED + PADDING + max(map(len, rows))
    ids = torch.tensor([[other] * (length - len(row)) + row for row in rows])
    mask = torch.ones_like(ids)
    mask[:, CACHED : CACHED + PADDING] = 0
    patches = VIEWS * config.patch_grid[0] * config.patch_grid[1]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "image_tokens": torch.randn(ROWS + 1, tokens, config.text_config.hidden_size, dtype=dtype),
        "image_features": torch.randn(ROWS + 1, patches, config.vision_config.hidden_size, dtype=dtype),
    }


@torch.no_grad()
def _keys(model: FlashSlothForConditionalGeneration) -> list[tuple[int, ...]]:
    """Shapes of the cached keys of each layer, `(ROWS, heads, CACHED, d)`, as the decoder itself makes them."""
    ids = torch.full((ROWS, CACHED), model.config.user_prefix_ids[0] if model.config.user_prefix_ids else 0)
    decoder = model.model.language_model
    cache = getattr(decoder(input_ids=ids.to(model.device), use_cache=True), CACHE)
    return [tuple(layer.keys.shape) for layer in cache.layers]


def _trace(
    module: nn.Module, inputs: dict, dynamic: dict, taken: list[tuple[str, tuple]], given: list[tuple[str, tuple]]
) -> Model:
    """
    The graph of a module, with names for its inputs and outputs and for their dynamic sizes.

    Raises:
        RuntimeError: if a size that has to be dynamic was fixed while tracing.
    """
    with quietly():
        program, _ = OnnxExporter().export_program(module.eval(), inputs, OnnxConfig(dynamic_shapes=dynamic))
    for values, names in ((program.graph.inputs, taken), (program.graph.outputs, given)):
        for value, (name, sizes) in zip(values, names, strict=True):
            value.name = name
            fixed = [size for at, size in enumerate(sizes) if size and isinstance(value.shape[at], int)]
            if fixed:
                raise RuntimeError(f"`{name}` was traced for {value.shape}, but {', '.join(fixed)} must be dynamic.")
    return program
