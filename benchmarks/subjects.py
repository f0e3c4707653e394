"""What is measured: a model, how an image and a question become its inputs, and which of its modules do what."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import nn

from .building import num_bytes
from .stages import Stages

QUESTION_TOKENS = 24


@dataclass
class Subject:
    """
    Attributes:
        model: has `generate`.
        read_image: turns an image into the model's pixel inputs.
        prompt: the ids `(1, L)` of a prompt with a question of `QUESTION_TOKENS` about those pixel inputs.
        image_token_id (`int`): the placeholder of a visual token.
        modules: the modules of each stage, see `stages.Stages`.
        embeddings (`nn.Module`): the decoder's input embeddings, of which decoding reads but one row.
        tables (`list`): other embeddings of which decoding reads but one row, such as those of every layer (Gemma 4).
        dtype (`torch.dtype`): what pixels are cast to.
        types_tokens (`bool`): whether the model asks for `mm_token_type_ids`.
    """

    model: object
    read_image: Callable[[Image.Image], dict[str, torch.Tensor]]
    prompt: Callable[[dict[str, torch.Tensor]], torch.Tensor]
    image_token_id: int
    modules: dict[str, list[nn.Module]]
    embeddings: nn.Module
    device: str
    dtype: torch.dtype
    types_tokens: bool = False
    tables: list[nn.Module] = field(default_factory=list)

    def __post_init__(self):
        self.stages = Stages(self.modules)

    def inputs(self, image: Image.Image) -> dict[str, torch.Tensor]:
        """All that `generate` takes for one image and question, on the model's device."""
        pixels = dict(self.read_image(image))
        ids = self.prompt(pixels)
        pixels["input_ids"] = ids
        if self.types_tokens:
            pixels["mm_token_type_ids"] = (ids == self.image_token_id).long()
        return {
            name: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for name, value in pixels.items()
        }

    def num_visual_tokens(self, inputs: dict[str, torch.Tensor]) -> int:
        return int((inputs["input_ids"] == self.image_token_id).sum())

    @property
    def weight_bytes(self) -> int:
        return num_bytes([module for modules in self.modules.values() for module in modules])

    @property
    def decoding_bytes(self) -> int:
        """Bytes of the weights that a decoding step reads."""
        decoder = num_bytes(self.modules["decoder"])
        head = self.modules["decoder"][-1]
        tied = head.weight is self.embeddings.weight
        return decoder - num_bytes(self.tables) - (0 if tied else num_bytes([self.embeddings]))


def text_ids(length: int, first: int = 1000) -> list[int]:
    """Ids of that many ordinary tokens; every vocabulary here has them."""
    return [first + 37 * position % 1009 for position in range(length)]


def photo(width: int = 768, height: int = 768) -> Image.Image:
    """A picture that is neither flat nor noise: smooth gradients with some grain, always the same."""
    x, y = torch.meshgrid(torch.linspace(0, 6, height), torch.linspace(0, 6, width), indexing="ij")
    waves = torch.stack([(x * (1 + k) + y * (2 - k) / 2).sin() for k in range(3)], dim=-1)
    grain = torch.rand(waves.shape, generator=torch.Generator().manual_seed(0))
    pixels = (waves * 0.4 + 0.5) * 230 + grain * 25
    return Image.fromarray(pixels.clamp(0, 255).to(torch.uint8).numpy())
