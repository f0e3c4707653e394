"""FlashSloth (CVPR 2025) for transformers. Importing this package registers its classes with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
)

from .configuration_flashsloth import FlashSlothConfig
from .modeling_flashsloth import FlashSlothForConditionalGeneration, FlashSlothModel, FlashSlothPreTrainedModel

AutoConfig.register("flashsloth", FlashSlothConfig, exist_ok=True)
AutoModel.register(FlashSlothConfig, FlashSlothModel, exist_ok=True)
AutoModelForImageTextToText.register(FlashSlothConfig, FlashSlothForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(FlashSlothConfig, FlashSlothForConditionalGeneration, exist_ok=True)

__version__ = "0.1.0"

__all__ = [
    "FlashSlothConfig",
    "FlashSlothForConditionalGeneration",
    "FlashSlothModel",
    "FlashSlothPreTrainedModel",
]
