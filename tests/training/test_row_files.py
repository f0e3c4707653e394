"""Files of rows: every row once, in order, however a file is cut; what is no row is named."""

import json

import pytest

from tests.training.training_files import write_rows
from transformers_flashsloth.training import row_files
from transformers_flashsloth.training.row_files import BadRow, TrainingDataError, csv_columns, read_shard, split_rows

# Lines, quotes, brackets and characters of several bytes inside of values.
ROWS = [{"id": str(n), "text": f'é\n"{n}", [{{漢}}]\\' * (n % 5) + "x" * (n % 11)} for n in range(60)]


def read(path, num_shards: int) -> list[tuple[int, object]]:
    return [numbered for shard in split_rows(str(path), num_shards) for numbered in read_shard(str(path), shard)]


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv"])
@pytest.mark.parametrize("num_shards", [1, 3, 100])
def test_every_row_once_and_in_order(tmp_path, ending, num_shards):
    path = write_rows(tmp_path / f"rows{ending}", ROWS)
    assert read(path, num_shards) == list(enumerate(ROWS))
    sizes = [shard.num_rows for shard in split_rows(str(path), num_shards)]
    assert len(sizes) == min(num_shards, 60) and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("chunk_bytes", [1, 7, 64])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_is_read_in_chunks_of_any_size(tmp_path, monkeypatch, chunk_bytes, indent):
    monkeypatch.setattr(row_files, "CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "rows.json"
    path.write_text("\ufeff " + json.dumps([*ROWS, 1234567], ensure_ascii=False, indent=indent), encoding="utf-8")
    assert read(path, 4) == list(enumerate([*ROWS, 1234567]))


def test_shards_have_rows_enough_to_be_worth_it(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    assert [shard.num_rows for shard in split_rows(str(path), 8, min_rows=25)] == [30, 30]
    assert len(split_rows(str(path), 8, min_rows=1000)) == 1


def test_broken_lines_are_rows_of_their_own(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("[" * 100_000)
    ((_, row),) = read(path, 1)
    assert isinstance(row, BadRow)
    path.write_text('{"a": 1}\n{"a": \n\n{"a": 3}\n')
    (_, first), (_, second), (number, third) = read(path, 2)
    assert (first, third, number) == ({"a": 1}, {"a": 3}, 2)
    assert isinstance(second, BadRow) and "not valid JSON" in second.problem
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n1,2\n1,2,3\n"x"y,2\n\n5,"6\n7"\n')
    rows = [row for _, row in read(path, 3)]
    assert rows[0] == {"a": "1", "b": "2"} and rows[-1] == {"a": "5", "b": "6\n7"}
    assert "3 values where the first line names 2" in rows[1].problem and "not valid CSV" in rows[2].problem
    assert csv_columns(str(path)) == ["a", "b"]


@pytest.mark.parametrize("num_shards", [1, 4])
def test_a_quote_that_nothing_closes_costs_its_own_row_alone(tmp_path, num_shards):
    lines = [f'{n}.png,"a, {n}"' for n in range(40)]
    lines[7] = '7.png,"a, 7'
    lines[20] = '20.png,"a "b", 20"'
    path = tmp_path / "rows.csv"
    path.write_text("\r\n".join(["\ufeff", "image,answer", *lines, ""]), newline="", encoding="utf-8")
    rows = read(path, num_shards)
    assert [number for number, row in rows if isinstance(row, BadRow)] == [7, 20]
    assert all("not valid CSV" in rows[number][1].problem for number in (7, 20))
    sound = [n for n in range(40) if n not in (7, 20)]
    assert [rows[n] for n in sound] == [(n, {"image": f"{n}.png", "answer": f"a, {n}"}) for n in sound]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", '{"a": 1}', "must hold a list of rows"),
        ("rows.json", '[{"a": 1}, {"a" 2}]', "not valid JSON: .* at byte 16"),
        ("rows.json", '[{"a": 1}', "not valid JSON"),
        ("rows.json", "[]", "has no rows"),
        ("rows.csv", "a,b\n", "has no rows"),
        ("rows.jsonl", "", "has no rows"),
        ("rows.csv", "a,b\r1,2\r3,4\r", "does not begin with a line of column names .* line ends of Windows or Unix"),
        ("rows.json", '[{"a": ' + "1" * 5000 + "}]", "cannot be read from byte 1 on: .* digits"),
        ("rows.json", "[" * 100_000, "cannot be read from byte 1 on: .* recursion"),
        ("rows.txt", "x", "must be a .json, .jsonl, .csv file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, newline="")
    with pytest.raises(TrainingDataError, match=message):
        split_rows(str(tmp_path / name), 1)


def test_a_missing_file_and_another_encoding(tmp_path):
    with pytest.raises(TrainingDataError, match="There is no file"):
        split_rows(str(tmp_path / "rows.json"), 1)
    (tmp_path / "rows.csv").write_bytes(b"a,b\n\xff\xfe,2\n")
    with pytest.raises(TrainingDataError, match="not encoded in UTF-8"):
        split_rows(str(tmp_path / "rows.csv"), 1)
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": 2}\n', encoding="utf-16")
    with pytest.raises(TrainingDataError, match="not encoded in UTF-8 but in UTF-16"):
        split_rows(str(tmp_path / "rows.jsonl"), 1)
