"""Rows of a JSON, JSONL or CSV file, found by their byte, so that workers can share a file and none holds it all."""

import csv
import json
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE, getincrementaldecoder
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

CHUNK_BYTES = 1 << 20
# Fewer rows are not worth a process.
MIN_ROWS = 100
# What may stand between two items of a list, and before the list.
GAP = re.compile(r"[\s,\ufeff]*")


class TrainingDataError(ValueError):
    """Training data that cannot be used; the message names the file and the row, and says what is wrong."""


class BadRow(NamedTuple):
    """A row that could not be read; stands in its place."""

    problem: str


class Shard(NamedTuple):
    """Consecutive rows of a file: the number of the first, counted from 0, where it begins, and how many."""

    first_row: int
    start_byte: int
    num_rows: int


def split_rows(path: str, num_shards: int, min_rows: int = 1) -> list[Shard]:
    """
    Cuts a file into shards of as many rows each, give or take one; into fewer, if they would have less than `min_rows`.

    Raises:
        TrainingDataError: if there is no such file, its ending is none of .json, .jsonl and .csv, it holds no row, or a
            .json file is not a list of rows.
    """
    path = Path(path)
    if not path.is_file():
        raise TrainingDataError(f"There is no file {str(path)!r}.")
    try:
        starts = [start for start, _ in _read(path, 0)]
    except UnicodeDecodeError as error:
        raise TrainingDataError(f"{path} is not encoded in UTF-8: {error}.") from error
    if not starts:
        raise TrainingDataError(f"{path} has no rows.")
    num_shards = max(1, min(num_shards, len(starts) // min_rows))
    cuts = [len(starts) * i // num_shards for i in range(num_shards + 1)]
    return [Shard(a, starts[a], b - a) for a, b in pairwise(cuts)]


def read_shard(path: str, shard: Shard) -> Iterator[tuple[int, dict | BadRow]]:
    """Yields the number and the content of each row of a shard; a CSV row's values are strings."""
    rows = islice(_read(Path(path), shard.start_byte), shard.num_rows)
    for number, (_, row) in enumerate(rows, start=shard.first_row):
        yield number, row


def csv_columns(path: str) -> list[str]:
    """The first line of a CSV file that is not blank. Raises TrainingDataError if it is none."""
    with open(path, "rb") as file:
        try:
            return next(filter(None, csv.reader(_lines(file, [0]))), [])
        except csv.Error as error:  # such as a file whose lines end in a carriage return alone
            raise TrainingDataError(
                f"{path} does not begin with a line of column names ({str(error).partition(' - ')[0]}): save it as CSV "
                "in UTF-8, with commas and the line ends of Windows or Unix."
            ) from error


def _read(path: Path, start_byte: int) -> Iterator[tuple[int, object]]:
    """Yields each row and the byte it begins at; `start_byte` is 0 or one that a row begins at."""
    readers = {".json": _read_json, ".jsonl": _read_jsonl, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise TrainingDataError(f"{path} must be a {', '.join(readers)} file.")
    with open(path, "rb") as file:
        if file.read(2) in (BOM_UTF16_BE, BOM_UTF16_LE):
            raise TrainingDataError(f"{path} is not encoded in UTF-8 but in UTF-16: save it in UTF-8.")
        yield from readers[path.suffix.lower()](path, file, start_byte)


def _read_jsonl(path: Path, file: BinaryIO, start_byte: int) -> Iterator[tuple[int, object]]:
    file.seek(start_byte)
    for line in file:
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                row = BadRow(f"the line is not valid JSON ({error})")
            yield start_byte, row
        start_byte += len(line)


def _read_json(path: Path, file: BinaryIO, start_byte: int) -> Iterator[tuple[int, object]]:
    """Reads a list, an item at a time, holding no more than a chunk and an item."""
    file.seek(start_byte)
    decoder, decode_item = getincrementaldecoder("utf-8")(), json.JSONDecoder().raw_decode
    # `text` is what was read and not yet passed; `byte` is where its position 0, then `position`, lies in the file.
    text, position, byte = "", 0, start_byte

    def more() -> bool:
        nonlocal text, position
        data = file.read(max(CHUNK_BYTES, len(text)))
        text, position = text[position:] + decoder.decode(data, final=not data), 0
        return bool(data)

    def skip_to(end: int) -> None:
        nonlocal position, byte
        byte += len(text[position:end].encode())
        position = end

    def skip_gap() -> None:
        while True:
            skip_to(GAP.match(text, position).end())
            if position < len(text) or not more():
                return

    skip_gap()
    if start_byte == 0:
        if text[position : position + 1] != "[":
            raise TrainingDataError(f"{path} must hold a list of rows. One object a line is a .jsonl file.")
        skip_to(position + 1)
    while True:
        skip_gap()
        if text[position : position + 1] == "]":
            return
        try:
            item, end = decode_item(text, position)
        except json.JSONDecodeError as error:
            at = byte + len(text[position : error.pos].encode())
            if more():
                continue
            raise TrainingDataError(f"{path} is not valid JSON: {error.msg} at byte {at}.") from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
            raise TrainingDataError(f"{path} cannot be read from byte {byte} on: {error}.") from error
        if end == len(text) and more():
            continue  # a number may go on
        yield byte, item
        skip_to(end)


def _read_csv(path: Path, file: BinaryIO, start_byte: int) -> Iterator[tuple[int, object]]:
    columns = csv_columns(str(path))
    begin = [start_byte]
    file.seek(start_byte)
    reader = csv.reader(_lines(file, begin), strict=True)
    if not start_byte:
        next(filter(None, reader), None)
    while True:
        row_start = begin[0]
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield row_start, BadRow(f"the line is not valid CSV ({error})")
            # A quote that nothing closes would take the rows behind it along: the next line begins a row.
            file.seek(row_start)
            begin[0] = row_start + len(file.readline())
            reader = csv.reader(_lines(file, begin), strict=True)
            continue
        if len(values) == len(columns):
            yield row_start, dict(zip(columns, values, strict=True))
        elif values:
            yield row_start, BadRow(f"it has {len(values)} values where the first line names {len(columns)} columns")


def _lines(file: BinaryIO, begin: list[int]) -> Iterator[str]:
    """Decoded lines; `begin[0]` counts the bytes read."""
    for line in file:
        begin[0] += len(line)
        yield line.decode("utf-8-sig")
