"""A plug-in of vLLM: plain `vllm serve` of a FlashSloth, with answers equal to those of transformers."""
