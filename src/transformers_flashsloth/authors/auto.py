"""
Lets the Auto classes load the authors' checkpoints, whose config.json says `model_type: "phi"`. In transformers phi is
a text model without a class for images and without a processor; these two stand there and lead to ours.
"""

from transformers import AutoTokenizer, PhiConfig

from ..model.foreign_formats import foreign_format_at
from ..model.modeling_flashsloth import FlashSlothForConditionalGeneration
from ..model.processing_flashsloth import FlashSlothProcessor


class AuthorsModel(FlashSlothForConditionalGeneration):
    """What `AutoModelForImageTextToText` finds for a phi config: loads [`FlashSlothForConditionalGeneration`]."""

    config_class = PhiConfig

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """
        The same as FlashSlothForConditionalGeneration.from_pretrained; `config`, which describes the decoder alone, is
        read anew.

        Raises:
            ValueError: if the checkpoint is a plain phi.
        """
        # The Auto class has moved this option into the config.
        if config is not None and config._attn_implementation is not None:
            kwargs.setdefault("attn_implementation", config._attn_implementation)
        return FlashSlothForConditionalGeneration.from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)


class AuthorsProcessor:
    """What `AutoProcessor` finds for a phi config: loads [`FlashSlothProcessor`], or a plain phi's tokenizer."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Loads the processor of a checkpoint in the authors' format, or what `AutoProcessor` loads for a phi."""
        if foreign_format_at(pretrained_model_name_or_path, **kwargs)[0] is None:
            return AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return FlashSlothProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
