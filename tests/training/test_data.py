"""Readers of training data: the rows they give, and every broken one by name, before training where that can be."""

import json
import sys

import numpy as np
import pytest
import torch

datasets = pytest.importorskip("datasets")
trl = pytest.importorskip("trl")

from datasets.distributed import split_dataset_by_node  # noqa: E402
from PIL import ExifTags, Image  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling  # noqa: E402

from tests.training.training_files import llava_rows, write_images, write_rows  # noqa: E402
from transformers_flashsloth import FlashSlothProcessor  # noqa: E402
from transformers_flashsloth.training import checking  # noqa: E402
from transformers_flashsloth.training import dataset as training_dataset  # noqa: E402
from transformers_flashsloth.training.data import read_image_folder, read_llava_json  # noqa: E402
from transformers_flashsloth.training.lengths import Ruler  # noqa: E402
from transformers_flashsloth.training.row_files import TrainingDataError  # noqa: E402
from transformers_flashsloth.training.rows import RowError  # noqa: E402


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    seen = []
    monkeypatch.setattr(checking.logger, "warning", lambda message, *values: seen.append(message % values))
    return seen


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images", 20)


@pytest.fixture(scope="module")
def processor(tiny_checkpoint) -> FlashSlothProcessor:
    return FlashSlothProcessor.from_pretrained(tiny_checkpoint)


def without_images(dataset) -> list[dict]:
    return list(dataset.remove_columns("images"))


def break_rows(rows: list[dict], images) -> dict[int, str]:
    """Breaks one row in a hundred, each in another way; returns what is wrong by row."""
    (images / "text.png").write_text("no image")
    # A photograph whose second half is missing: its header is sound.
    Image.effect_noise((64, 64), 50).convert("RGB").save(images / "cut.jpg")
    (images / "cut.jpg").write_bytes((images / "cut.jpg").read_bytes()[:-400])
    rows[7]["image"] = "gone.png"
    rows[101]["image"] = "text.png"
    rows[130]["image"] = "cut.jpg"
    rows[160]["conversations"][1]["value"] = ""
    rows[299]["conversations"][0]["value"] = "long " * 300
    return {
        7: "there is no image file",
        101: "text.png' cannot be decoded",
        130: "cut.jpg' cannot be decoded",
        160: "the answer, is empty",
        299: "more than the 250 allowed",
    }


@pytest.mark.parametrize("options", [{}, {"num_proc": 2}, {"streaming": True, "num_shards": 3}])
def test_broken_rows_are_left_out_and_named(tmp_path, images, processor, warnings, options):
    rows = llava_rows(300, num_images=20)
    broken = break_rows(rows, images)
    path = write_rows(tmp_path / "rows.json", rows)
    options |= {"on_error": "skip", "check_images": True, "processor": processor, "max_length": 250}
    dataset = read_llava_json(path, images, **options)
    assert [row["row"] for row in without_images(dataset)] == [n for n in range(300) if n not in broken]
    named = [warning for warning in warnings if warning.startswith("Left out")]
    assert len(named) == len(broken)
    for warning, (number, problem) in zip(named, broken.items(), strict=True):
        assert f"rows.json, row {number} (id 'r{number}'): " in warning and problem in warning
    counts = [int(warning.split()[0]) for warning in warnings if warning.endswith("were left out.")]
    assert sum(counts) == len(broken) and len(counts) <= 3


@pytest.mark.parametrize("options", [{}, {"num_proc": 2}, {"streaming": True}])
def test_the_first_broken_row_stops(tmp_path, images, options):
    rows = llava_rows(300, num_images=20)
    break_rows(rows, images)
    path = write_rows(tmp_path / "rows.jsonl", rows)
    # What shows without looking at images comes before what does not, except in a stream.
    found = (
        r"row 7 \(id 'r7'\): there is no" if "streaming" in options else r"row 160 \(id 'r160'\): turn 2, the answer"
    )
    with pytest.raises(TrainingDataError, match=found):
        list(read_llava_json(path, images, **options))
    rows[160] = rows[7] | {"id": "r160"}
    write_rows(path, rows)
    with pytest.raises(TrainingDataError, match=r"row 7 \(id 'r7'\): there is no image file .*gone.png"):
        list(read_llava_json(path, images, **options))


def test_streams_equal_datasets_and_workers_and_ranks_share_them(tmp_path, images):
    path = write_rows(tmp_path / "rows.json", llava_rows(30, num_images=20))
    dataset = read_llava_json(path, images)
    stream = read_llava_json(path, images, streaming=True, num_shards=4)
    assert list(map(str, without_images(stream))) == list(map(str, without_images(dataset)))
    for ours, theirs in zip(dataset, stream, strict=True):
        assert ours["images"][0].tobytes() == theirs["images"][0].tobytes()
    ranks = [split_dataset_by_node(stream, rank, 2) for rank in range(2)]
    loaders = [DataLoader(rank, batch_size=None, num_workers=2) for rank in ranks]
    numbers = [[row["row"] for row in loader] for loader in loaders]
    assert sorted(numbers[0] + numbers[1]) == list(range(30))
    assert min(map(len, numbers)) >= 14


def test_images_are_files_until_a_row_is_read(tmp_path, images):
    path = write_rows(tmp_path / "rows.json", llava_rows(20))
    dataset = read_llava_json(path, images)
    (image,) = dataset.with_format("arrow")[3]["images"][0].as_py()
    assert image == {"path": str(images / "3.png"), "bytes": None}
    assert dataset[3]["images"][0].getpixel((0, 0)) == (15, 100, 200)
    assert dataset[3]["messages"][0]["content"] == [
        {"type": "image", "text": None},
        {"type": "text", "text": "What is number 3?"},
    ]
    plain = datasets.Dataset.from_dict(
        {"images": [[]]}, features=datasets.Features({"images": datasets.List(datasets.Image())})
    )
    assert len(datasets.concatenate_datasets([dataset.select_columns("images"), plain])) == 21


@pytest.mark.parametrize("options", [{"processor": True}, {"streaming": True}])
def test_what_fails_to_decode_later_is_named_by_its_row(tmp_path, images, processor, options):
    path = write_rows(tmp_path / "rows.json", llava_rows(20))
    options |= {"processor": processor} if "processor" in options else {}
    dataset = read_llava_json(path, images, **options)
    (images / "11.png").write_bytes((images / "11.png").read_bytes()[:40])
    with pytest.raises(TrainingDataError, match=r"rows.json, row 11 \(id 'r11'\): its image .*11.png' cannot"):
        list(dataset)
    with pytest.raises(TrainingDataError, match=r"rows.json, row 11 \(id 'r11'\)"):
        list(DataLoader(dataset, batch_size=None, num_workers=1))


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(image="gone.png"), "no image file .* Check the image folder"),
        (lambda row: row.update(chat=row.pop("conversations")), "no list `conversations`, only 'id', 'image', 'chat'"),
        (lambda row: row.pop("image"), "0 images but 1 <image>"),
        (lambda row: row["conversations"][1].update(value=""), "is empty"),
        (lambda row: row["conversations"][1].update(value="ASSISTANT: yes"), "role headers"),
        (lambda row: row["conversations"][0].update(value="long " * 300), "more than the 250 allowed"),
    ],
)
def test_what_breaks_most_rows_stops_in_any_case(tmp_path, images, processor, on_error, change, message):
    rows = llava_rows(200, num_images=20)
    for row in rows[40:]:
        change(row)
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(TrainingDataError, match=f"60 of the first 100 rows .*{message}") as error:
        read_llava_json(path, images, on_error=on_error, processor=processor, max_length=250)
    assert "\n" not in str(error.value)


def table(count: int, image: str = "image", question: str = "question", answer: str = "answer") -> list[dict]:
    return [{image: f"{n % 4}.png", question: f"Which, {n}?", answer: f"This,\n{n}"} for n in range(count)]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".json"])
def test_tables_of_questions(tmp_path, images, ending):
    path = write_rows(tmp_path / f"table{ending}", table(12, image="file_name"))
    dataset = read_image_folder(images, path)
    assert len(dataset) == 12 and [row["images"][0].getpixel((0, 0))[0] for row in dataset] == [0, 5, 10, 15] * 3
    assert dataset[5]["messages"][1]["content"] == [{"type": "text", "text": "This,\n5"}]
    path = write_rows(tmp_path / f"other{ending}", table(12, "pic", "q", "a"))
    columns = {"image_column": "pic", "question_column": "q", "answer_column": "a"}
    assert list(read_image_folder(images, path, **columns))[3]["messages"] == dataset[3]["messages"]
    with pytest.raises(
        TrainingDataError, match="no column 'image' and none 'question' and none 'answer'; it has 'pic', 'q', 'a'"
    ):
        read_image_folder(images, path)


@pytest.mark.parametrize("first", [{"file_name": "0.png", "answer": "no question"}, "no object", "{broken"])
def test_columns_are_not_those_of_a_first_row_that_is_broken(tmp_path, images, warnings, first):
    path = write_rows(tmp_path / "table.jsonl", table(12, image="file_name"))
    line = first if first == "{broken" else json.dumps(first)
    path.write_text(line + "\n" + path.read_text())
    assert len(read_image_folder(images, path, on_error="skip")) == 12
    assert "table.jsonl, row 0: " in warnings[0] and warnings[1].startswith("1 of 13 rows")


def test_what_the_processor_would_refuse_is_found_before(tmp_path, images, warnings):
    """Pixels of any range, and EXIF data that are nonsense, show only after an image was decoded."""
    Image.fromarray(np.linspace(-5, 4000, 64, dtype=np.float32).reshape(8, 8)).save(images / "depth.tif")
    rows = llava_rows(20)
    rows[3]["image"] = "depth.tif"
    path = write_rows(tmp_path / "rows.json", rows)
    assert len(read_llava_json(path, images, on_error="skip", check_images=True)) == 19
    assert "row 3 (id 'r3'): its image" in warnings[0] and "pixels run from -5 to 4000" in warnings[0]


def test_images_of_any_kind_are_read_as_the_processor_reads_their_files(tmp_path, images, processor):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    noise.save(images / "turned.jpg", exif=turned)
    noise.convert("CMYK").save(images / "cmyk.jpg")
    Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27).save(images / "16bit.png")
    noise.save(images / "moving.gif", save_all=True, append_images=[noise.rotate(90)])
    names = ["turned.jpg", "cmyk.jpg", "16bit.png", "moving.gif"]
    rows = [row | {"image": name} for row, name in zip(llava_rows(4), names, strict=True)]
    dataset = read_llava_json(write_rows(tmp_path / "rows.json", rows), images, check_images=True)
    for row, name in zip(dataset, names, strict=True):
        found, expected = (
            processor.image_processor(image, return_tensors="pt")["pixel_values"]
            for image in (row["images"][0], str(images / name))
        )
        assert torch.equal(found, expected), name


def test_a_broken_row_behind_many_sound_ones(tmp_path, images, processor, warnings, monkeypatch):
    """Lengths and images are checked by the batch, and a batch of sound rows says nothing of the type of a problem."""
    monkeypatch.setattr(training_dataset, "BATCH_ROWS", 4)
    monkeypatch.setattr(training_dataset, "MIN_ROWS", 4)
    rows = llava_rows(20)
    rows[13]["conversations"][0]["value"] = "long " * 300
    path = write_rows(tmp_path / "rows.json", rows)
    assert len(read_llava_json(path, images, on_error="skip", processor=processor, max_length=250)) == 19
    assert "row 13 (id 'r13'): it takes" in warnings[0]

    column = [[{"path": None, "bytes": (images / f"{n}.png").read_bytes()}] for n in range(20)]
    column[17][0]["bytes"] = column[17][0]["bytes"][:50]
    column[18] = None
    features = datasets.Features({"images": datasets.List(datasets.Image())})
    dataset = datasets.Dataset.from_dict({"images": column}, features=features)
    ((row, (kind, problem)),) = training_dataset.check_images(dataset).items()
    assert (row, kind) == (17, "image") and problem.startswith("its image cannot be decoded")
    files = datasets.Dataset.from_dict({"image": [str(images / "0.png"), "gone.png", "https://some.where/0.png"]})
    assert training_dataset.check_images(files) == {1: ("image", "there is no image file 'gone.png'")}
    assert training_dataset.check_images(files.rename_column("image", "text")) == {}


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        (None, "its messages are no list of"),
        (["hello"], "its messages are no list of"),
        ([{"from": "human", "value": "hello"}], "its messages are no list of"),
        ([{"role": "user", "content": "Why?"}, {"role": "assistant", "content": None}], "has no `content`"),
        ([{"role": "user", "content": "Why?"}], "it has no answer"),
        ([{"role": "bot", "content": "Why?"}], "Invalid role in message: bot"),
    ],
)
def test_messages_of_another_form(processor, messages, problem):
    with pytest.raises(RowError, match=problem):
        Ruler(processor, 250).length({"messages": messages}, 0)


def test_missing_files_and_folders(tmp_path, images):
    path = write_rows(tmp_path / "rows.json", llava_rows(5))
    with pytest.raises(TrainingDataError, match=r"There is no image folder .*nowhere"):
        read_llava_json(path, tmp_path / "nowhere")
    with pytest.raises(TrainingDataError, match=r"There is no file .*gone.csv"):
        read_image_folder(images, tmp_path / "gone.csv")
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(TrainingDataError, match="has no rows"):
        read_llava_json(tmp_path / "empty.json", images)
    rows = llava_rows(1)
    rows[0]["image"] = "gone.png"
    write_rows(path, rows)
    with pytest.raises(TrainingDataError, match="no row that can be used"):
        read_llava_json(path, images, on_error="skip")
    with pytest.raises(ValueError, match="`on_error` must be 'raise' or 'skip'"):
        read_llava_json(path, images, on_error="ignore")
    with pytest.raises(ValueError, match="needs the `processor`"):
        read_llava_json(path, images, max_length=10)


def test_images_are_looked_for_beside_the_file_by_default(tmp_path, images):
    path = write_rows(images / "rows.json", llava_rows(5))
    assert len(read_llava_json(path)) == 5


@pytest.mark.parametrize("image_hd", [False, True])
def test_lengths_are_those_of_the_collator(tmp_path, images, processor, image_hd):
    rows = llava_rows(6)
    rows[2] = {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}
    rows[4]["image"] = ["0.png", "1.png"]
    rows[4]["conversations"] = rows[4]["conversations"] * 2
    path = write_rows(tmp_path / "rows.json", rows)
    processor.image_processor.image_hd = image_hd
    try:
        dataset = read_llava_json(path, images, processor=processor)
        collate = DataCollatorForVisionLanguageModeling(processor)
        lengths = [collate([row])["input_ids"].shape[1] for row in dataset]
    finally:
        processor.image_processor.image_hd = False
    assert dataset["length"][:] == lengths
    assert dataset["grouping_length"][:] == [-length if n == 2 else length for n, length in enumerate(lengths)]


def test_nothing_stale_is_kept(tmp_path, images):
    rows = llava_rows(20)
    path = write_rows(tmp_path / "rows.json", rows)
    (images / "3.png").rename(images / "away.png")
    assert len(read_llava_json(path, images, on_error="skip")) == 19
    (images / "away.png").rename(images / "3.png")
    assert len(read_llava_json(path, images, on_error="skip")) == 20
    rows[0]["conversations"][1]["value"] = "something else"
    write_rows(path, rows)
    assert read_llava_json(path, images)[0]["messages"][1]["content"][0]["text"] == "something else"


def test_without_datasets_the_error_names_the_extra(tmp_path, images, monkeypatch):
    path = write_rows(tmp_path / "rows.json", llava_rows(5))
    for name in [name for name in sys.modules if name.startswith("transformers_flashsloth.training.dataset")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"transformers-flashsloth\[train\]"):
        read_llava_json(path, images)
