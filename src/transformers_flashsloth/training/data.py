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
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Literal

from transformers import ProcessorMixin
from transformers.utils import logging

from .lengths import Ruler, grouping_length
from .row_files import MIN_ROWS, Shard, TrainingDataError, csv_columns, read_shard, split_rows
from .rows import HINTS, IMAGE_COLUMNS, Fault, Row, RowError, Source, has_role_header

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.get_logger(__name__)

SAMPLE_ROWS = 100
STREAM_SHARDS = 64
# Rows that were read by another version of this code are read again.
FORMAT = 1


@dataclass(frozen=True)
class ReaderOptions:
    """
    How rows are checked and handed over.

    Args:
        on_error (`"raise"` or `"skip"`): whether the first broken row ends the reading, or broken rows are left out.
        streaming (`bool`): whether to return an `IterableDataset`, which reads while training runs.
        num_proc (`int`, *optional*): processes that read rows and count lengths, each at least 100 rows.
        num_shards (`int`): parts of a stream; workers times ranks should divide it.
        check_images (`bool`): whether to decode every image, JPEGs in an eighth of their size, and not only to look
            for its file. What fails later, while training runs, is named by its row in any case.
        processor ([`FlashSlothProcessor`], *optional*): counts lengths and tries the chat template on every row.
        max_length (`int`, *optional*): the longest row in tokens; needs the processor, and is checked only then.
        chat_template (`str`, *optional*): the template rows will be written with, if not the processor's.
    """

    on_error: Literal["raise", "skip"] = "raise"
    streaming: bool = False
    num_proc: int | None = None
    num_shards: int = STREAM_SHARDS
    check_images: bool = False
    processor: ProcessorMixin | None = None
    max_length: int | None = None
    chat_template: str | None = None

    def __post_init__(self):
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"`on_error` must be 'raise' or 'skip', got {self.on_error!r}.")
        if self.max_length is not None and self.processor is None:
            raise ValueError("`max_length` counts tokens, which needs the `processor`.")

    @property
    def ruler(self) -> Ruler | None:
        """What measures a row, if there is a processor."""
        if self.processor is None:
            return None
        return Ruler(self.processor, self.max_length or 1 << 62, self.chat_template)


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


def check_first_rows(source: Source, shards: list[Shard], options: ReaderOptions) -> None:
    """Raises TrainingDataError if more than half of the first rows are broken in the same way, or all are broken."""
    all_rows = chain.from_iterable(checked_rows(source, shard, options) for shard in shards)
    rows = list(islice(all_rows, SAMPLE_ROWS))
    faults = [row.fault for row, _ in rows if row.fault]
    for kind, count in Counter(fault.kind for fault in faults).most_common(1):
        if 2 * count > len(rows) > 1:
            first = next(fault for fault in faults if fault.kind == kind)
            raise TrainingDataError(
                f"{count} of the first {len(rows)} rows are broken in the same way, such as: {first} "
                f"{HINTS.get(kind, '')}".rstrip()
            )
    headers = [row for row, _ in rows if has_role_header(row.messages)]
    if 2 * len(headers) > len(rows) > 1:
        raise TrainingDataError(
            f"{len(headers)} of the first {len(rows)} rows of {source.path}, such as row {headers[0].number}, hold "
            f"role headers such as 'ASSISTANT:'. {HINTS['headers']}"
        )


def checked_rows(source: Source, shard: Shard, options: ReaderOptions) -> Iterator[tuple[Row, int | None]]:
    """Yields the rows of a shard, their images and lengths checked, and the lengths if there is a processor."""
    from .images import problem_of_image

    ruler = options.ruler
    for number, item in read_shard(source.path, shard):
        row, length = source.row(number, item), None
        problems = (problem_of_image(path, options.check_images) for path in row.images)
        if problem := next(filter(None, problems), None):
            row = with_fault(source, row, "image", problem)
        elif ruler is not None and row.fault is None:
            try:
                length = ruler.length({"messages": row.messages}, len(row.images))
            except RowError as error:
                row = with_fault(source, row, error.kind, str(error))
        yield row, length


def with_fault(source: Source, row: Row, kind: str, problem: str) -> Row:
    """The row as a broken one."""
    return row._replace(fault=Fault(source.path, row.number, row.id, kind, problem))


def example(row: Row, length: int | None) -> dict:
    """A row in TRL's vision format."""
    images = [{"path": path, "bytes": None} for path in row.images]
    columns = {"messages": row.messages, "images": images, "row": row.number, "id": row.id}
    if length is not None:
        columns |= {"length": length, "grouping_length": grouping_length(length, len(images))}
    return columns


def report(faults: list[Fault], num_rows: int, on_error: str) -> None:
    """Names broken rows and counts them, or raises TrainingDataError for the first."""
    if faults and on_error == "raise":
        raise TrainingDataError(f'{faults[0]} To leave broken rows out: `on_error="skip"`, `--on_error skip`.')
    for fault in faults:
        logger.warning("Left out: %s", fault)
    if faults:
        logger.warning("%d of %d rows of %s were left out.", len(faults), num_rows, faults[0].file)
