"""Prompts of text alone where others wait for the modules that only images need: in training, and on many ranks."""

import torch
from torch import nn
from transformers.cache_utils import Cache

# What a parameter has that is split: a tensor's placement by FSDP2 and tensor parallelism, DeepSpeed's name by ZeRO-3.
MARKS = ("placements", "ds_id")


def runs_every_module(modules: list[nn.Module], training: bool, input_ids: torch.Tensor, cache: Cache | None) -> bool:
    """
    Whether a prompt of text alone, `(B, L)`, is to run `modules` all the same: in training, where every parameter is
    to get a gradient, and where other ranks wait for that.
    """
    if training or input_ids.shape[1] == 1 or torch.compiler.is_compiling():
        return training
    return gathers_by_itself(*modules) and (cache is None or cache.get_seq_length() == 0)


def gathers_by_itself(*modules: nn.Module) -> bool:
    """
    Whether any of `modules` gathers its parameters from all ranks when it is called, so that all ranks must call it:
    under ZeRO-3, and under FSDP2 where a part of it is sharded apart from the model (such parameters are still split
    when the model's forward has begun).
    """
    parameters = (parameter for module in modules for parameter in module.parameters())
    return any(hasattr(parameter, mark) for parameter in parameters for mark in MARKS)
