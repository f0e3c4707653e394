"""LFM2-VL's preprocessing on Pillow: transformers has it for torchvision alone, which no row here shall need."""

import math

import numpy as np
import torch
from PIL import Image

PATCH, FACTOR = 16, 2  # a visual token stands for FACTOR x FACTOR patches
TILE, MOST_TILES = 512, 10
MOST_TOKENS, LEAST_TOKENS = 256, 64
TOLERANCE = 2.0  # an image is split that has more than so many times the pixels of MOST_TOKENS
SIDE = PATCH * FACTOR
TOKEN_PIXELS = SIDE * SIDE


class Lfm2VlImages:
    """
    Called with an image and `return_tensors="pt"`: `pixel_values` `(N, P, 3 * 16 * 16)` of N tiles, padded to the
    patches of the largest, `pixel_attention_mask` `(N, P)` and `spatial_shapes` `(N, 2)`, patches high and wide. The
    defaults are those of the published processors.

    Args:
        split (`bool`): whether a large image is read in tiles, and once as a whole.
    """

    def __init__(self, split: bool = True):
        self.split = split

    def __call__(self, image: Image.Image, return_tensors: str = "pt") -> dict[str, torch.Tensor]:
        image = image.convert("RGB")
        whole = image.resize(self.whole_size(*image.size), Image.Resampling.BILINEAR)
        tiles = [*self.tiles(image), whole]
        patches = [self.patches(tile) for tile in tiles]  # (P, 768) each
        most = max(MOST_TOKENS * FACTOR**2, (TILE // PATCH) ** 2 if self.split else 0)
        pixel_values = torch.zeros(len(tiles), most, patches[0].shape[1])
        mask = torch.zeros(len(tiles), most, dtype=torch.int32)
        for index, of_tile in enumerate(patches):
            pixel_values[index, : len(of_tile)] = of_tile
            mask[index, : len(of_tile)] = 1
        shapes = torch.tensor([[tile.height // PATCH, tile.width // PATCH] for tile in tiles])
        return {"pixel_values": pixel_values, "pixel_attention_mask": mask, "spatial_shapes": shapes}

    def whole_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in whole tokens, with no more or fewer of them than there may be."""
        sides = [max(SIDE, round(side / SIDE) * SIDE) for side in (width, height)]
        if math.prod(sides) > MOST_TOKENS * TOKEN_PIXELS:
            scale = math.sqrt(width * height / (MOST_TOKENS * TOKEN_PIXELS))
            sides = [max(SIDE, math.floor(side / scale / SIDE) * SIDE) for side in (width, height)]
        elif math.prod(sides) < LEAST_TOKENS * TOKEN_PIXELS:
            scale = math.sqrt(LEAST_TOKENS * TOKEN_PIXELS / (width * height))
            sides = [math.ceil(side * scale / SIDE) * SIDE for side in (width, height)]
        return sides[0], sides[1]

    def tiles(self, image: Image.Image) -> list[Image.Image]:
        """The tiles of a large image, in the grid that is closest to its shape, in reading order."""
        sides = [max(PATCH, round(side / SIDE) * SIDE) for side in image.size]
        if not self.split or math.prod(sides) <= MOST_TOKENS * TOKEN_PIXELS * TOLERANCE:
            return []
        columns, rows = self.grid(*image.size)
        image = image.resize((columns * TILE, rows * TILE), Image.Resampling.BILINEAR)
        corners = [(column * TILE, row * TILE) for row in range(rows) for column in range(columns)]
        return [image.crop((x, y, x + TILE, y + TILE)) for x, y in corners]

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Columns and rows, two tiles at least; of grids of the same shape the larger if the image fills half of it."""
        grids = [(c, r) for c in range(1, MOST_TILES + 1) for r in range(1, MOST_TILES + 1) if 2 <= c * r <= MOST_TILES]
        best, least = (1, 1), math.inf
        for columns, rows in sorted(grids, key=math.prod):
            off = abs(width / height - columns / rows)
            if off < least or (off == least and 2 * width * height > columns * rows * TILE * TILE):
                best, least = (columns, rows), off
        return best

    def patches(self, tile: Image.Image) -> torch.Tensor:
        """`(P, 3 * 16 * 16)`: patches in reading order, each row by row with its colours last, from -1 to 1."""
        pixels = torch.from_numpy(np.array(tile)).float() / 127.5 - 1  # (H, W, 3)
        rows, columns = tile.height // PATCH, tile.width // PATCH
        return pixels.reshape(rows, PATCH, columns, PATCH, 3).transpose(1, 2).reshape(rows * columns, -1)
