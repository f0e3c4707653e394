"""Whether ranks hold a part of the parameters each, and so wait for one another where a module runs."""

from torch import nn

# What a parameter has that is split: a tensor's placement by FSDP2 and tensor parallelism, DeepSpeed's name by ZeRO-3.
MARKS = ("placements", "ds_id")


def gathers_by_itself(*modules: nn.Module) -> bool:
    """
    Whether any of `modules` gathers its parameters from all ranks when it is called, so that all ranks must call it:
    under ZeRO-3, and under FSDP2 where a part of it is sharded apart from the model (such parameters are still split
    when the model's forward has begun).
    """
    parameters = (parameter for module in modules for parameter in module.parameters())
    return any(hasattr(parameter, mark) for parameter in parameters for mark in MARKS)
