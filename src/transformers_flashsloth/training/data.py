"""
Readers of training data: LLaVA's JSON, or images with a table, to `datasets` in TRL's vision format.

    messages  the conversation, images as {"type": "image"} parts at the front of their turn
    images    its images, files that are decoded when a row is read
    row, id   the number of the row in its file, counted from 0, and its id if it has one
    length, grouping_length   with a processor: tokens of the row; the same, negative for rows without images

Broken rows are named one by one, and left out or, with `on_error="raise"`, stop the reading. What breaks most of the
first rows in the same way stops it in any case.
"""

import os
from itertools import chain, islice
from typing import TYPE_CHECKING

from .checking import SAMPLE_ROWS, ReaderOptions, check_first_rows
from .row_files import MIN_ROWS, TrainingDataError, csv_columns, read_shard, split_rows
from .rows import IMAGE_COLUMNS, Source

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


def read_llava_json(path: str, image_folder: str | None = None, **options) -> "Dataset | IterableDataset":
    """
    Reads LLaVA's format, a .json list or a .jsonl file of
    `{"id", "image"?, "conversations": [{"from": "human" | "gpt", "value"}, ...]}`; `image` may be a list.

    Args:
        path (`str`): the file.
        image_folder (`str`, *optional*): what its images are relative to; by default the file's folder.
        options: see [`ReaderOptions`].

    Returns:
        `datasets.Dataset` or, with `streaming=True`, `datasets.IterableDataset`; columns as at the head of this file.

    Raises:
        TrainingDataError: for a broken row under `on_error="raise"`; and if the file or the folder is missing, the file
            cannot be read, no row is left, or more than half of its first 100 rows are broken in the same way.
        ImportError: without `datasets` and TRL.
    """
    folder = str(image_folder) if image_folder is not None else os.path.dirname(path)
    return _read(Source(str(path), os.path.abspath(folder)), ReaderOptions(**options))


def read_image_folder(
    image_folder: str,
    table: str,
    *,
    image_column: str | None = None,
    question_column: str = "question",
    answer_column: str = "answer",
    **options,
) -> "Dataset | IterableDataset":
    """
    Reads questions and answers about the images of a folder from a .csv, .jsonl or .json table, one a row; an image may
    stand in several rows.

    Args:
        image_folder (`str`): what the table's images are relative to.
        table (`str`): the file.
        image_column (`str`, *optional*): by default `image` or `file_name`, whichever the table has.
        question_column, answer_column (`str`): the other columns.
        options: see [`ReaderOptions`].

    Returns and raises: as [`read_llava_json`]; also TrainingDataError if a CSV file lacks a column.
    """
    if str(table).lower().endswith(".csv"):
        split_rows(table, 1)  # says if it is no file of rows
        columns = csv_columns(table)
    else:
        rows = islice(read_shard(table, split_rows(table, 1)[0]), SAMPLE_ROWS)
        columns = list(dict.fromkeys(chain.from_iterable(row for _, row in rows if isinstance(row, dict))))
    image = image_column or next((name for name in IMAGE_COLUMNS if name in columns), IMAGE_COLUMNS[0])
    missing = [name for name in (image, question_column, answer_column) if name not in columns]
    if missing and columns:
        raise TrainingDataError(
            f"{table} has no column {' and none '.join(map(repr, missing))}; it has {', '.join(map(repr, columns))}. "
            "Name its columns of images, questions and answers (`image_column`, `question_column`, `answer_column`)."
        )
    source = Source(str(table), os.path.abspath(image_folder), (image, question_column, answer_column))
    return _read(source, ReaderOptions(**options))


def _read(source: Source, options: ReaderOptions) -> "Dataset | IterableDataset":
    try:
        from .dataset import build_dataset, build_stream
    except ImportError as error:
        raise ImportError('Reading training data needs more packages: "transformers-flashsloth[train]".') from error

    if not os.path.isdir(source.image_folder):
        raise TrainingDataError(f"There is no image folder {source.image_folder!r}.")
    if options.streaming:
        shards = split_rows(source.path, options.num_shards)
    else:
        shards = split_rows(source.path, options.num_proc or 1, min_rows=MIN_ROWS)
    check_first_rows(source, shards, options)
    return (build_stream if options.streaming else build_dataset)(source, shards, options)
