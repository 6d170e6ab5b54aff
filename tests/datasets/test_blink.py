"""BLINK: the prompt column's words, all images in order, several tasks as one, and one clear line for a bad table."""

from __future__ import annotations

import pytest

from tests.tables import photograph, scene, write_parquet
from visual_r1.config import build, compose_config
from visual_r1.datasets.blink import IMAGES, Blink

TASKS = ("Relative_Depth", "Spatial_Relation")


def row(task, number, *, num_images=1):
    """As the hub has it: its prompts are the question, a line of instruction and a choice a line."""
    question, choices = {
        "Relative_Depth": ("Which point is closer to the camera?", ["A is closer", "B is closer"]),
        "Spatial_Relation": (f"Is the car beneath cat {number}?", ["yes", "no"]),
    }.get(task, ("Which image is it?", ["the second image", "the third image"]))
    images = [scene(number)[0], *(photograph(other, side=40 + other) for other in range(1, num_images))]
    stored = [{"bytes": image, "path": None} for image in images] + [None] * (len(IMAGES) - len(images))
    letters = "".join(f"\n({letter}) {choice}" for letter, choice in zip("AB", choices, strict=True))
    return {
        "idx": f"val_{task}_{number + 1}",
        "question": question,
        "sub_task": task,
        **dict(zip(IMAGES, stored, strict=True)),
        "choices": choices,
        "answer": "(A)" if number % 2 == 0 else "(B)",
        "prompt": f"{question}\nSelect from the following choices.{letters}",
        "explanation": "",
    }


@pytest.fixture
def write(tmp_path):
    def write(**tables):
        for task, rows in tables.items():
            (tmp_path / task).mkdir(exist_ok=True)
            write_parquet(tmp_path / task / "val-00000-of-00001.parquet", rows)
        return str(tmp_path)

    return write


@pytest.fixture
def folder(write):
    return write(**{task: [row(task, number) for number in range(3)] for task in TASKS})


def test_tasks_follow_one_another_and_are_categories(folder):
    examples = list(Blink(path=folder, tasks=TASKS))
    assert [example.id for example in examples] == [
        f"blink/val_{task}_{number}" for task in TASKS for number in (1, 2, 3)
    ]
    assert [example.category for example in examples] == [TASKS[0]] * 3 + [TASKS[1]] * 3


def test_the_prompt_column_is_asked(folder):
    example = Blink(path=folder, tasks=TASKS)[4]
    assert example.question == "Is the car beneath cat 1?\nSelect from the following choices.\n(A) yes\n(B) no"
    assert (example.choices, example.solution, example.solution_as_written) == (("yes", "no"), "B", None)


def test_all_images_come_in_their_order(write):
    rows = [row("Art_Style", number, num_images=number + 1) for number in range(4)]
    for example, num_images in zip(Blink(path=write(Art_Style=rows), tasks=["Art_Style"]), range(1, 5), strict=True):
        assert [image.size[0] for image in example.images[1:]] == [40 + other for other in range(1, num_images)]
        assert len(example.images) == num_images


def test_choices_change_places_within_the_prompt(folder):
    examples = Blink(path=folder, tasks=TASKS)
    swapped = examples.rotated(1)
    assert swapped[0].question.endswith("\n(A) B is closer\n(B) A is closer")
    assert (swapped[0].solution, swapped[0].solution_text) == ("B", "A is closer")
    assert swapped.fingerprint() != examples.fingerprint()


def test_the_benchmark_asks_both_tasks(folder):
    config = compose_config(["benchmark=blink", f"benchmark.path={folder}"])
    assert {example.category for example in build(config.benchmark.examples)} == set(TASKS)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": "hidden"}, "the answer 'hidden' is none of the 2 choices' letters"),
        ({"answer": "(C)"}, "none of the 2 choices' letters"),
        ({"answer": None}, "answer is None"),
        ({"prompt": " "}, "prompt is ' '"),
        ({"choices": ["yes", "yes"]}, "two choices are equal"),
        ({"choices": ["yes"]}, "1 choices, expected at least 2"),
        ({"image_1": None}, "has no image"),
        ({"idx": "val_Spatial_Relation_1"}, "another row has the same id"),
    ],
)
def test_a_bad_row_is_named(write, change, reason):
    rows = [row("Spatial_Relation", number) for number in range(3)]
    folder = write(Spatial_Relation=[*rows[:2], {**rows[2], **change}])
    with pytest.raises(ValueError, match="1 bad row, the first is blink/val_Spatial_Relation_") as refused:
        Blink(path=folder, tasks=["Spatial_Relation"])
    assert reason in str(refused.value) and "\n" not in str(refused.value)
    assert len(Blink(path=folder, tasks=["Spatial_Relation"], bad_rows="skip")) == 2


def test_a_broken_image_is_named_when_it_is_read(write):
    broken = {"bytes": photograph(0)[:400], "path": None}
    examples = Blink(path=write(Art_Style=[{**row("Art_Style", 0), "image_2": broken}]), tasks=["Art_Style"])
    with pytest.raises(ValueError, match=r"^blink/val_Art_Style_1: image 2 of 2"):
        examples[0]


def test_a_missing_column_of_the_second_task_is_named(write):
    short = [{key: value for key, value in row(TASKS[1], 0).items() if key != "prompt"}]
    with pytest.raises(ValueError, match="no column 'prompt'"):
        Blink(path=write(**{TASKS[0]: [row(TASKS[0], 0)], TASKS[1]: short}), tasks=TASKS)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [([], "expected one task or more"), (["Jigsaw"] * 2, "each named once"), (["Deep"], "Deep/val-00000-of-00001")],
)
def test_tasks_that_cannot_be_read_are_refused(folder, tasks, message):
    with pytest.raises(ValueError, match=message):
        Blink(path=folder, tasks=tasks)


def test_one_file_is_not_two_tasks(folder):
    with pytest.raises(ValueError, match="is one file; blink reads a folder"):
        Blink(path=f"{folder}/Relative_Depth/val-00000-of-00001.parquet", tasks=TASKS)
