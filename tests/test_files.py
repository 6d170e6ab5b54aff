"""Writes are whole or not there."""

from __future__ import annotations

import errno
import json
import os
import stat

import pyarrow
import pyarrow.parquet
import pytest

from visual_r1.files import (
    WriteError,
    read_jsonl,
    remove_partial,
    replacing,
    write_json,
    write_jsonl,
    write_parquet,
    writing,
)


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"steps": 1})
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text('{"st')
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"steps": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_is_as_readable_as_any_other(tmp_path):
    write_json(tmp_path / "ours.json", {})
    (tmp_path / "plain.json").touch()
    modes = {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert len(modes) == 1


def test_json_has_no_nan(tmp_path):
    path = tmp_path / "deep" / "values.json"
    write_json(path, {"a": float("nan"), "b": [float("inf"), {"c": (1.5,)}]})
    assert json.loads(path.read_text()) == {"a": None, "b": [None, {"c": [1.5]}]}


def test_jsonl_comes_back(tmp_path):
    rows = [{"step": 0, "kl": 0.1}, {"step": 1, "kl": None}]
    write_jsonl(tmp_path / "metrics.jsonl", rows)
    assert read_jsonl(tmp_path / "metrics.jsonl") == rows


@pytest.mark.parametrize("tail", ['{"step": 2', "{", '{"step": 1}'])
def test_an_unfinished_last_line_is_ignored(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n' + tail)
    assert read_jsonl(path) == [{"step": 0}]


def test_parquet_comes_back_and_may_be_empty(tmp_path):
    write_parquet(tmp_path / "items.parquet", [{"id": "a", "correct": True}, {"id": "b", "correct": None}])
    assert pyarrow.parquet.read_table(tmp_path / "items.parquet").to_pylist()[1] == {"id": "b", "correct": None}
    write_parquet(tmp_path / "none.parquet", [], schema=pyarrow.schema([("id", pyarrow.string())]))
    assert pyarrow.parquet.read_table(tmp_path / "none.parquet").num_rows == 0
    with pytest.raises(ValueError, match="nothing to write"):
        write_parquet(tmp_path / "none.parquet", [])


REFUSED = {
    "full": (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded"),
    "safetensors": (RuntimeError("Error while serializing: I/O error: ... (os error 28)"), "No space left on device"),
    "torch": (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), "only a part"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_write_is_one_line_with_the_place_and_what_is_free(tmp_path, name):
    error, reason = REFUSED[name]
    with pytest.raises(WriteError) as refused, writing(tmp_path / "deep" / "model"):
        raise error
    message = str(refused.value)
    assert message.startswith(f"cannot write {tmp_path / 'deep' / 'model'}: ") and reason in message
    assert "B free there): make room" in message and "\n" not in message


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (FileNotFoundError(errno.ENOENT, "no such file"), RuntimeError("shapes differ"), ValueError("28")):
        with pytest.raises(type(error)) as raised, writing(tmp_path):
            raise error
        assert raised.value is error


def test_a_refusal_is_wrapped_once(tmp_path):
    with (
        pytest.raises(WriteError, match="cannot write .*inner"),
        writing(tmp_path / "outer"),
        writing(tmp_path / "inner"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_a_killed_writer_leaves_is_found_again(tmp_path):
    if (child := os.fork()) == 0:
        with replacing(tmp_path / "deep" / "figure.png"):
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    write_json(tmp_path / "deep" / "kept.json", {})
    assert len(list((tmp_path / "deep").iterdir())) == 2
    remove_partial(tmp_path)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["kept.json"]
