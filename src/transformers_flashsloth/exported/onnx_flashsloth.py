"""An exported FlashSloth with the `generate` of transformers, on ONNX Runtime or OpenVINO."""

from pathlib import Path

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..model.configuration_flashsloth import FlashSlothConfig
from ..model.explanation_flashsloth import FlashSlothExplanation
from ..model.prompt_memory import CACHE, one_cache
from .manifest import (
    DECODER,
    IMAGE_ENCODER,
    IMAGE_FEATURES,
    IMAGE_TOKENS,
    QUERY_ATTENTION,
    exported_windows,
    outputs_of,
    read_manifest,
)
from .sessions import Session, open_sessions


class EncodedImages:
    """
    Images as the decoder reads them. No tensor, so that generation repeats rows without them.

    Attributes:
        tokens, features (`np.ndarray`): `(N, V*T, D)` and `(N, V*P, Dv)`.
        rows (`list[int]`): how many of them each row of the prompt has.
        pooling_weights (`np.ndarray`, *optional*): the share of each patch in its window, `(N, V*P)`.
    """

    def __init__(
        self, tokens: np.ndarray, features: np.ndarray, rows: list[int], pooling_weights: np.ndarray | None = None
    ):
        self.tokens, self.features, self.rows, self.pooling_weights = tokens, features, rows, pooling_weights

    def of_rows(self, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and features where each row of the prompt was repeated, as for beams and several answers."""
        times = num_rows // len(self.rows)
        if times == 1:
            return self.tokens, self.features
        ends = np.cumsum(self.rows)
        order = [i for end, count in zip(ends, self.rows, strict=True) for _ in range(times)
                 for i in range(end - count, end)]  # fmt: skip
        order = order or [0]
        return self.tokens[order], self.features[order]


class OnnxFlashSloth(PreTrainedModel, GenerationMixin):
    """
    A FlashSloth that `flashsloth export` wrote, as [`FlashSlothForConditionalGeneration`] answers: `generate` takes
    what [`FlashSlothProcessor`] makes, in batches, greedily or by sampling or beams, streamed, and with a kept cache.
    It computes on ONNX Runtime or OpenVINO and needs no weights of PyTorch.

    Attributes:
        config ([`FlashSlothConfig`]): of the model that was exported.
        manifest (`dict`): what was exported, and how.
        windows (`dict[int, tuple[int, int]]`): the windows that images can be pooled in, by the tokens that they leave
            of a view, the default first. A call has one of them: the placeholders of its prompts say which, as a
            processor's `pooling_window` made them.
    """

    config_class = FlashSlothConfig
    main_input_name = "input_ids"
    input_modalities = ("image", "text")

    def __init__(
        self,
        encoder: Session,
        decoder: Session,
        config: FlashSlothConfig,
        generation_config: GenerationConfig,
        manifest: dict,
    ):
        super().__init__(config)
        self.encoder, self.decoder, self.manifest = encoder, decoder, manifest
        self.generation_config = generation_config
        self.windows = exported_windows(manifest, config)
        self.dtypes = {name: dtype for name, dtype, _ in (*encoder.inputs, *decoder.inputs)}
        self.shapes = {name: shape for name, _, shape in decoder.inputs}

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        providers: list[str] | None = None,
        threads: int | None = None,
        runtime: str = "onnxruntime",
    ) -> "OnnxFlashSloth":
        """
        Opens what `flashsloth export` wrote.

        Args:
            directory (`str` or `Path`): an exported checkpoint.
            providers (`list[str]`, *optional*): execution providers of ONNX Runtime, the first that can goes first, or
                a device of OpenVINO; by default the CPU's.
            threads (`int`, *optional*): of each operation; the runtime's own choice by default.
            runtime (`str`): "onnxruntime" or "openvino".

        Raises:
            ValueError: if the directory is no exported checkpoint, or not whole, or there is no such runtime.
            ImportError: if the runtime is not installed.
        """
        manifest = read_manifest(directory)
        graphs = [Path(directory, name) for name in (IMAGE_ENCODER, DECODER)]
        sessions = open_sessions(graphs, runtime, providers, threads)
        config, generation_config = FlashSlothConfig.from_pretrained(directory), _generation_config(directory)
        return cls(*sessions, config, generation_config, manifest)

    @property
    def device(self) -> torch.device:
        """Where inputs and outputs are; `providers` say where it computes."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of the logits."""
        return torch.float32

    def to(self, *args, **kwargs) -> "OnnxFlashSloth":
        """Itself: it has no weights of PyTorch that could be moved."""
        return self

    def encode(self, pixel_values: torch.Tensor, rows: list[int], visual_tokens: int | None = None) -> EncodedImages:
        """
        Encodes images once, for many prompts.

        Args:
            pixel_values (`torch.Tensor`): `(N, V, 3, H, W)`.
            rows (`list[int]`): how many of the N images each row of the prompts has.
            visual_tokens (`int`, *optional*): T, tokens of a view, a key of `windows`; by default the first.

        Raises:
            ValueError: if the export has no such number.
        """
        visual_tokens = next(iter(self.windows)) if visual_tokens is None else visual_tokens
        if visual_tokens not in self.windows:
            raise ValueError(f"There are no {visual_tokens} visual tokens a view here: {self._numbers()}")
        tokens, weights = outputs_of(self.windows, visual_tokens)
        names = [tokens, IMAGE_FEATURES, *({weights} & {*self.encoder.outputs})]  # the oldest exports have no weights
        outputs = self.encoder.run(names, {"pixel_values": self._array("pixel_values", pixel_values)})
        tokens, features, *weights = outputs
        return EncodedImages(tokens, features, rows, *weights)

    def _numbers(self) -> str:
        numbers = ", ".join(map(str, self.windows))
        return f"this was exported for {numbers} visual tokens a view, the same for all images of a call."

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, *args, pixel_values: torch.Tensor | None = None, **kwargs):
        """
        As [`FlashSlothForConditionalGeneration.generate`], but a kept cache wants the images of the whole conversation
        in `pixel_values`, or as `images` what `encode` returned; and beams are scored among tokens that can be
        answered, so that two of nearly one score may change places.

        Raises:
            ValueError: if images and placeholders do not match, or say another window than those of the export.
        """
        if inputs is not None:
            kwargs.setdefault("input_ids", inputs)
        input_ids = kwargs["input_ids"]
        cache = one_cache(kwargs.pop("cache", None), kwargs.pop("past_key_values", None))
        kwargs |= {} if cache is None else {CACHE: cache}
        if kwargs.get("images") is None:
            kwargs["images"] = self._images(input_ids, pixel_values)
        kwargs.pop("mm_token_type_ids", None)
        return super().generate(*args, **kwargs)

    @torch.no_grad()
    def explain(
        self, input_ids: torch.LongTensor, pixel_values: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> FlashSlothExplanation:
        """
        As [`FlashSlothForConditionalGeneration.explain`], but `query_attention` is that of each row's last query run
        alone, `(N, 1, Q, V, rows, columns)`.

        Raises:
            ValueError: if images and placeholders do not match, or say another window than those of the export, or it
                was made before exports explained.
        """
        if not self.manifest.get("explains"):
            raise ValueError("This was exported before exports explained what they answer: export it anew.")
        images = self._images(input_ids, pixel_values)
        views = (pixel_values.shape[1], *self.config.patch_grid)
        pooling = torch.from_numpy(images.pooling_weights).unflatten(1, views)
        if QUERY_ATTENTION not in self.decoder.outputs:  # no queries
            return FlashSlothExplanation(pooling_weights=pooling)
        feed = self._feed(input_ids, images, attention_mask, DynamicCache())
        (attention,) = self.decoder.run([QUERY_ATTENTION], feed)
        attention = torch.from_numpy(attention).unflatten(2, views)[:, None]
        return FlashSlothExplanation(pooling_weights=pooling, query_attention=attention)

    def _images(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None) -> EncodedImages:
        """The images of a prompt, held against its placeholders; a blank one where there is none."""
        counts = (input_ids == self.config.image_token_id).sum(1).tolist()
        if pixel_values is None:
            if any(counts):
                raise ValueError(f"The prompt has {sum(counts)} image placeholders and no image: pass `pixel_values`.")
            widths = self.shapes[IMAGE_TOKENS][2], self.shapes[IMAGE_FEATURES][2]
            return EncodedImages(*(np.zeros((1, 1, width), np.float32) for width in widths), [0] * len(counts))
        num_images, num_views = pixel_values.shape[:2]
        of_image = {num_views * tokens: tokens for tokens in self.windows}
        per_image = sum(counts) // max(num_images, 1)
        if per_image not in of_image or sum(counts) != per_image * num_images or any(n % per_image for n in counts):
            raise ValueError(
                f"Images and placeholders do not match: {num_images} images of {num_views} views each, and {counts} "
                f"placeholders a row; {self._numbers()}"
            )
        return self.encode(pixel_values, [count // per_image for count in counts], of_image[per_image])

    def prepare_inputs_for_generation(self, input_ids: torch.LongTensor, **kwargs) -> dict:
        """All ids so far: the graph counts placeholders and finds questions in them; the cache says which are new."""
        cache = one_cache(kwargs.get("cache"), kwargs.get("past_key_values"))
        return {"input_ids": input_ids, "attention_mask": kwargs["attention_mask"], "images": kwargs["images"],
                CACHE: cache}  # fmt: skip

    def forward(
        self,
        input_ids: torch.LongTensor,
        images: EncodedImages,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """
        Runs the decoder on what is behind the cache.

        Args:
            input_ids (`torch.LongTensor`): all ids so far, `(B, L)`.
            images ([`EncodedImages`]): all images so far.
            attention_mask (`torch.Tensor`, *optional*): 0 at padding, `(B, L)`.
            cache or past_key_values (`Cache`, *optional*): gets the new keys and values.

        Returns:
            logits of the last position, `(B, 1, vocabulary)`, and the cache.
        """
        cache = one_cache(cache, past_key_values)
        cache = DynamicCache() if cache is None else cache
        past = cache.get_seq_length()
        outputs = [name for name in self.decoder.outputs if name != QUERY_ATTENTION]
        logits, *present = self.decoder.run(outputs, self._feed(input_ids, images, attention_mask, cache))
        for layer, (keys, values) in enumerate(zip(present[::2], present[1::2], strict=True)):
            keys, values = torch.from_numpy(keys), torch.from_numpy(values)
            cache.update(keys[:, :, past:], values[:, :, past:], layer)
        return CausalLMOutputWithPast(logits=torch.from_numpy(logits), **{CACHE: cache})

    def _feed(
        self, input_ids: torch.Tensor, images: EncodedImages, attention_mask: torch.Tensor | None, cache: Cache
    ) -> dict[str, np.ndarray]:
        """The inputs of the decoder, by their names."""
        past = cache.get_seq_length()
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        tokens, features = images.of_rows(input_ids.shape[0])
        feed = {"input_ids": input_ids, "attention_mask": mask, IMAGE_TOKENS: tokens, IMAGE_FEATURES: features}
        for name in list(self.shapes)[len(feed) :]:
            _, layer, part = name.split(".")
            _, heads, _, width = self.shapes[name]
            empty = torch.zeros(input_ids.shape[0], heads, 0, width)
            feed[name] = getattr(cache.layers[int(layer)], f"{part}s") if past else empty
        return {name: self._array(name, value) for name, value in feed.items()}

    def _array(self, name: str, value: torch.Tensor | np.ndarray) -> np.ndarray:
        value = value.cpu().numpy() if isinstance(value, torch.Tensor) else value
        return np.ascontiguousarray(value, dtype=self.dtypes[name])


def _generation_config(directory: str | Path) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(directory)
    except OSError:
        return GenerationConfig()
