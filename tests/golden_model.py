"""The tiny seeded model of the golden cases, and the cases themselves, in this package's form."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.goldens import seeded
from transformers_flashsloth import FlashSlothConfig, FlashSlothForConditionalGeneration
from transformers_flashsloth.authors.format import AUTHORS_TO_OURS

GOLDENS = Path(__file__).parent / "goldens"
CASES = ("sd_single", "hd_single", "sd_train_batch", "hd_train_batch")
IMAGE, QUERY, PAD, EOS = 50297, 50295, 50256, 50296
USER_PREFIX = [50296, 29904, 25]
RELEASED_IMAGE = -200

# Names of each case's images (goldens' README); the text-only row's blank image is not ours to encode.
PIXELS = {
    "sd_single": ["sd_single"],
    "hd_single": ["hd_single"],
    "sd_train_batch": ["train0", "train1"],
    "hd_train_batch": ["hdtrain0", "hdtrain1"],
}
TEXT_FIELDS = [
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "partial_rotary_factor",
    "hidden_act",
    "layer_norm_eps",
    "max_position_embeddings",
    "vocab_size",
    "resid_pdrop",
]


def our_name(authors_name: str) -> str:
    names = [re.sub(old, new, authors_name) for old, new in AUTHORS_TO_OURS.items() if re.search(old, authors_name)]
    (name,) = names
    return name


def tiny_config(**changes) -> FlashSlothConfig:
    released = json.loads((GOLDENS / "tiny_config.json").read_text())
    vision = released["vision_config"] | {"vision_use_head": False}
    vision["num_hidden_layers"] -= 1  # mm_vision_select_layer -2
    text = {"model_type": "phi"} | {name: released[name] for name in TEXT_FIELDS}
    text |= {"bos_token_id": PAD, "eos_token_id": EOS, "pad_token_id": PAD}
    return FlashSlothConfig(**{"text_config": text, "vision_config": vision} | changes)


def tiny_model(seed: int = 0) -> FlashSlothForConditionalGeneration:
    """The seeded model of the goldens, float32, in evaluation mode."""
    shapes = json.loads((GOLDENS / "tiny_checkpoint_keys.json").read_text())
    model = FlashSlothForConditionalGeneration(tiny_config())
    model.load_state_dict(
        {our_name(name): torch.from_numpy(seeded.weight(name, tuple(shape), seed)) for name, shape in shapes.items()}
    )
    return model.eval()


def pixels(*names: str, views: int = 1) -> torch.Tensor:
    """`(len(names), views, 3, 126, 126)` of the goldens' generator."""
    shape = (1, 3, 126, 126) if views == 1 else (1, views, 3, 126, 126)
    images = [torch.from_numpy(seeded.pixels(name, shape)).view(views, 3, 126, 126) for name in names]
    return torch.stack(images)


@dataclass
class Case:
    """A golden case: `inputs` for our model, and `golden`, the release's numbers."""

    inputs: dict[str, torch.Tensor]
    golden: dict[str, torch.Tensor]


def expand(row: list[int], image_tokens: int, labels: list[int] | None = None) -> tuple[list[int], list[int]]:
    """Raw ids (and labels) of the release to ours: each placeholder takes as many positions as the model gives it."""
    labels = labels or [-100] * len(row)
    ids, targets = [], []
    for token_id, label in zip(row, labels, strict=True):
        if token_id == RELEASED_IMAGE:
            ids += [IMAGE] * image_tokens
            targets += [-100] * image_tokens
        elif token_id == QUERY:
            ids += [QUERY] * 9
            targets += [-100] * 9
        else:
            ids.append(token_id)
            targets.append(label)
    return ids, targets


def pad(rows: list[list[int]], side: str = "right", value: int = PAD) -> torch.Tensor:
    length = max(map(len, rows))
    fill = [[value] * (length - len(row)) for row in rows]
    return torch.tensor([f + row if side == "left" else row + f for row, f in zip(rows, fill, strict=True)])


def load_case(name: str) -> Case:
    golden = load_file(GOLDENS / f"{name}.safetensors")
    views = 5 if name.startswith("hd") else 1
    ids, labels = [], []
    for i, row in enumerate(golden["input_ids"]):
        real = golden["attention_mask"][i].bool() if "attention_mask" in golden else torch.ones_like(row).bool()
        row_labels = golden["labels"][i][real].tolist() if "labels" in golden else None
        row_ids, row_labels = expand(row[real].tolist(), 9 * views, row_labels)
        ids.append(row_ids)
        labels.append(row_labels)
    inputs = {
        "input_ids": pad(ids),
        "attention_mask": pad([[1] * len(row) for row in ids], value=0),
        "pixel_values": pixels(*PIXELS[name], views=views),
    }
    if "labels" in golden:
        inputs["labels"] = pad(labels, value=-100)
    return Case(inputs, golden)
