"""The rows that a recipe trains and evaluates on, read and checked as its flags say."""

import os
from itertools import islice
from math import ceil

from datasets import Dataset, IterableDataset, load_dataset, load_from_disk
from trl import SFTConfig

from ..checkpoints.opening import InputError
from ..model.configuration_flashsloth import FlashSlothConfig
from ..model.processing_flashsloth import FlashSlothProcessor
from .arguments import DataArguments
from .checking import report
from .data import read_image_folder, read_llava_json
from .dataset import check_images, measure, with_lengths
from .lengths import Ruler
from .row_files import TrainingDataError, read_shard, split_rows
from .rows import Fault
from .windows import for_longest_prompts, windows_of


def load_data(
    script: DataArguments,
    training: SFTConfig,
    processor: FlashSlothProcessor,
    config: FlashSlothConfig,
    chat_template: str | None = None,
) -> tuple[Dataset | IterableDataset, Dataset | IterableDataset | None]:
    """
    Loads the rows to train and to evaluate on. None is longer than `--max_length` and the decoder's context; with that
    checked, TRL is told to cut none.

    Raises:
        InputError or TrainingDataError: if there is nothing to train on, or to evaluate on although that is asked for;
            or for data that cannot be used.
    """
    context = config.text_config.max_position_embeddings
    if script.pooling_windows:
        processor = for_longest_prompts(processor, windows_of(script.pooling_windows, processor))
    ruler = Ruler(processor, min(training.max_length or context, context), chat_template)
    evaluate = training.eval_strategy != "no"
    if script.dataset_streaming and training.max_steps <= 0:
        raise InputError("a stream has no known end: say where to stop with --max_steps")
    if script.eval_answers and not evaluate:
        raise InputError("--eval_answers needs --eval_strategy, steps or epoch, which says when to ask")
    with training.main_process_first(desc="reading the data"):
        if script.dataset_name is None:
            train, evaluation = _read_file(script.llava_json or script.csv, script, training, ruler), None
            if evaluate and not script.eval_fraction and not script.eval_file:
                raise InputError(
                    "--eval_strategy needs rows to evaluate on: give --eval_fraction, or a file with --eval_answers"
                )
            if script.eval_fraction:
                if not evaluate or script.dataset_streaming or ceil(len(train) * script.eval_fraction) >= len(train):
                    raise InputError("--eval_fraction needs --eval_strategy, no stream, and rows enough to part")
                split = train.train_test_split(script.eval_fraction, seed=training.seed)
                train, evaluation = split["train"], split["test"]
        else:
            train = _load_split(script, script.dataset_train_split, training, ruler)
            from_dataset = evaluate and not script.eval_file
            evaluation = _load_split(script, script.dataset_test_split, training, ruler) if from_dataset else None
        if script.eval_file:
            evaluation = _read_file(script.eval_file, script, training, ruler)
    training.max_length = None
    if script.dataset_streaming:
        training.train_sampling_strategy = "random"  # rows come as they come
    if "messages" not in (train.column_names or ["messages"]):
        training.assistant_only_loss = False  # TRL trains on completions alone by itself
    return train, evaluation


def _read_file(path: str, script: DataArguments, training: SFTConfig, ruler: Ruler) -> Dataset | IterableDataset:
    options = {
        "on_error": script.on_error,
        "streaming": script.dataset_streaming and path != script.eval_file,
        "num_proc": training.dataset_num_proc,
        "check_images": script.check_images,
        "processor": ruler.processor,
        "max_length": ruler.max_length,
        "chat_template": ruler.chat_template,
    }
    if path == script.llava_json or (path != script.csv and _holds_conversations(path)):
        return read_llava_json(path, script.image_folder, **options)
    if not script.image_folder:
        raise InputError(f"{path!r} is a table of questions about images: name their folder with --image_folder")
    return read_image_folder(
        script.image_folder,
        path,
        image_column=script.image_column,
        question_column=script.question_column,
        answer_column=script.answer_column,
        **options,
    )


def _holds_conversations(path: str) -> bool:
    """Whether a file is LLaVA's, by its first row."""
    if path.lower().endswith(".csv"):
        return False
    (_, first), *_ = islice(read_shard(path, split_rows(path, 1)[0]), 1)
    return isinstance(first, dict) and "conversations" in first


def _load_split(script: DataArguments, split: str, training: SFTConfig, ruler: Ruler) -> Dataset | IterableDataset:
    name = script.dataset_name
    try:
        if any(os.path.isfile(os.path.join(name, file)) for file in ("state.json", "dataset_dict.json")):
            dataset = load_from_disk(name)
        else:
            dataset = load_dataset(name, name=script.dataset_config, streaming=script.dataset_streaming)
    except Exception as error:  # of the Hub, of files, of formats
        raise InputError(f"the dataset {name!r} cannot be loaded: {' '.join(str(error).split())}") from error
    if isinstance(dataset, dict):
        if split not in dataset:
            raise InputError(f"the dataset {name!r} has no split {split!r}, only {', '.join(map(repr, dataset))}")
        dataset = dataset[split]
    columns = dataset.column_names
    if columns is not None and "messages" not in columns and not {"prompt", "completion"} <= {*columns}:
        raise InputError(
            f"the dataset {name!r} has the columns {', '.join(map(repr, columns))}, but `messages`, or `prompt` and "
            "`completion`, are needed, and `images` or `image` beside them"
        )
    if isinstance(dataset, IterableDataset):
        return dataset
    if len(dataset) == 0:
        raise InputError(f"the split {split!r} of {name!r} has no rows")
    lengths, problems = measure(dataset, ruler, training.dataset_num_proc)
    if script.check_images:
        problems = check_images(dataset, training.dataset_num_proc) | problems
    source = f"{name}, split {split}"
    faults = [Fault(source, row, None, kind, problem) for row, (kind, problem) in sorted(problems.items())]
    if script.on_error == "skip" and 2 * len(faults) > len(dataset):
        raise TrainingDataError(f"{len(faults)} of {len(dataset)} rows are broken, such as: {faults[0]}")
    report(faults, len(dataset), script.on_error)
    dataset = with_lengths(dataset, lengths)
    return dataset.select([row for row in range(len(dataset)) if row not in problems]) if problems else dataset
