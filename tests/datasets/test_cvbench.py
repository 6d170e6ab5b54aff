"""CV-Bench's rows: its prompt byte for byte, the collections it averages by, and choices that change places."""

from __future__ import annotations

import re
from collections import Counter

import datasets
import pytest

from tests.tables import make_table, rows_of, write_parquet, write_table
from visual_r1.config import build, compose_config
from visual_r1.datasets.cvbench import CVBench


@pytest.fixture
def spoiled(tmp_path):
    """The path of CV-Bench's two files, with changes in the row with idx 1, which is in the first."""

    def write(**changes):
        rows = rows_of("cvbench", 8)
        rows[1].update(changes)
        return str(write_table("cvbench", tmp_path, rows))

    return write


def test_both_files_are_one_benchmark(tmp_path):
    examples = CVBench(path=str(make_table("cvbench", tmp_path, num_rows=16)))
    rows = rows_of("cvbench", 16)
    assert [example.id for example in examples] == [f"cvbench/{n}" for n in range(16)]
    assert [example.question for example in examples] == [row["prompt"] for row in rows]
    assert [example.category for example in examples] == [row["task"] for row in rows]
    assert [f"({example.solution})" for example in examples] == [row["answer"] for row in rows]
    assert Counter(example.subset for example in examples) == {"ADE20K": 4, "COCO": 4, "Omni3D": 8}
    assert {example.solution_as_written for example in examples} == {None}
    assert {len(example.images) for example in examples} == {1}


def a_file(folder):
    return {"path": str(make_table("cvbench", folder) / "test_2d.parquet")}, 4


def a_saved_benchmark(folder):
    table = datasets.DatasetDict({"test": datasets.Dataset.from_list(rows_of("cvbench", 8))})
    table.save_to_disk(str(folder / "saved"))
    return {"path": str(folder / "saved")}, 8


def a_saved_table(folder):
    datasets.Dataset.from_list(rows_of("cvbench", 8)).save_to_disk(str(folder / "saved"))
    return {"path": str(folder / "saved"), "split": None}, 8


def a_copy_of_the_repository(folder):
    make_table("cvbench", folder)
    (folder / "img").mkdir()
    (folder / "test_2d.jsonl").write_text('{"idx": 0}\n')
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        '- config_name: default\n  data_files:\n  - split: test\n    path: "test*.parquet"\n'
        '- config_name: 2D\n  data_files:\n  - split: test\n    path: "test_2d.parquet"\n---\n'
    )
    return {"path": str(folder)}, 8


def test_a_file_may_lie_at_home(tmp_path, monkeypatch):
    # A shell leaves the ~ of benchmark.path=~/test.parquet as it is.
    monkeypatch.setenv("HOME", str(tmp_path))
    write_parquet(tmp_path / "test.parquet", rows_of("cvbench", 2))
    assert len(CVBench(path="~/test.parquet")) == 2


@pytest.mark.parametrize(
    "home", [a_file, a_saved_benchmark, a_saved_table, a_copy_of_the_repository], ids=lambda home: home.__name__
)
def test_it_opens_as_people_keep_it(home, tmp_path):
    arguments, num_items = home(tmp_path)
    examples = CVBench(**arguments)
    assert len(examples) == num_items and examples[3].id == "cvbench/3"


@pytest.mark.parametrize(
    ("source", "subset"),
    [("Omni3D_SUNRGBD", "Omni3D"), ("Omni3D_nuScenes", "Omni3D"), ("COCO", "COCO"), (None, None)],
)
def test_a_source_names_a_collection(source, subset, spoiled):
    assert CVBench(path=spoiled(source=source))[1].subset == subset


def test_older_copies_have_neither_source_nor_index(tmp_path):
    rows = [{key: value for key, value in row.items() if key not in ("idx", "source")} for row in rows_of("cvbench", 3)]
    examples = CVBench(path=str(write_parquet(tmp_path / "test.parquet", rows)))
    assert [(example.id, example.subset) for example in examples] == [(f"cvbench/{n}", None) for n in range(3)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"answer": "(E)"}, "the answer '(E)' is none of the 2 choices' letters"),
        ({"answer": None}, "answer is None"),
        ({"choices": ["left"]}, "1 choices"),
        ({"choices": ["left", "left"]}, "two choices are equal"),
        ({"prompt": " "}, "prompt is ' '"),
        ({"prompt": "Is <|image_pad|> red?"}, "the question holds <|image_pad|>, which is mark-up"),
        ({"question": ""}, "question is ''"),
        ({"task": None}, "task is None"),
        ({"image": None}, "has no image"),
        ({"image": {"bytes": None, "path": None}}, "its image is empty"),
        ({"image": {"bytes": None, "path": "img/1.png"}}, "its image is missing"),
    ],
)
def test_a_bad_row_is_named_at_the_start(changes, reason, spoiled):
    with pytest.raises(ValueError, match=re.escape(f"1 bad row, the first is cvbench/1: {reason}")):
        CVBench(path=spoiled(**changes))


def test_a_source_that_is_no_text_is_named(tmp_path):
    path = write_parquet(tmp_path / "test.parquet", [{**row, "source": 3} for row in rows_of("cvbench", 2)])
    with pytest.raises(ValueError, match="the first is cvbench/0: source is 3, expected text"):
        CVBench(path=str(path))


def test_two_rows_of_one_index_are_refused(spoiled):
    with pytest.raises(ValueError, match="the first is cvbench/7: another row has the same id"):
        CVBench(path=spoiled(idx=7))


def test_a_missing_column_is_named(tmp_path):
    rows = [{key: value for key, value in row.items() if key != "prompt"} for row in rows_of("cvbench", 2)]
    with pytest.raises(ValueError, match=r"no column 'prompt'; its columns are idx, type, task"):
        CVBench(path=str(write_parquet(tmp_path / "test.parquet", rows)))


class TestRotation:
    def test_the_prompt_is_rebuilt_with_the_choices_in_another_order(self, spoiled):
        examples = CVBench(path=spoiled())
        for example, turned in zip(examples, examples.rotated(1), strict=True):
            head = example.question.partition("\n(A) ")[0]
            assert turned.question == "\n".join(
                [head, *(f"({letter}) {choice}" for letter, choice in zip("ABCD", turned.choices, strict=False))]
            )
            assert turned.choices == (example.choices[-1], *example.choices[:-1])
            assert turned.solution_text == example.solution_text and turned.solution != example.solution
            assert (turned.id, turned.category, turned.subset) == (example.id, example.category, example.subset)

    def test_no_rotation_and_a_full_one_give_the_prompt_back(self, spoiled):
        examples = CVBench(path=spoiled())
        prompts = [example.question for example in examples]
        for num_steps in (0, 4):
            assert [example.question for example in examples.rotated(num_steps)] == prompts

    def test_a_prompt_of_another_form_is_asked_as_it_is_and_never_rotated(self, spoiled):
        examples = CVBench(path=spoiled(prompt="Left or right?"))
        assert examples[1].question == "Left or right?"
        with pytest.raises(ValueError, match="cvbench/1: its choices cannot change places: the prompt does not end in"):
            examples.rotated(1)


def test_the_benchmark_is_asked_as_the_reference_asks_it(tmp_path):
    path = make_table("cvbench", tmp_path)
    cfg = compose_config(["benchmark=cvbench", f"benchmark.path={path}", "scale.benchmark_size=3"])
    assert (cfg.benchmark.temperature, cfg.benchmark.max_completion_length) == (0.0, 1024)
    ids = [example.id for example in build(cfg.benchmark.examples)]
    assert len(ids) == 3 and ids != ["cvbench/0", "cvbench/1", "cvbench/2"]  # drawn from all of it, not its 2D half
    assert compose_config(["benchmark=cvbench"]).benchmark.path == "nyu-visionx/CV-Bench"
