"""Features of images, kept by the pixels they were made of, so that the same image is encoded once."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from threading import Lock
from typing import NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..model.placeholders import check_images


class Features(NamedTuple):
    """
    What the model makes of one image, copied out of the batch that it was encoded in.

    Attributes:
        patches (`torch.Tensor`): `(1, V*P, Dv)`, which EmbQ reads.
        tokens (`torch.Tensor`): `(1, V*T, D)`.
    """

    patches: torch.Tensor
    tokens: torch.Tensor

    @property
    def num_bytes(self) -> int:
        """Memory that they take."""
        return sum(part.numel() * part.element_size() for part in self)


class FeatureStore:
    """
    Keeps the features of images, up to so many bytes; those that were not asked for longest go first. Features are
    found by the pixels (after preprocessing, so that size, views and normalisation count), the pooling window, and the
    weights of vision tower and projector, adapters on them included. Threads can share it: an image that two of them
    ask for at once is encoded by one of them.

    Args:
        max_bytes (`int`): of all features together, where the model computes them; 0 keeps none.

    Attributes:
        hits, misses (`int`): images that were and were not there (or on their way) when asked for.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes, self.num_bytes = max_bytes, 0
        self.hits = self.misses = 0
        self._kept: OrderedDict[tuple, Features] = OrderedDict()
        self._coming: dict[tuple, Future] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    @torch.no_grad()
    def encode(
        self,
        model: PreTrainedModel,
        pixel_values: torch.Tensor,
        pooling_window: tuple[int, int] | None = None,
        digests: Sequence[tuple] | None = None,
    ) -> BaseModelOutputWithPooling:
        """
        As the model's `get_image_features`, for what is not kept already.

        Args:
            model: a FlashSloth, or PEFT's wrapper of one.
            pixel_values (`torch.Tensor`): `(N, V, 3, H, W)`.
            pooling_window (`tuple[int, int]`, *optional*): by default the config's own.
            digests (`Sequence[tuple]`, *optional*): `digest` of each image, where that is known.

        Returns:
            `last_hidden_state` `(N, V*P, Dv)` and `pooler_output` `(N, V*T, D)`, new tensors.
        """
        if self.max_bytes <= 0:
            return model.get_image_features(pixel_values, pooling_window=pooling_window, return_dict=True)
        made_by = (pooling_window or model.config.window, *weights_of_images(model))
        keys = [(name, *made_by) for name in digests or map(digest, pixel_values)]
        found, mine = self._claim(keys)
        if mine:
            try:
                self._encode_claimed(model, pixel_values, pooling_window, keys, mine)
            except BaseException as error:
                self._give_up([keys[index] for index in mine], error)
                raise
        parts = []
        for index, features in enumerate(found):
            try:
                parts.append(features if isinstance(features, Features) else features.result())
            except Exception:  # another thread's, which may have failed for images that are not ours
                image = pixel_values[index : index + 1]
                parts.append(_of(model.get_image_features(image, pooling_window=pooling_window, return_dict=True), 0))
        return BaseModelOutputWithPooling(
            last_hidden_state=torch.cat([part.patches for part in parts]),
            pooler_output=torch.cat([part.tokens for part in parts]),
        )

    def _claim(self, keys: list[tuple]) -> tuple[list[Features | Future], list[int]]:
        """What each key leads to, now or soon, and the indices of those that the caller has to encode."""
        found, mine = [], []
        with self._lock:
            for index, key in enumerate(keys):
                if key in self._kept:
                    self._kept.move_to_end(key)
                elif key not in self._coming:
                    self._coming[key] = Future()
                    mine.append(index)
                found.append(self._kept[key] if key in self._kept else self._coming[key])
            self.misses += len(mine)
            self.hits += len(keys) - len(mine)
        return found, mine

    def _encode_claimed(self, model, pixel_values, pooling_window, keys: list[tuple], mine: list[int]) -> None:
        outputs = model.get_image_features(pixel_values[mine], pooling_window=pooling_window, return_dict=True)
        for number, index in enumerate(mine):
            features = _of(outputs, number)
            with self._lock:
                self._keep(keys[index], features)
                coming = self._coming.pop(keys[index])
            coming.set_result(features)

    def _keep(self, key: tuple, features: Features) -> None:
        if features.num_bytes > self.max_bytes:
            return
        self._kept[key] = features
        self.num_bytes += features.num_bytes
        while self.num_bytes > self.max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.num_bytes -= oldest.num_bytes

    def _give_up(self, keys: list[tuple], error: BaseException) -> None:
        with self._lock:
            coming = [self._coming.pop(key) for key in keys if key in self._coming]
        for future in coming:
            future.set_exception(error)


def with_features(
    model: PreTrainedModel, inputs: dict, store: FeatureStore, digests: Sequence[tuple] | None = None
) -> dict:
    """
    Inputs of `generate` or `forward` with their images encoded: `mm_encoder_outputs` in place of `pixel_values`, which
    holds the same numbers.

    Raises:
        ValueError: if images and placeholders do not match.
    """
    pixel_values = inputs.get("pixel_values")
    if pixel_values is None:
        return dict(inputs)
    _, tokens_per_image = check_images(inputs["input_ids"], pixel_values, None, model.config)
    window = model.config.windows[tokens_per_image // pixel_values.shape[1]]
    images = store.encode(model, pixel_values, window, digests)
    return {name: value for name, value in inputs.items() if name != "pixel_values"} | {
        "mm_encoder_outputs": {"image": images}
    }


def digest(image: torch.Tensor) -> tuple:
    """What tells the pixels of an image, of any shape and dtype, from all others."""
    image = image.detach().cpu().contiguous()
    pixels = image.view(torch.uint8).numpy() if image.ndim else image.numpy()
    return hashlib.blake2b(pixels, digest_size=20).digest(), tuple(image.shape), str(image.dtype)


def weights_of_images(model: PreTrainedModel) -> tuple:
    """What tells apart the states of the modules that make features: where weights lie, and adapters that are on."""
    core = model.base_model if not hasattr(model, "get_base_model") else model.get_base_model().base_model
    parts = (core.vision_tower, core.multi_modal_projector)
    weights = tuple(
        (parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version)  # counts changes in place
        for part in parts
        for parameter in part.parameters()
    )
    adapters = tuple(
        (module.disable_adapters, *_names(module.active_adapters), *_names(getattr(module, "merged_adapters", ())))
        for part in parts
        for module in part.modules()
        if isinstance(getattr(module, "disable_adapters", None), bool)  # PEFT's layers; upstream's models have methods
    )
    return core.language_model.dtype, core.vision_tower.dtype, hash(weights), adapters


def _names(adapters) -> tuple:
    return (adapters,) if isinstance(adapters, str) else tuple(adapters)


def _of(outputs: BaseModelOutputWithPooling, index: int) -> Features:
    whole = (outputs.last_hidden_state, outputs.pooler_output)
    return Features(*(part[index : index + 1].clone() for part in whole))
