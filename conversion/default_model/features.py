"""Features of the frozen vision tower, computed once for every picture of a training and kept in a file."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import SiglipVisionModel

from .dense import pixel_values
from .optimisation import fast_products
from .pictures import Pictures
from .scene import GRID

BATCH_SIZE = 128


def fingerprint(weights: dict[str, torch.Tensor]) -> str:
    """Tells two state dicts of a tower apart; 12 hexadecimal digits."""
    digest = sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode() + value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


class FeatureBank:
    """Patch features of pictures 0 to `count` - 1 by `tower`, (144, Dv) bfloat16 each: 55 kB a picture at width 192.

    They lie in a file of `directory`, one for each tower, seed and count. Filling goes on where it was.
    """

    def __init__(self, directory: Path, pictures: Pictures, count: int, tower: SiglipVisionModel):
        directory.mkdir(parents=True, exist_ok=True)
        self.pictures, self.count, self.tower = pictures, count, tower
        path = directory / f"{fingerprint(tower.state_dict())}-{pictures.seed}-{count}.bfloat16"
        self.finished = path.with_suffix(".finished")
        shape = (count, GRID * GRID, tower.config.hidden_size)
        self.values = np.memmap(path, np.int16, "r+" if path.exists() else "w+", shape=shape)

    @torch.no_grad()
    def fill(self) -> None:
        """Compute what is missing."""
        first = int(self.finished.read_text()) if self.finished.exists() else 0
        device = self.tower.device
        starts = range(first, self.count, BATCH_SIZE)
        for start in tqdm(starts, desc="features", unit=f"x {BATCH_SIZE} pictures", disable=not starts):
            end = min(start + BATCH_SIZE, self.count)
            images = pixel_values([self.pictures[number] for number in range(start, end)]).squeeze(1)
            with fast_products(device):
                patches = self.tower(images.to(device)).last_hidden_state  # (N, 144, Dv)
            self.values[start:end] = patches.to("cpu", torch.bfloat16).view(torch.int16).numpy()
            self.finished.write_text(str(end))
        self.values.flush()

    def __getitem__(self, numbers: list[int]) -> torch.Tensor:
        """Features of pictures, (N, 144, Dv) bfloat16."""
        return torch.from_numpy(self.values[numbers]).view(torch.bfloat16)
