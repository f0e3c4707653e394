"""Options of commands that open a checkpoint."""

import argparse

DTYPES = ("float32", "bfloat16", "float16")


def loading_options() -> argparse.ArgumentParser:
    """A parent parser with `--hd`, `--device` and `--dtype`."""
    loading = argparse.ArgumentParser(add_help=False)
    loading.add_argument(
        "--hd", action="store_true", default=None, help="read images in high definition (default: as the model says)"
    )
    loading.add_argument("--device", help="such as cpu, cuda:1 or mps (default: an accelerator if there is one)")
    loading.add_argument(
        "--dtype",
        choices=DTYPES,
        help="number type of the weights (default: float32 on a CPU, the checkpoint's elsewhere)",
    )
    return loading


def positive(text: str) -> int:
    """A number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def not_negative(text: str) -> int:
    """A number of at least 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {number}")
    return number
