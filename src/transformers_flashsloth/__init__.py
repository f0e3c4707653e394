"""FlashSloth (CVPR 2025) for transformers. Importing this package registers its classes with the Auto classes."""

import re

import transformers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    PhiConfig,
)
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.models.auto.video_processing_auto import AutoVideoProcessor  # `transformers` has it with torchvision

from .answering.answers import answer_all
from .answering.features import FeatureStore
from .authors.auto import AuthorsModel, AuthorsProcessor
from .authors.format import ARCHITECTURE, AUTHORS_TO_OURS
from .authors.loading import AuthorsFormat
from .building.acceptance import Acceptance
from .building.backbones import from_backbones
from .checkpoints.opening import DEFAULT_CHECKPOINT, EXAMPLES
from .model.adapters_flashsloth import COMPRESSOR_MODULES, DECODER_LINEARS, OUTSIDE_THE_DECODER
from .model.configuration_flashsloth import FlashSlothConfig
from .model.decoders import ACCEPTANCE
from .model.foreign_formats import FOREIGN_FORMATS
from .model.image_processing_flashsloth import FlashSlothImageProcessor, FlashSlothImageProcessorTorchvision
from .model.modeling_flashsloth import FlashSlothForConditionalGeneration, FlashSlothModel
from .model.pretrained_flashsloth import FlashSlothPreTrainedModel
from .model.processing_flashsloth import FlashSlothProcessor
from .model.video_processing_flashsloth import FlashSlothVideoProcessor

AutoConfig.register("flashsloth", FlashSlothConfig, exist_ok=True)
AutoModel.register(FlashSlothConfig, FlashSlothModel, exist_ok=True)
AutoModelForImageTextToText.register(FlashSlothConfig, FlashSlothForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(FlashSlothConfig, FlashSlothForConditionalGeneration, exist_ok=True)
AutoImageProcessor.register(
    FlashSlothConfig,
    image_processor_classes={"pil": FlashSlothImageProcessor, "torchvision": FlashSlothImageProcessorTorchvision},
    exist_ok=True,
)
AutoVideoProcessor.register(FlashSlothConfig, FlashSlothVideoProcessor, exist_ok=True)
AutoProcessor.register(FlashSlothConfig, FlashSlothProcessor, exist_ok=True)

# Saved checkpoints carry the code, for processes without this package.
FlashSlothConfig.register_for_auto_class()
FlashSlothModel.register_for_auto_class("AutoModel")
FlashSlothForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
FlashSlothImageProcessor.register_for_auto_class()
FlashSlothImageProcessorTorchvision.register_for_auto_class()
FlashSlothVideoProcessor.register_for_auto_class()
FlashSlothProcessor.register_for_auto_class()

# PEFT saves DoRA's magnitudes under another name than the module's, and transformers 5.23 would not find them.
DORA_SAVED_TO_LOADED = (r"(lora_magnitude_vector\.[^.]+)$", r"\1.weight")

# Checkpoints in the authors' format: their names, and a config.json of the type "phi". And adapters saved by PEFT.
register_checkpoint_conversion_mapping(
    "flashsloth",
    [WeightRenaming(f"^{re.escape(authors)}", ours) for authors, ours in AUTHORS_TO_OURS.items()]
    + [WeightRenaming(*DORA_SAVED_TO_LOADED)],
    overwrite=True,
)
ACCEPTANCE[:] = [Acceptance()]
FOREIGN_FORMATS[:] = [AuthorsFormat()]
AutoModelForImageTextToText.register(PhiConfig, AuthorsModel, exist_ok=True)
AutoModelForMultimodalLM.register(PhiConfig, AuthorsModel, exist_ok=True)
AutoProcessor.register(PhiConfig, AuthorsProcessor, exist_ok=True)

# TRL and pipelines look in `transformers` for the class that config.json names under `architectures`: ours, and theirs.
for _architecture in (FlashSlothForConditionalGeneration.__name__, ARCHITECTURE):
    setattr(transformers, _architecture, FlashSlothForConditionalGeneration)

__version__ = "0.2.0"

__all__ = [
    "COMPRESSOR_MODULES",
    "DECODER_LINEARS",
    "DEFAULT_CHECKPOINT",
    "EXAMPLES",
    "OUTSIDE_THE_DECODER",
    "FeatureStore",
    "FlashSlothConfig",
    "FlashSlothForConditionalGeneration",
    "FlashSlothImageProcessor",
    "FlashSlothImageProcessorTorchvision",
    "FlashSlothModel",
    "FlashSlothPreTrainedModel",
    "FlashSlothProcessor",
    "FlashSlothVideoProcessor",
    "answer_all",
    "from_backbones",
]
