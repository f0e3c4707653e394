"""What `from_pretrained` does beyond transformers: it checks the authors' checkpoints before it reads them."""

import os

import torch
from huggingface_hub import snapshot_download
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from .authors_checkpoint import hub_options, read_authors_config, to_authors_name
from .checkpoint_files import CheckpointFiles, check_shapes

CHECKPOINT_FILES = ["*.json", "*.safetensors"]
PICKLE_FILES = ["*.json", "*.bin"]


def check_before_loading(
    path: str | os.PathLike | None, model_class: type[PreTrainedModel], options: dict
) -> PreTrainedConfig | None:
    """
    Checks a checkpoint as far as that is possible without its weights in memory.

    Args:
        path (`str` or `os.PathLike`): directory or Hub id; the files of the authors' format are downloaded.
        model_class (`type[PreTrainedModel]`): what a whole checkpoint holds.
        options (`dict`): those of `from_pretrained`. `use_safetensors=False` says that pickles are trusted; without
            it, it is set to `True`.

    Returns:
        [`FlashSlothConfig`] of a checkpoint in the authors' format, `None` for any other.

    Raises:
        FileNotFoundError: if weights are missing.
        ValueError: if weights are damaged, contradict each other or do not fit config.json, or are pickles.
    """
    if path is None or options.get("gguf_file"):
        return None
    if options.get("weights_only") is False:
        raise ValueError("`weights_only=False` would run code from the checkpoint: FlashSloth loads weights only.")
    trust_pickles = options.get("use_safetensors") is False
    options["use_safetensors"] = not trust_pickles

    is_authors = read_authors_config(path, **options) is not None
    if os.path.isdir(path):
        directory = os.path.join(path, options.get("subfolder") or "")
        if is_authors or _has_only_pickles(directory):
            files = CheckpointFiles(directory, trust_pickles)
    elif is_authors:
        files = CheckpointFiles(_download(path, options, trust_pickles), trust_pickles)
    if not is_authors:
        return None
    config = model_class.config_class.from_pretrained(path, **hub_options(options))
    shapes = {to_authors_name(name): shape for name, shape in model_shapes(model_class, config).items()}
    check_shapes({name: tensor.shape for name, tensor in files.tensors.items()}, shapes, path)
    return config


def end_at_answers(generation_config: GenerationConfig, config: PreTrainedConfig) -> None:
    """Mends what the authors' generation_config.json says: it ends at a token that answers do not end with."""
    generation_config.eos_token_id = config.text_config.eos_token_id
    generation_config.pad_token_id = config.text_config.pad_token_id


def model_shapes(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that a model saves."""
    with torch.device("meta"):
        model = model_class(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _has_only_pickles(directory: str) -> bool:
    endings = {os.path.splitext(name)[1] for name in os.listdir(directory)} if os.path.isdir(directory) else set()
    return ".bin" in endings and ".safetensors" not in endings


def _download(repo_id: str, options: dict, trust_pickles: bool) -> str:
    """Fetches a checkpoint from the Hub into the cache, where `from_pretrained` finds it; returns its directory."""
    options = hub_options(options)
    subfolder = options.pop("subfolder", None) or ""
    options.pop("proxies", None)
    patterns = [os.path.join(subfolder, name) for name in CHECKPOINT_FILES + (PICKLE_FILES if trust_pickles else [])]
    return os.path.join(snapshot_download(repo_id, allow_patterns=patterns, **options), subfolder)
