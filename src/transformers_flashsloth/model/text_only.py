"""Prompts of text alone where others wait for the modules that only images need: in training, and on many ranks."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

# What a parameter has that is split: a tensor's placement by FSDP2 and tensor parallelism, DeepSpeed's name by ZeRO-3.
MARKS = ("placements", "ds_id")


def is_learning(module: nn.Module, input_ids: torch.Tensor, cache: Cache | None) -> bool:
    """
    Whether a call, `(B, L)`, is a step of training, in which every parameter is to get a gradient. Training mode alone
    does not say so: a model generates in it, too.
    """
    return module.training and torch.is_grad_enabled() and not (cache is not None and input_ids.shape[1] == 1)


def runs_every_module(model: PreTrainedModel, learning: bool, input_ids: torch.Tensor, cache: Cache | None) -> bool:
    """
    Whether a prompt of text alone, `(B, L)`, is to run what a [`FlashSlothModel`] has for images all the same: where it
    is learning, and where other ranks wait for that, as its parameters are gathered from all of them when it is called:
    under ZeRO-3, and under FSDP2 where a part of it is sharded apart from the model (such parameters are still split
    when the model's forward has begun).
    """
    if learning or input_ids.shape[1] == 1 or torch.compiler.is_compiling():
        return learning
    image_path = (model.vision_tower, model.multi_modal_projector, *model.embq_modules)
    parameters = (parameter for module in image_path for parameter in module.parameters())
    gathers = any(hasattr(parameter, mark) for parameter in parameters for mark in MARKS)
    return gathers and (cache is None or cache.get_seq_length() == 0)
