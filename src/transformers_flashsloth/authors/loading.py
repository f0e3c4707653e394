"""Loads the authors' checkpoints through `from_pretrained`: how the format is known, checked and mended."""

import os

import torch
from huggingface_hub import snapshot_download
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from ..checkpoints.weights import CheckpointFiles, check_shapes
from ..model.configuration_flashsloth import FlashSlothConfig
from ..model.foreign_formats import hub_options
from ..model.modeling_flashsloth import FlashSlothForConditionalGeneration
from .format import config_from_authors, is_authors_config, to_authors_name
from .processor import authors_processor_parts

CHECKPOINT_FILES = ["*.json", "*.safetensors"]
PICKLE_FILES = ["*.bin"]


class AuthorsFormat:
    """
    The authors' format as [`FlashSlothForConditionalGeneration.from_pretrained`] and its like ask for it. Any other
    format (see `model/foreign_formats.py`) has the same methods.
    """

    def recognises(self, entries: dict) -> bool:
        """Whether the entries of a config.json are in this format."""
        return is_authors_config(entries)

    def config(self, entries: dict) -> dict:
        """These entries as those of [`FlashSlothConfig`]. Raises ValueError for a model that cannot be built."""
        return config_from_authors(entries)

    def check(self, path: str | os.PathLike, trust_pickles: bool, options: dict) -> None:
        """
        Raises ValueError or OSError unless the weights at `path` are whole, sound and those of its config. Files of a
        repository are downloaded, to where `from_pretrained` finds them.
        """
        if os.path.isdir(path):
            directory = os.path.join(path, options.get("subfolder") or "")
        else:
            directory = _download(path, options, trust_pickles)
        files = CheckpointFiles(directory, trust_pickles)
        config = FlashSlothConfig.from_pretrained(path, **hub_options(options))
        shapes = {to_authors_name(name): shape for name, shape in model_shapes(config).items()}
        check_shapes({name: tensor.shape for name, tensor in files.tensors.items()}, shapes, path)

    def processor_parts(self, path: str | os.PathLike, entries: dict, **options) -> dict:
        """The arguments of [`FlashSlothProcessor`] for the checkpoint at `path`."""
        return authors_processor_parts(path, entries, **options)

    def finish(self, model: PreTrainedModel) -> None:
        """Mends, after loading, what the checkpoint says of generation."""
        end_at_answers(model.generation_config, model.config)


def end_at_answers(generation_config: GenerationConfig, config: PreTrainedConfig) -> None:
    """Mends what the authors' generation_config.json says: it ends at a token that answers do not end with."""
    generation_config.eos_token_id = config.text_config.eos_token_id
    generation_config.pad_token_id = config.text_config.pad_token_id


def model_shapes(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that a whole checkpoint of a config holds, under our names."""
    with torch.device("meta"):
        model = FlashSlothForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _download(repo_id: str, options: dict, trust_pickles: bool) -> str:
    options = hub_options(options)
    subfolder = options.pop("subfolder", None) or ""
    options.pop("proxies", None)
    patterns = [os.path.join(subfolder, name) for name in CHECKPOINT_FILES + (PICKLE_FILES if trust_pickles else [])]
    return os.path.join(snapshot_download(repo_id, allow_patterns=patterns, **options), subfolder)
