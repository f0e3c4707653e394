"""Marks of tests that need a CUDA device: left out elsewhere, and chosen by `-m gpu`."""

import pytest
import torch

GPU_MARKS = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def needs_gpu(test):
    """Marks a test, a class of tests, or what `pytest.param` takes."""
    for mark in GPU_MARKS:
        test = mark(test)
    return test
