"""FastVLM's tower is timm's, and timm imports torchvision, whose usual build does not import beside a CPU torch."""

import importlib.util

# What torchvision looks up when it is imported; no image here goes through its compiled operators.
OPERATORS = ("torchvision::nms", "torchvision::qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def let_torchvision_import() -> None:
    """Declares the operators whose absence keeps a CUDA build of torchvision from importing, before transformers is."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision
    except RuntimeError:
        import torch

        for name in OPERATORS:
            torch.library.define(name, SCHEMA)
        import torchvision  # noqa: F401
