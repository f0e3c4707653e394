"""Phase A: train the vision tower to tell what covers each patch of a picture."""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch
from torch import nn
from tqdm import tqdm
from transformers import SiglipVisionModel

from .architecture import attention_for, vision_config
from .dense import DenseHeads, dense_labels, pixel_values
from .optimisation import CHECKPOINT_SECONDS, Clock, Optimisers, fast_products, made_ahead, save_checkpoint
from .scene import PatchLabels
from .scenes import scene_of

MIXTURE = {
    "single": 0.16,
    "several": 0.16,
    "corners": 0.09,
    "counting": 0.1,
    "shapes": 0.09,
    "shape corners": 0.05,
    "easy-vqa": 0.09,
    "clutter": 0.15,
    "touching": 0.11,
}
BATCH_SIZE = 128
MATRIX_LR, OTHER_LR = 3e-3, 2e-3


def pretrain_vision(path: Path, minutes: float, seed: int, device: torch.device, start: dict | None = None) -> dict:
    """Train for `minutes`, checkpointing at `path` and going on from there; returns the last checkpoint.

    `start` is the state dict of a tower to begin with instead of a random one. The checkpoint's "tower" and "heads"
    are the state dicts of a `SiglipVisionModel` without final norm and of `DenseHeads`.
    """
    torch.manual_seed(seed)
    tower = SiglipVisionModel._from_config(vision_config(), attn_implementation=attention_for(device))
    tower.post_layernorm = nn.Identity()
    if start is not None:
        tower.load_state_dict(start)
    tower.to(device).train()
    heads = DenseHeads(tower.config.hidden_size).to(device)
    optimisers = Optimisers([tower, heads], MATRIX_LR, OTHER_LR)
    step, elapsed = 0, 0.0
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        tower.load_state_dict(state["tower"])
        heads.load_state_dict(state["heads"])
        optimisers.load_state_dict(state["optimisers"])
        step, elapsed = state["step"], state["elapsed"]

    def make_batch(index: int) -> tuple[torch.Tensor, PatchLabels]:
        random = Random(f"vision {seed} {index}")
        kinds = random.choices(tuple(MIXTURE), tuple(MIXTURE.values()), k=BATCH_SIZE)
        scenes = [scene_of(kind, random) for kind in kinds]
        return pixel_values(scenes).squeeze(1), dense_labels(scenes)

    def save() -> None:
        save_checkpoint(
            path,
            tower=tower.state_dict(),
            heads=heads.state_dict(),
            optimisers=optimisers.state_dict(),
            step=step,
            elapsed=clock.elapsed,
        )

    clock = Clock(minutes, elapsed)
    next_save = clock.elapsed + CHECKPOINT_SECONDS
    with tqdm(desc="vision tower", unit="image", initial=step * BATCH_SIZE) as bar:
        batches = made_ahead(make_batch, step)
        while not clock.finished:
            images, labels = next(batches)
            images, labels = images.to(device), PatchLabels(*(label.to(device) for label in labels))
            with fast_products(device):
                patches = tower(images).last_hidden_state  # (N, 144, Dv)
                loss = heads(patches, labels)
            optimisers.step(loss, clock.factor)
            step += 1
            bar.update(BATCH_SIZE)
            if step % 20 == 0:
                accuracy = heads.accuracy(patches.float(), labels.names)
                bar.set_postfix(loss=f"{loss.item():.3f}", patches=f"{accuracy.item():.1%}", refresh=False)
            if clock.elapsed >= next_save:
                save()
                next_save = clock.elapsed + CHECKPOINT_SECONDS
        batches.close()
    save()
    return torch.load(path, map_location="cpu", weights_only=True)
