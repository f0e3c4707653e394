"""
Formats of checkpoints that are not this package's. Whoever knows one enters it in `FOREIGN_FORMATS`, and the classes of
this folder then load it; in remote code the list is empty.
"""

import os
from typing import Any

from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from transformers import PreTrainedConfig

# The options of `from_pretrained` that say where files are found.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# Objects like `authors/loading.py`'s: `recognises`, `config`, `check`, `processor_parts` and `finish` are all that is
# asked of a format. Names of tensors are translated by transformers' own conversion mapping.
FOREIGN_FORMATS: list = []


def format_of(entries: dict) -> Any | None:
    """The foreign format that the entries of a config.json are in; `None` for this package's own."""
    return next((known for known in FOREIGN_FORMATS if known.recognises(entries)), None)


def foreign_format_at(path: str | os.PathLike, **options) -> tuple[Any | None, dict]:
    """
    Reads the config.json of the checkpoint at `path`, a directory or Hub id. Of `options`, those of `from_pretrained`,
    only what says where files are found matters. Returns the foreign format that the checkpoint is in and the entries;
    `None` and no entries where there is no config.json or it is in this package's format.

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
