"""Every test starts from one seed, on one thread: tests run side by side, and their models are tiny."""

from pathlib import Path

import pytest
import torch
from transformers import set_seed

from tests.authors_directory import write_authors_checkpoint
from tests.tiny_checkpoint import save_tiny_checkpoint

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    set_seed(0)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> str:
    """Directory of a whole checkpoint with random weights."""
    directory = tmp_path_factory.mktemp("tiny_checkpoint")
    save_tiny_checkpoint(directory)
    return str(directory)


@pytest.fixture(scope="session")
def authors_directory(tmp_path_factory) -> Path:
    """The tiny model of the goldens in the authors' format, float32, two shards. Copy it before you change it."""
    return write_authors_checkpoint(tmp_path_factory.mktemp("authors") / "tiny")
