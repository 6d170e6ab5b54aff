"""The check of a data set: every bad row is named, none stops it, and the rest is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from tests.tables import make_table, photograph, rows_of, write_table
from visual_r1.cli import main
from visual_r1.datasets.check import check
from visual_r1.datasets.sat import Sat
from visual_r1.datasets.spatial import Spatial


def spoiled_sat(folder):
    """SAT with 16 rows, six of them bad: four by their text, two by their pixels."""
    rows = rows_of("sat", 16)
    rows[1]["correct_answer"] = "none of them"
    rows[2]["question"] = " "
    rows[4] |= {"answers": ["same", "Same"], "correct_answer": "same"}
    rows[5]["image_bytes"] = [b""]
    rows[6]["image_bytes"] = [photograph(0)[:800]]
    rows[9]["image_bytes"] = [b"<html>"]
    return write_table("sat", folder, rows)


BAD = {
    "sat/static/1": "the answer 'none of them' is none of the choices",
    "sat/static/2": "question is ' '",
    "sat/static/4": "two choices are equal",
    "sat/static/5": "its image is empty",
    "sat/static/6": "its image cannot be decoded",
    "sat/static/9": "its image is in no image format",
}


def test_every_bad_row_is_found_and_the_rest_is_counted(tmp_path):
    findings = check(Sat(path=str(spoiled_sat(tmp_path)), split="static", bad_rows="skip"), name="train")
    assert [row.id for row in findings.bad] == list(BAD)
    assert all(row.reason.startswith(BAD[row.id]) for row in findings.bad)
    assert findings.num_good == 10
    # 0, 8, 12: Count; 13: Relation; 10, 14: Depth; 3, 7, 11, 15: Distance with a photograph beside the scene.
    assert findings.categories == {"other": 6, "obj_movement": 4}
    assert findings.num_images == {1: 6, 2: 4} and findings.num_choices == {4: 3, 2: 7}
    assert findings.image_sizes == {(112, 112): 10, (96, 96): 4}
    lines = "\n".join(findings.lines())
    assert "16, of them bad: 6" in lines and "other: 6, obj_movement: 4" in lines
    assert "min 96 x 96, median 112 x 112, max 112 x 112" in lines


def test_the_constant_answer_is_the_best_letter_or_the_best_words_of_each_kind():
    class Answers(list):
        """Examples by what is right in each."""

        def __init__(self, right):
            example = Spatial(split="train", size=1)[0]
            super().__init__(
                replace(
                    example, id=str(n), category=kind, choices=choices, solution="AB"[choices.index(word)], question="?"
                )
                for n, (kind, choices, word) in enumerate(right)
            )

    left, right = ("left", "right"), ("right", "left")
    findings = check(
        # One: A twice, B once; "left" three times. Two: B twice of three, every word different.
        Answers(
            [("One", left, "left"), ("One", left, "left"), ("One", right, "left")]
            + [("Two", ("a", "b"), "b"), ("Two", ("c", "d"), "d"), ("Two", ("e", "f"), "e")]
        ),
        name="answers",
    )
    assert findings.constant_answer == pytest.approx((3 + 2) / 6)


class Surprising(Sequence):
    """Somebody's own data set, which breaks in its own ways."""

    def __len__(self):
        return 6

    def __getitem__(self, index: Any) -> Any:
        example = Spatial(split="train", size=6)[index]
        if index == 1:
            raise KeyError("image")
        if index == 2:
            raise ValueError("mine/2: no luck\nat all")
        if index == 3:
            return replace(example, images=())
        if index == 4:
            return replace(example, images=(Image.new("L", (4, 4)),))
        return replace(example, id="mine/5")


def test_no_row_stops_the_check():
    findings = check(Surprising(), name="train")
    assert [str(row) for row in findings.bad] == [
        "train[1]: KeyError: 'image'",
        "mine/2: no luck at all",
        "spatial/train/0/3: has no image",
        "spatial/train/0/4: an image is L, expected RGB",
        "mine/5: another row has the same id",
    ]
    assert findings.num_good == 1


def test_a_data_set_without_a_good_row_has_a_summary():
    class Bad(Surprising):
        def __len__(self):
            return 1

        def __getitem__(self, index: Any) -> Any:
            raise OSError("the disk is gone")

    findings = check(Bad(), name="train")
    assert [str(row) for row in findings.bad] == ["train[0]: OSError: the disk is gone"]
    assert findings.lines()[0].endswith("1, of them bad: 1")


class TestCommand:
    ARGUMENTS = ("benchmark.examples.size=4", "dataset.probe.split=static")

    def test_it_names_the_bad_rows_and_fails(self, tmp_path, capsys):
        out = tmp_path / "new" / "bad.txt"
        path = f"dataset.path={spoiled_sat(tmp_path / 'sat')}"
        assert main(["data", "check", "dataset=sat", path, *self.ARGUMENTS, "-o", str(out)]) == 1
        printed = capsys.readouterr().out
        for row, reason in BAD.items():
            assert f"  bad: {row}: {reason}" in printed
        assert "dataset.train: visual_r1.datasets.sat.Sat" in printed and "benchmark.examples" in printed
        written = out.read_text().splitlines()
        assert len(written) == 12  # train and probe read the same rows here
        assert written[0].startswith("dataset.train sat/static/1: the answer")

    def test_it_reads_all_rows_whatever_the_scale_takes(self, tmp_path, capsys):
        path = make_table("sat", tmp_path, num_rows=12)
        arguments = ["dataset=sat", f"dataset.path={path}", "scale.train_size=2", *self.ARGUMENTS]
        assert main(["data", "check", *arguments]) == 0
        assert "rows               9, of them bad: 0" in capsys.readouterr().out  # 9 of the 12 have one image

    def test_it_shows_the_first_bad_rows_and_says_how_many_more(self, tmp_path, capsys):
        rows = rows_of("sat", 40)
        for row in rows[:30]:
            row["question"] = ""
        path = write_table("sat", tmp_path, rows)
        assert main(["data", "check", "dataset=sat", f"dataset.path={path}", *self.ARGUMENTS]) == 1
        printed = capsys.readouterr().out
        assert printed.count("  bad: sat/static/") == 40
        assert "and 3 more; -o FILE names all of them" in printed  # of train's 23 bad rows that have one image

    def test_nothing_to_read_is_a_mistake(self, tmp_path, capsys):
        assert main(["data", "check", "dataset=sat", f"dataset.path={tmp_path / 'missing'}"]) == 2
        assert "no such file or folder" in capsys.readouterr().err
