"""LoRA on CPUs: requests without an adapter stay without one."""

import functools

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

MARK = "flashsloth_rows_kept"
# Methods that add an adapter to `y`, and where each keeps the adapter of a row; -1 means none.
INDICES = {
    "add_lora_linear": "token_lora_indices",
    "add_lora_embedding": "token_lora_indices",
    "add_lora_logits": "sampler_indices",
}


def keep_rows_without_adapters() -> None:
    """
    Mends vLLM's LoRA for CPUs (0.32), whose PyTorch kernels take the index -1 of a request without an adapter for the
    last slot's, so that such a request gets another's adapter wherever all `max_loras` slots are taken. On GPUs the
    kernels skip these rows themselves.
    """
    if getattr(PunicaWrapperCPU, MARK, False):
        return
    for name, indices in INDICES.items():
        setattr(PunicaWrapperCPU, name, _keeping(getattr(PunicaWrapperCPU, name), indices))
    setattr(PunicaWrapperCPU, MARK, True)


def _keeping(add, indices: str):
    @functools.wraps(add)
    def kept(self, y: torch.Tensor, *args, **kwargs) -> None:
        before = y.clone()
        add(self, y, *args, **kwargs)
        rows = y.view(-1, y.shape[-1])
        without = (getattr(self, indices) < 0)[: len(rows), None]
        rows[: len(without)] = torch.where(without, before.view_as(rows)[: len(without)], rows[: len(without)])

    return kept
