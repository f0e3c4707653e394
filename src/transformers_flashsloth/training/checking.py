"""How rows are checked before they are handed over: their images, their lengths, and what is said of broken ones."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal

from transformers import ProcessorMixin
from transformers.utils import logging

from .lengths import Ruler, grouping_length
from .row_files import Shard, TrainingDataError, read_shard
from .rows import HINTS, Fault, Row, RowError, Source, has_role_header

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
    from .images import problem_of_image  # which needs `datasets`

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
