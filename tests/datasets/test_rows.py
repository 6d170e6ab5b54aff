"""A table opens wherever it lies, row by row, undecoded; what cannot be read says so in one line."""

from __future__ import annotations

import json
import os
import pickle
import re

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.tables import photograph, write_parquet
from visual_r1.datasets import rows as rows_module
from visual_r1.datasets.rows import ArrowRows, open_rows

NUM_ROWS = 6
PICTURES = [photograph(number) for number in range(NUM_ROWS)]
QUESTIONS = [f"question {number}" for number in range(NUM_ROWS)]


def parquet_rows(first=0, last=NUM_ROWS):
    return [
        {"image": {"bytes": PICTURES[n], "path": None}, "question": QUESTIONS[n], "choices": ["a", f"b {n}"]}
        for n in range(first, last)
    ]


def write_pictures(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(PICTURES):
        (folder / f"{number}.jpg").write_bytes(picture)


def a_parquet_file(folder):
    return {"path": write_parquet(folder / "table.parquet", parquet_rows())}


def a_folder_of_parquet_files(folder):
    write_parquet(folder / "train-00000-of-00002.parquet", parquet_rows(0, 2))
    write_parquet(folder / "train-00001-of-00002.parquet", parquet_rows(2))
    return {"path": folder}


def named_parquet_files(folder):
    write_parquet(folder / "b.parquet", parquet_rows(0, 2))
    write_parquet(folder / "a.parquet", parquet_rows(2))
    return {"path": folder, "data_files": ["b.parquet", "a.parquet"]}


def one_split_of_a_folder(folder):
    (folder / "data").mkdir()
    write_parquet(folder / "data" / "train-0.parquet", parquet_rows(0, 1))
    write_parquet(folder / "data" / "test-0.parquet", parquet_rows())
    return {"path": folder, "split": "test"}


def a_repository_with_configurations(folder):
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: small\n  data_files:\n  - {split: test, path: small.parquet}\n"
        "- config_name: large\n  data_files:\n  - {split: test, path: large.parquet}\n---\n"
    )
    write_parquet(folder / "small.parquet", parquet_rows(0, 1))
    write_parquet(folder / "large.parquet", parquet_rows())
    return {"path": folder, "name": "large", "split": "test"}


def a_saved_table(folder):
    datasets.Dataset.from_list(parquet_rows()).save_to_disk(str(folder / "saved"))
    return {"path": folder / "saved"}


def a_saved_table_in_another_order(folder):
    table = datasets.Dataset.from_list(parquet_rows()[::-1])
    table.select(range(NUM_ROWS - 1, -1, -1)).save_to_disk(str(folder / "saved"))
    return {"path": folder / "saved"}


def saved_tables_with_splits(folder):
    tables = {"train": parquet_rows(0, 1), "val": parquet_rows()}
    datasets.DatasetDict({key: datasets.Dataset.from_list(value) for key, value in tables.items()}).save_to_disk(
        str(folder / "saved")
    )
    return {"path": folder / "saved", "split": "val"}


def json_lines(folder):
    write_pictures(folder / "pictures")
    lines = [
        {"image": f"pictures/{n}.jpg", "question": QUESTIONS[n], "choices": ["a", f"b {n}"]} for n in range(NUM_ROWS)
    ]
    (folder / "table.jsonl").write_text("\n\n".join(json.dumps(line) for line in lines))
    return {"path": folder / "table.jsonl"}


def a_folder_of_pictures(folder):
    write_pictures(folder)
    lines = [{"file_name": f"{n}.jpg", "question": QUESTIONS[n], "choices": ["a", f"b {n}"]} for n in range(NUM_ROWS)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"path": folder}


HOMES = (
    a_parquet_file,
    a_folder_of_parquet_files,
    named_parquet_files,
    one_split_of_a_folder,
    a_repository_with_configurations,
    a_saved_table,
    a_saved_table_in_another_order,
    saved_tables_with_splits,
    json_lines,
    a_folder_of_pictures,
)


@pytest.mark.parametrize("home", HOMES, ids=lambda home: home.__name__)
def test_a_table_opens_wherever_it_lies(home, tmp_path):
    rows = open_rows(**home(tmp_path))
    assert len(rows) == NUM_ROWS and set(rows.columns) == {"image", "question", "choices"}
    assert [rows[n]["question"] for n in (3, 0, 5)] == [QUESTIONS[n] for n in (3, 0, 5)]
    assert rows[-1]["question"] == QUESTIONS[-1] and rows[2]["choices"] == ["a", "b 2"]
    with pytest.raises(IndexError):
        rows[NUM_ROWS]
    outlines = list(rows.outlines(["choices", "question"]))
    assert outlines == [{"choices": ["a", f"b {n}"], "question": QUESTIONS[n]} for n in range(NUM_ROWS)]


@pytest.mark.parametrize("home", HOMES, ids=lambda home: home.__name__)
def test_images_come_as_they_are_stored(home, tmp_path):
    rows = open_rows(**home(tmp_path))
    stored = rows[4]["image"]
    if isinstance(stored, dict):
        stored = stored["bytes"] or stored["path"]
    assert stored == PICTURES[4] or (rows.folder / stored).read_bytes() == PICTURES[4]


def test_an_outline_has_numbers_in_the_place_of_bytes(tmp_path):
    nested = pa.schema(
        [
            ("one", pa.binary()),
            ("list", pa.list_(pa.binary())),
            ("struct", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("structs", pa.list_(pa.struct([("bytes", pa.large_binary()), ("path", pa.string())]))),
        ]
    )
    values = [
        {"one": b"123", "list": [b"1", b""], "struct": {"bytes": None, "path": "p"}, "structs": []},
        {"one": None, "list": None, "struct": None, "structs": [None, {"bytes": b"12", "path": None}]},
        {"one": b"", "list": [], "struct": {"bytes": b"1", "path": "q"}, "structs": None},
    ]
    rows = open_rows(write_parquet(tmp_path / "table.parquet", values, schema=nested))
    assert [rows[n] for n in range(3)] == values
    assert list(rows.outlines(rows.columns)) == [
        {"one": 3, "list": [1, 0], "struct": {"bytes": None, "path": "p"}, "structs": []},
        {"one": None, "list": None, "struct": None, "structs": [None, {"bytes": 2, "path": None}]},
        {"one": 0, "list": [], "struct": {"bytes": 1, "path": "q"}, "structs": None},
    ]


def test_a_giant_row_group_is_prepared_in_small_batches(tmp_path, monkeypatch):
    # SAT's files are one row group each; read at once it takes the file's length in memory, and over 2 GB it fails.
    monkeypatch.setattr(rows_module, "_BATCH_BYTES", 20 * 10_000)
    path = write_parquet(tmp_path / "table.parquet", [{"image": bytes([n]) * 10_000, "n": n} for n in range(256)])
    assert pyarrow.parquet.read_metadata(path).num_row_groups == 1
    rows = open_rows(path)
    assert isinstance(rows, ArrowRows)
    assert 15 <= max(map(len, rows._dataset.data.table.to_batches())) <= 20
    assert rows[255] == {"image": b"\xff" * 10_000, "n": 255}
    assert [row["n"] for row in rows.outlines(["n"])] == list(range(256))


def test_a_table_is_prepared_once(tmp_path, prepared):
    path = write_parquet(tmp_path / "table.parquet", parquet_rows())
    open_rows(path)
    (arrow,) = prepared.rglob("*.arrow")
    written = arrow.stat().st_mtime_ns
    assert len(open_rows(path)) == NUM_ROWS
    assert list(prepared.rglob("*.arrow")) == [arrow] and arrow.stat().st_mtime_ns == written
    write_parquet(path, parquet_rows(0, 2))  # a table that was changed is another table
    assert len(open_rows(path)) == 2


def test_a_preparation_that_fails_leaves_nothing_half_written(tmp_path, prepared):
    path = write_parquet(tmp_path / "table.parquet", parquet_rows() * 20)
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + bytes(2000) + whole[2004:])  # the footer, which is read first, stays whole
    with pytest.raises(ValueError, match=r"table\.parquet.*could not be prepared") as refused:
        open_rows(path)
    assert "\n" not in str(refused.value)
    assert not list(prepared.rglob("*.arrow")) and not list(prepared.rglob("dataset_info.json"))
    path.write_bytes(whole)
    assert len(open_rows(path)) == NUM_ROWS * 20


def test_a_place_that_cannot_be_written_to_is_named(tmp_path, prepared):
    (prepared / "parquet").write_text("a file where a folder should be made")
    with pytest.raises(ValueError, match=f"could not be prepared in {prepared} .HF_DATASETS_CACHE names another place"):
        open_rows(write_parquet(tmp_path / "table.parquet", parquet_rows()))


@pytest.mark.parametrize("home", [a_parquet_file, json_lines, a_saved_table], ids=lambda home: home.__name__)
def test_rows_travel_to_another_process(home, tmp_path):
    rows = open_rows(**home(tmp_path))
    assert pickle.loads(pickle.dumps(rows))[3] == rows[3]


class TestJsonLines:
    def write(self, folder, text):
        (folder / "table.jsonl").write_text(text, encoding="utf-8")
        return folder / "table.jsonl"

    def test_rows_may_differ_in_type_and_columns(self, tmp_path):
        rows = open_rows(self.write(tmp_path, '\ufeff{"a": 1}\n  \n{"b": ["x"], "a": "é"}'))
        assert rows.columns == ("a", "b")
        assert [rows[0], rows[1]] == [{"a": 1, "b": None}, {"a": "é", "b": ["x"]}] == list(rows.outlines(("a", "b")))

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ('{"a": 1}\n\n{"a": \n', "line 3: not JSON"),
            ('{"a": 1}\n[1, 2]\n', "line 2: expected an object"),
            ('{"a": 1}\n{"a"', "line 2: not JSON"),
            ('{"a": 1}\n' + "[" * 100_000, "line 2: not JSON"),
            ("\n", "holds no rows"),
        ],
    )
    def test_a_broken_line_is_named(self, text, named, tmp_path):
        with pytest.raises(ValueError, match=named):
            open_rows(self.write(tmp_path, text))

    def test_bytes_that_are_no_text_are_named(self, tmp_path):
        (tmp_path / "table.jsonl").write_bytes(b'{"a": 1}\n{"a": "\xff"}\n')
        with pytest.raises(ValueError, match="line 2: not JSON"):
            open_rows(tmp_path / "table.jsonl")

    def test_a_file_that_changes_while_it_is_read_is_not_misread(self, tmp_path):
        path = self.write(tmp_path, '{"a": 1}\n{"a": 2}\n')
        rows = open_rows(path)
        self.write(tmp_path, '{"a": 10}\n{"a": 2}\n')
        with pytest.raises(ValueError, match="was changed"):
            rows[1]


REFUSED = {
    "no such place": ({"path": "missing place"}, "no such file or folder"),
    "no place": ({"path": None}, "no table is named; set dataset.path or benchmark.path"),
    "a table without rows": ({"path": "none.parquet"}, "none.parquet: holds no rows"),
    "a kind that is not read": ({"path": "table.csv"}, r"cannot read table\.csv; expected \.parquet or \.jsonl"),
    "a parquet file cut short": ({"path": "cut.parquet"}, r"cut\.parquet is not a whole parquet file"),
    "a file with a split": ({"path": "good.parquet", "split": "val"}, "leave name and split out"),
    "a folder without the file": ({"path": "folder", "data_files": ["nine.parquet"]}, "no file folder/nine.parquet"),
    "a folder without tables": ({"path": "empty"}, "any data files"),
    "splits to choose from": ({"path": "folder"}, "name one of its splits: test, train|: train, test"),
    "an unknown split": ({"path": "folder", "split": "val"}, "no split 'val'; its splits are"),
    "an unknown configuration": ({"path": "folder", "name": "medium"}, "'medium' not found"),
    "a saved table with a split": ({"path": "saved", "split": "val"}, "leave split=val out"),
    "a saved table that lost a file": ({"path": "broken"}, "not a whole folder of save_to_disk"),
    "two files of JSON lines": (
        {"path": "json", "data_files": ["a.jsonl", "b.jsonl"]},
        "one JSON-lines file at a time",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_says_so_in_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "good.parquet", parquet_rows())
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "good.parquet").read_bytes()[:-100])
    write_parquet(tmp_path / "none.parquet", [], schema=pa.schema({"answer": pa.string()}))
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    for folder in ("folder", "empty", "json"):
        (tmp_path / folder).mkdir()
    for split in ("train", "test"):
        write_parquet(tmp_path / "folder" / f"{split}.parquet", parquet_rows())
    for name in ("a", "b"):
        (tmp_path / "json" / f"{name}.jsonl").write_text('{"a": 1}\n')
    for name in ("saved", "broken"):
        datasets.Dataset.from_list(parquet_rows()).save_to_disk(name)
    os.remove(next((tmp_path / "broken").glob("*.arrow")))
    with pytest.raises(ValueError, match=message) as refused:
        open_rows(**arguments)
    assert "\n" not in str(refused.value) and str(arguments["path"] or "") in str(refused.value)


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path):
    rows = open_rows(write_parquet(tmp_path / "table.parquet", parquet_rows()))
    with pytest.raises(ValueError, match=re.escape("no column 'answer'; its columns are image, question, choices")):
        rows.require(["question", "answer"])
