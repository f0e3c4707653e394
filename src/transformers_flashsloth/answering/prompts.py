"""Questions to prompts: each image is read and made into pixels once, however many questions are about it."""

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..model.image_inputs import flatten
from .features import digest

# Images that are held as pixels at once. Questions come in the order of their images, so that few are needed.
MOST_IMAGES = 32


@dataclass
class Prompt:
    """
    A question as the model takes it.

    Attributes:
        index (`int`): which of the questions it is.
        ids (`list[int]`): with its placeholders expanded.
        pixel_values (`torch.Tensor`, *optional*): `(N, V, 3, H, W)`; `None` without images.
        digests (`tuple`): of its N images, see `features.digest`.
    """

    index: int
    ids: list[int]
    pixel_values: torch.Tensor | None = None
    digests: tuple = ()


def as_conversation(question: tuple | list[dict]) -> list[dict]:
    """
    The messages of a pair of images and question, or of a conversation.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(question, list) and question and all(isinstance(message, dict) for message in question):
        return question
    if not isinstance(question, (tuple, list)) or len(question) != 2 or not isinstance(question[1], str):
        raise ValueError(
            "it is neither a pair (images, question) nor a conversation, a list of messages with `role` and `content`"
        )
    images, text = question
    images = [] if images is None else images if isinstance(images, (list, tuple)) else [images]
    parts = [image if isinstance(image, dict) else {"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def images_of(conversation: list[dict]) -> tuple:
    """What tells the images and videos of a conversation from others, in reading order."""
    parts = [part for message in conversation if not isinstance(message["content"], str) for part in message["content"]]
    found = []
    for part in parts:
        for name in ("image", "video", "url", "path", "base64"):
            if part.get("type") in ("image", "video") and part.get(name) is not None:
                found.append(source_key(part[name]))
    return tuple(found)


def source_key(source) -> Any:
    """A value that is equal for equal images: what is named, or the content of what is there."""
    if isinstance(source, (list, tuple)):
        return tuple(source_key(item) for item in source)
    if isinstance(source, Image.Image):
        # A palette, transparency and an orientation are no pixels.
        rest = (source.getpalette(), source.info.get("transparency"), source.getexif().get(274))
        return _digest(source.tobytes()), source.mode, source.size, repr(rest)
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu().float().numpy() if source.dtype == torch.bfloat16 else source.cpu().numpy()
    if isinstance(source, np.ndarray):
        return _digest(np.ascontiguousarray(source)), source.shape, str(source.dtype)
    if isinstance(source, (bytes, bytearray)):
        return _digest(source)
    return source if isinstance(source, str) else repr(source)


def _digest(content) -> bytes:
    return hashlib.blake2b(content, digest_size=20).digest()


class PromptMaker:
    """
    Makes prompts with a processor, which is left as it is.

    Args:
        processor ([`FlashSlothProcessor`]): whose chat template and options are used.
        processor_kwargs (`dict`): options of its calls.
    """

    def __init__(self, processor, processor_kwargs: dict):
        self.processor = copy.copy(processor)
        self.processor.image_processor = _Remembering(processor.image_processor)
        self.processor_kwargs = processor_kwargs

    def text(self, conversation: list[dict]) -> str:
        """The prompt before its placeholders are expanded; refuses what the template refuses."""
        return self.processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)

    def prompt(self, index: int, conversation: list[dict]) -> Prompt:
        """The whole prompt of a conversation, on the CPU."""
        inputs = self.processor.apply_chat_template(
            conversation,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=self.processor_kwargs,
        )
        pixel_values = inputs.get("pixel_values")
        digests = () if pixel_values is None else tuple(map(digest, pixel_values))
        return Prompt(index, inputs["input_ids"][0].tolist(), pixel_values, digests)


class _Remembering:
    """An image processor that reads a source, and makes its pixels, once, for as long as it holds it."""

    def __init__(self, image_processor):
        self._processor = image_processor
        self._read, self._made = OrderedDict(), OrderedDict()

    def __getattr__(self, name: str):
        return getattr(self._processor, name)

    def fetch_images(self, sources):
        """As the processor's; what has a name is read once."""
        if isinstance(sources, (list, tuple)):
            return [self.fetch_images(source) for source in sources]
        if not isinstance(sources, str):
            return self._processor.fetch_images(sources)
        return _once(self._read, sources, lambda: self._processor.fetch_images(sources))

    def __call__(self, images, **kwargs):
        """As the processor's, image by image."""
        # By identity, as the image is held along with what was made of it.
        made = [
            _once(self._made, id(image), lambda image=image: (image, self._processor(image, **kwargs)))[1]
            for image in flatten(images)
        ]
        together = copy.copy(made[0])
        together.data = dict(made[0].data) | {"pixel_values": torch.cat([one["pixel_values"] for one in made])}
        return together


def _once(held: OrderedDict, key, make: Callable[[], Any]):
    if key not in held:
        held[key] = make()
        if len(held) > MOST_IMAGES:
            held.popitem(last=False)
    held.move_to_end(key)
    return held[key]
