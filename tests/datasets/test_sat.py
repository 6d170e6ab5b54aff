"""SAT's rows: the paper's wording, choices with commas, one image or two, and the reference's selection."""

from __future__ import annotations

import re
from collections import Counter

import datasets
import pytest

from tests.tables import make_table, photograph, rows_of, scene, write_parquet, write_table
from visual_r1.config import build, compose_config
from visual_r1.datasets.sat import SPLITS, Sat
from visual_r1.examples import Rollout
from visual_r1.parsing import is_correct
from visual_r1.prompts import prompt_style


def row(**changes):
    return {
        "image_bytes": [scene(0)[0]],
        "question": "Where is the cup?",
        "answers": ["left, then right", "right", "up"],
        "question_type": "other",
        "correct_answer": "right",
        **changes,
    }


def one(tmp_path, **changes):
    return Sat(path=str(write_table("sat", tmp_path, [row(**changes)])), split="static")[0]


def test_a_question_is_worded_as_the_paper_worded_it(tmp_path):
    example = one(tmp_path)
    first, second, third = example.choices
    assert sorted(example.choices) == ["left, then right", "right", "up"]
    assert example.question == (
        "Answer in natural language. Where is the cup? "
        f"Choose between the following options: {first}, {second} or {third}"
    )
    assert example.solution_text == example.solution_as_written == "right"
    assert (example.id, example.category, example.subset) == ("sat/static/0", "other", None)
    assert [image.size for image in example.images] == [(112, 112)]


def test_two_choices_are_joined_by_or_alone(tmp_path):
    assert one(tmp_path, answers=["right", "up"]).question.endswith((" options: right or up", " options: up or right"))


def test_a_choice_may_hold_commas(tmp_path):
    example = one(tmp_path, correct_answer="left, then right")
    assert example.solution_text == "left, then right" and len(example.choices) == 3


def test_a_question_may_hold_anything(tmp_path):
    question = "<image> {question} Ein Würfel?\n[left, right]"
    assert f" {question} Choose" in one(tmp_path, question=question).question


@pytest.mark.parametrize("answer", ["Right", " right ", "RIGHT\n"])
def test_capitals_and_outer_blanks_of_an_answer_do_not_matter(answer, tmp_path):
    example = one(tmp_path, correct_answer=answer)
    assert example.solution_text == example.solution_as_written == "right"


def test_a_row_without_a_type_has_one(tmp_path):
    assert one(tmp_path, question_type=None).category == "unknown"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"correct_answer": "down"}, "the answer 'down' is none of the choices"),
        ({"correct_answer": None}, "correct_answer is None"),
        ({"answers": ["right", "Right "]}, "two choices are equal"),
        ({"answers": []}, "the answer 'right' is none of the choices []"),
        ({"answers": None}, "answers is None"),
        ({"question": ""}, "question is ''"),
        ({"question": "<|vision_start|>?"}, "the question holds <|vision_start|>, which is mark-up"),
        ({"image_bytes": []}, "has no image"),
        ({"image_bytes": None}, "has no image"),
        ({"image_bytes": [b""]}, "its image is empty"),
        ({"image_bytes": [scene(0)[0], None]}, "image 2 of 2 is empty"),
    ],
)
def test_a_bad_row_is_named_at_the_start(changes, reason, tmp_path):
    path = write_table("sat", tmp_path, [row(), row(**changes)])
    with pytest.raises(ValueError, match=re.escape(f"1 bad row, the first is sat/val/1: {reason}")):
        Sat(path=str(path), split="val")


def test_a_missing_column_is_named(tmp_path):
    rows = [{key: value for key, value in row().items() if key != "answers"}]
    path = write_parquet(tmp_path / "SAT_val.parquet", rows)
    with pytest.raises(ValueError, match="no column 'answers'; its columns are image_bytes, question, question_type"):
        Sat(path=str(path), split="val")


def test_splits_are_files_and_a_file_is_itself(tmp_path):
    path = make_table("sat", tmp_path, num_rows=4)
    write_parquet(path / "SAT_train.parquet", rows_of("sat", 7))
    assert {split: len(Sat(path=str(path), split=split)) for split in SPLITS} == {
        **dict.fromkeys(SPLITS, 4),
        "train": 7,
    }
    assert Sat(path=str(path / "SAT_train.parquet"), split="static")[0].id == "sat/static/0"
    with pytest.raises(ValueError, match="no split 'dev', expected one of train, static, val, test"):
        Sat(path=str(path), split="dev")
    (path / "SAT_val.parquet").unlink()
    with pytest.raises(ValueError, match=r"there is no file .*SAT_val\.parquet"):
        Sat(path=str(path), split="val")


def test_images_may_be_stored_as_datasets_stores_them(tmp_path):
    rows = [row(image_bytes=[{"bytes": picture, "path": None} for picture in (scene(1)[0], photograph(1))])]
    table = datasets.Dataset.from_list(rows).cast_column("image_bytes", datasets.List(datasets.Image()))
    table.to_parquet(tmp_path / "SAT_val.parquet")
    assert [image.size for image in Sat(path=str(tmp_path), split="val")[0].images] == [(112, 112), (96, 96)]


def test_an_image_may_stand_outside_a_list(tmp_path):
    path = write_parquet(tmp_path / "SAT_val.parquet", [{**row(), "image_bytes": scene(1)[0]}])
    assert len(Sat(path=str(path), split="val", max_images=1)[0].images) == 1


def test_rows_of_several_images_can_be_dropped(tmp_path, capsys):
    path = str(make_table("sat", tmp_path, num_rows=16))
    assert Counter(len(example.images) for example in Sat(path=path, split="train")) == {1: 12, 2: 4}
    assert not capsys.readouterr().err
    kept = Sat(path=path, split="train", max_images=1, first_rows=9)
    # Ids stay those of the table, and so does each row's order of choices.
    assert [example.id for example in kept] == [f"sat/train/{n}" for n in (0, 1, 2, 4, 5, 6, 8)]
    assert capsys.readouterr().err == "sat/train: 7 rows remain, 2 have more than 1 images\n"
    assert kept[3].choices == Sat(path=path, split="train")[4].choices


def test_the_seed_decides_the_order_of_choices(tmp_path):
    path = str(make_table("sat", tmp_path, num_rows=32))
    first, again, other = (Sat(path=path, split="val", seed=seed) for seed in (0, 0, 1))
    assert [example.question for example in first] == [example.question for example in again]
    assert [example.choices for example in first] != [example.choices for example in other]
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("style", ["base", "instruct"])
def test_every_solution_scores(style, tmp_path):
    style = prompt_style(style, "clean")
    for example in Sat(path=str(make_table("sat", tmp_path, num_rows=16)), split="val"):
        completion = style.answer_only(example)
        rollout = Rollout(
            example=example,
            completion=completion,
            num_tokens=5,
            is_truncated=False,
            prompt_opens_think=style.opens_think,
        )
        assert is_correct(rollout), completion


class TestConfigs:
    def test_sat_trains_on_the_static_split_and_is_watched_on_val(self, tmp_path):
        path = make_table("sat", tmp_path, num_rows=12)
        cfg = compose_config(["dataset=sat", f"dataset.path={path}", "scale.probe_size=5", "scale.train_size=null"])
        train, probe = build(cfg.dataset.train), build(cfg.dataset.probe)
        assert len(train) == 9 and {len(example.images) for example in train} == {1}
        assert train[0].id == "sat/static/0"
        numbers = [int(example.id.removeprefix("sat/val/")) for example in probe]
        assert len(numbers) == 5 and max(numbers) > 4  # drawn from all of val

    def test_the_reference_selects_by_row_before_it_drops(self):
        node = compose_config(["dataset=sat_reference", "scale=paper"]).dataset.train
        assert (node.split, node.first_rows, node.max_images, node.size) == ("train", 15_000, 1, None)
        assert node.path == "array/SAT"
