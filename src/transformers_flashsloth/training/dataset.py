"""Rows to `datasets`: map-style, memory-mapped and checked before training, or a stream that checks as it goes."""

import os
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetInfo, Features, IterableDataset, List, Value
from datasets.fingerprint import Hasher

from .checking import FORMAT, ReaderOptions, checked_rows, example, report
from .images import NamedImage, problem_of_image, problems_of_images
from .lengths import Ruler, grouping_length
from .row_files import MIN_ROWS, Shard, TrainingDataError, read_shard
from .rows import Fault, RowError, Source

BATCH_ROWS = 1000
# Images in a column of texts that are no files; longer texts may be an image in base64.
ELSEWHERE = ("http://", "https://", "data:")
# What is wrong with a row; named for `datasets`, which could not tell the types from rows that are all sound.
PROBLEM = {"kind": Value("string"), "problem": Value("string")}


def build_stream(source: Source, shards: list[Shard], options: ReaderOptions) -> IterableDataset:
    """Reads, checks and reports shard by shard, wherever a worker does; nothing is known beforehand."""
    features = _features(source, with_length=options.processor is not None)
    arguments = {"shards": shards, "source": source, "options": options}
    return IterableDataset.from_generator(_stream, features=features, gen_kwargs=arguments)


def build_dataset(source: Source, shards: list[Shard], options: ReaderOptions) -> Dataset:
    """Reads all rows into Arrow files, which are kept for the next time, then checks images and lengths."""
    state = os.stat(source.path)
    dataset = Dataset.from_generator(
        _structured,
        features=Features(_features(source) | PROBLEM),
        gen_kwargs={
            "shards": shards,
            "source": source,
            "stop": options.on_error == "raise",
            "version": (FORMAT, state.st_mtime_ns, state.st_size),
        },
        num_proc=len(shards) if len(shards) > 1 else None,
    )
    num_rows = sum(shard.num_rows for shard in shards)
    faults = {row: Fault(source.path, *fault) for row, fault in _recorded_faults(dataset)}
    if not (faults and options.on_error == "raise"):
        for row, problem in _image_problems(dataset, options).items():
            faults[row] = Fault(source.path, *_number_and_id(dataset, row), "image", problem)
    kept = dataset.remove_columns(["kind", "problem"])
    kept = Dataset(kept.data, info=DatasetInfo(features=_features(source)))
    if options.ruler and not (faults and options.on_error == "raise"):
        lengths, problems = measure(kept, options.ruler, options.num_proc)
        for row, (kind, problem) in problems.items():
            faults.setdefault(row, Fault(source.path, *_number_and_id(dataset, row), kind, problem))
        kept = with_lengths(kept, lengths)
    report([faults[row] for row in sorted(faults)], num_rows, options.on_error)
    if len(faults) == len(kept):
        raise TrainingDataError(f"{source.path} has no row that can be used.")
    return kept.select([row for row in range(len(kept)) if row not in faults]) if faults else kept


def measure(
    dataset: Dataset, ruler: Ruler, num_proc: int | None = None
) -> tuple[list[int], dict[int, tuple[str, str]]]:
    """
    Counts the tokens of the rows of a dataset in a format of TRL's; no image is decoded. Other processes, and the next
    run, find the counts in the cache of `datasets`.

    Returns:
        The length of each row, 0 for a broken one, negative for one without images; and of broken rows the kind of
        fault and the problem.
    """
    processes = min(num_proc or 1, len(dataset) // MIN_ROWS)
    measured = dataset.with_format("arrow").map(
        _measure,
        batched=True,
        batch_size=BATCH_ROWS,
        fn_kwargs={"ruler": ruler},
        remove_columns=dataset.column_names,
        features=Features({"length": Value("int64")} | PROBLEM),
        num_proc=processes if processes > 1 else None,
        # As upstream would make it, but without hashing the whole processor, which takes seconds.
        new_fingerprint=Hasher.hash((FORMAT, dataset._fingerprint, ruler.identity)),
        desc="Counting tokens",
    )
    return measured.with_format("arrow")[:]["length"].to_pylist(), _problems(measured)


def check_images(dataset: Dataset, num_proc: int | None = None) -> dict[int, tuple[str, str]]:
    """
    Decodes the images of a dataset in a format of TRL's; the next run finds the result in the cache of `datasets`.

    Returns:
        Of rows with an image that cannot be decoded, the kind of fault and the problem.
    """
    columns = [name for name in ("images", "image") if name in dataset.column_names]
    if not columns:
        return {}
    processes = min(num_proc or 1, len(dataset) // MIN_ROWS)
    checked = dataset.select_columns(columns).with_format("arrow")
    checked = checked.map(
        _check_images,
        batched=True,
        batch_size=MIN_ROWS,
        remove_columns=columns,
        features=Features(PROBLEM),
        num_proc=processes if processes > 1 else None,
        desc="Decoding images",
    )
    return _problems(checked)


def with_lengths(dataset: Dataset, lengths: list[int]) -> Dataset:
    """Adds the columns `length` and `grouping_length`, replacing those of these names."""
    dataset = dataset.remove_columns([name for name in ("length", "grouping_length") if name in dataset.column_names])
    dataset = dataset.add_column("length", [abs(length) for length in lengths])
    return dataset.add_column("grouping_length", lengths)


def _features(source: Source, with_length: bool = False) -> Features:
    image = NamedImage()
    image.source = source
    content = List({"type": Value("string"), "text": Value("string")})
    features = Features(
        {
            "messages": List({"role": Value("string"), "content": content}),
            "images": List(image),
            "row": Value("int64"),
            "id": Value("string"),
        }
    )
    if with_length:
        features |= {"length": Value("int64"), "grouping_length": Value("int64")}
    return Features(features)


def _stream(shards: list[Shard], source: Source, options: ReaderOptions) -> Iterator[dict]:
    for shard in shards:
        faults = []
        for row, length in checked_rows(source, shard, options):
            if row.fault is None:
                yield example(row, length)
            elif options.on_error == "raise":
                report([row.fault], shard.num_rows, options.on_error)
            else:
                faults.append(row.fault)
        report(faults, shard.num_rows, options.on_error)


def _structured(shards: list[Shard], source: Source, stop: bool, version: tuple) -> Iterator[dict]:
    """Yields broken rows too, as columns cross processes and what is logged or raised does not."""
    for shard in shards:
        for number, item in read_shard(source.path, shard):
            row = source.row(number, item)
            kind, problem = (row.fault.kind, row.fault.problem) if row.fault else (None, None)
            yield example(row, None) | {"kind": kind, "problem": problem}
            if stop and row.fault:
                return


def _recorded_faults(dataset: Dataset) -> Iterator[tuple[int, tuple]]:
    problems = dataset.data["problem"]
    if problems.null_count < len(problems):
        for row in pc.indices_nonzero(pc.is_valid(problems)).to_pylist():
            kind = dataset.data["kind"][row].as_py()
            yield row, (*_number_and_id(dataset, row), kind, problems[row].as_py())


def _image_problems(dataset: Dataset, options: ReaderOptions) -> dict[int, str]:
    images = dataset.data["images"]
    rows = pc.list_parent_indices(images).to_pylist()
    paths = pc.struct_field(pc.list_flatten(images), "path").to_pylist()
    problems = problems_of_images(paths, options.check_images, options.num_proc)
    return {row: problems[path] for row, path in zip(rows, paths, strict=True) if path in problems} if problems else {}


def _number_and_id(dataset: Dataset, row: int) -> tuple[int, str | None]:
    return dataset.data["row"][row].as_py(), dataset.data["id"][row].as_py()


def _measure(table: pa.Table, ruler: Ruler) -> dict[str, list]:
    texts = table.select([name for name in ("messages", "prompt", "completion") if name in table.column_names])
    if "images" in table.column_names:
        num_images = pc.fill_null(pc.list_value_length(table["images"]), 0).to_pylist()
    else:
        num_images = [1 if "image" in table.column_names else 0] * len(table)
    columns = {"length": [], "kind": [], "problem": []}
    for row, count in zip(texts.to_pylist(), num_images, strict=True):
        kind = problem = None
        length = 0
        try:
            length = grouping_length(ruler.length(row, count), count)
        except RowError as error:
            kind, problem = error.kind, str(error)
        for name, value in zip(columns, (length, kind, problem), strict=True):
            columns[name].append(value)
    return columns


def _check_images(table: pa.Table) -> dict[str, list]:
    problems = [None] * len(table)
    for name in table.column_names:
        for row, images in enumerate(table[name].to_pylist()):
            for image in images if isinstance(images, list) else [images]:
                source = image.get("bytes") or image.get("path") if isinstance(image, dict) else image
                is_file = isinstance(source, str) and len(source) < 1000 and not source.startswith(ELSEWHERE)
                if problems[row] is None and (is_file or isinstance(source, bytes)):
                    problems[row] = problem_of_image(source, decode=True)
    return {"kind": ["image" if problem else None for problem in problems], "problem": problems}


def _problems(dataset: Dataset) -> dict[int, tuple[str, str]]:
    columns = dataset.with_format("arrow")[:]
    return {
        row: (columns["kind"][row].as_py(), columns["problem"][row].as_py())
        for row in pc.indices_nonzero(pc.is_valid(columns["problem"])).to_pylist()
    }
