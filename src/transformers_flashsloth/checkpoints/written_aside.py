"""A directory that exists whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(destination: Path, num_bytes: int) -> Iterator[Path]:
    """
    Gives a directory to write to, which takes the name of `destination` when the block ends without an error. An
    error removes it; a killed process leaves `DESTINATION.partial`, which the next run removes.

    Args:
        destination (`Path`): must not exist.
        num_bytes (`int`): what will be written, to fail at once where there is no room.

    Raises:
        FileExistsError: if `destination` exists.
        OSError: if there is not enough space left.
    """
    check_is_new(destination)
    partial = destination.with_name(f"{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        free = shutil.disk_usage(partial).free
        if free < num_bytes:
            raise OSError(f"No space left for {destination}: {num_bytes:,} bytes are needed, {free:,} are free.")
        yield partial
        os.rename(partial, destination)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def check_is_new(destination: Path) -> None:
    """Raises FileExistsError if `destination` exists."""
    if destination.exists():
        raise FileExistsError(f"{destination} exists already: remove it or choose another place.")
