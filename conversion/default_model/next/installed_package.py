"""For processes that have not imported the package, such as those of `trl sft`: `trust_remote_code=True` imports it."""

from transformers_flashsloth import FlashSlothConfig, FlashSlothProcessor

__all__ = ["FlashSlothConfig", "FlashSlothProcessor"]
