"""
Formats of checkpoints that are not this package's. Whoever knows one enters it in `FOREIGN_FORMATS`, and the classes of
this folder then load it; in remote code the list is empty.
"""

import os
from typing import Protocol

from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from transformers import PreTrainedConfig, PreTrainedModel

# The options of `from_pretrained` that say where files are found.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class ForeignFormat(Protocol):
    """What a format has to say of itself. Names of tensors are translated by transformers' own conversion mapping."""

    def recognises(self, entries: dict) -> bool:
        """Whether the entries of a config.json are in this format."""

    def config(self, entries: dict) -> dict:
        """These entries as those of [`FlashSlothConfig`]. Raises ValueError for a model that cannot be built."""

    def check(self, path: str | os.PathLike, trust_pickles: bool, options: dict) -> None:
        """Raises ValueError or OSError unless the weights at `path` are whole, sound and those of its config."""

    def processor_parts(self, path: str | os.PathLike, entries: dict, **options) -> dict:
        """The arguments of [`FlashSlothProcessor`] for the checkpoint at `path`."""

    def finish(self, model: PreTrainedModel) -> None:
        """Mends, after loading, what the checkpoint says of generation."""


FOREIGN_FORMATS: list[ForeignFormat] = []


def format_of(entries: dict) -> ForeignFormat | None:
    """The foreign format that the entries of a config.json are in; `None` for this package's own."""
    return next((known for known in FOREIGN_FORMATS if known.recognises(entries)), None)


def foreign_format_at(path: str | os.PathLike, **options) -> tuple[ForeignFormat | None, dict]:
    """
    Reads the config.json of a checkpoint.

    Args:
        path (`str` or `os.PathLike`): directory or Hub id.
        options: those of `from_pretrained` that say where to find it (`revision`, `token` and the like); others are
            ignored.

    Returns:
        the foreign format that the checkpoint is in and the entries of its config.json; `None` and no entries where
        there is no config.json or it is in this package's format.

    Raises:
        OSError: if there is no such repository or revision, or not for this user.
    """
    try:
        entries, _ = PreTrainedConfig.get_config_dict(path, **hub_options(options))
    except OSError as error:
        if isinstance(error.__cause__, (RepositoryNotFoundError, RevisionNotFoundError)):
            raise  # there is nothing at all, or nothing for this user
        return None, {}
    known = format_of(entries)
    return known, entries if known else {}


def hub_options(options: dict) -> dict:
    """The options of `from_pretrained` that say where files are found."""
    return {name: value for name, value in options.items() if name in HUB_OPTIONS}
