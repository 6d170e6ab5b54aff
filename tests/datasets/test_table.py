"""Your own table: each layout, each source of choices, the division into training and probe, and what is refused."""

from __future__ import annotations

import json
from collections import Counter

import datasets
import pytest

from tests.tables import photograph, scene, write_parquet
from visual_r1.config import build, compose_config
from visual_r1.datasets.table import Table
from visual_r1.examples import Rollout
from visual_r1.experiment import prepare
from visual_r1.parsing import is_correct
from visual_r1.prompts import PROMPT_STYLES


def stored(number):
    return {"bytes": scene(number)[0], "path": None}


def own_row(number):
    """A row of the layout that Table calls columns."""
    question = scene(number)[1]
    return {
        "id": f"scene-{number}",
        "image": stored(number),
        "question": question.stem,
        "choices": list(question.choices),
        "solution": "ABCD"[question.answer],
        "category": question.category,
    }


def trl_row(number):
    """As TRL's GRPOTrainer takes it: a conversation whose image part stands for the row's image."""
    question = scene(number)[1]
    content = [{"type": "image", "text": None}, {"type": "text", "text": question.text}]
    prompt = [
        {"role": "system", "content": [{"type": "text", "text": "Think first."}]},
        {"role": "user", "content": content},
    ]
    return {"prompt": prompt, "images": [stored(number)], "solution": f"({'ABCD'[question.answer]})"}


def r1_v_row(number):
    """As leonardPKU/clevr_cogen_a_train has it: always the same question, and the count within tags."""
    return {
        "image": stored(number),
        "problem": "How many items are there in the image?",
        "solution": f"<answer> {number % 8 + 3} </answer>",
    }


def easyr1_row(number):
    """As hiyouga/geometry3k has it, with choices in the text and the answer in words."""
    question = scene(number)[1]
    answer = question.choices[question.answer]
    return {"images": [stored(number)], "problem": f"<image>{question.text}", "answer": answer}


LAYOUTS = {"columns": own_row, "trl": trl_row, "r1_v": r1_v_row, "easyr1": easyr1_row}


def choices_of(layout):
    return "from_answers" if layout == "r1_v" else "as_written"


@pytest.fixture
def parquet(tmp_path):
    return lambda rows: str(write_parquet(tmp_path / "mine.parquet", rows))


@pytest.fixture
def jsonl(tmp_path):
    def write(rows, name="mine"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def texts(jsonl, tmp_path):
    """Writes rows that need no image of their own: all of them show one photograph."""
    (tmp_path / "photo.jpg").write_bytes(photograph(0))
    return lambda rows: jsonl([{"image": "photo.jpg", **row} for row in rows])


def listed(question, solution, **more):
    return {"question": question, "solution": solution, **more}


class TestLayouts:
    def test_own_columns(self, parquet):
        examples = Table(path=parquet([own_row(number) for number in range(8)]))
        assert [example.id for example in examples] == [f"mine/scene-{number}" for number in range(8)]
        for number, example in enumerate(examples):
            question = scene(number)[1]
            assert example.question == question.text
            assert (example.choices, example.category) == (question.choices, question.category)
            assert example.solution == "ABCD"[question.answer] and example.solution_as_written is None
            assert example.images[0].size == (112, 112)

    def test_own_columns_under_other_names(self, parquet):
        rows = [{f"my_{name}": value for name, value in own_row(number).items()} for number in range(4)]
        names = {"images": "my_image", **{name: f"my_{name}" for name in own_row(0) if name != "image"}}
        renamed = Table(path=parquet(rows), columns=names)
        assert renamed[3].id == "mine/scene-3" and renamed[3].category == scene(3)[1].category

    def test_trl(self, parquet):
        examples = Table(path=parquet([trl_row(number) for number in range(4)]), layout="trl")
        assert [example.question for example in examples] == [scene(number)[1].text for number in range(4)]
        assert [example.id for example in examples] == [f"mine/{number}" for number in range(4)]
        assert all(example.category == "mine" and example.solution_as_written is None for example in examples)

    def test_trl_with_a_plain_text_and_an_answer_column(self, texts):
        path = texts([{"prompt": "Where is it?\n(A) left\n(B) right", "answer": "right"}])
        assert Table(path=path, layout="trl")[0].solution == "B"

    def test_r1_v(self, parquet):
        path = parquet([r1_v_row(number) for number in range(16)])
        example = Table(path=path, layout="r1_v", choices="from_answers")[9]
        assert example.choices == ("3", "4", "5", "6", "7", "8", "9", "10")
        assert (example.solution, example.solution_text, example.solution_as_written) == ("B", "4", "4")
        assert example.question.startswith(
            "How many items are there in the image? Select from the following choices.\n(A) 3\n"
        )

    def test_easyr1(self, parquet):
        examples = Table(path=parquet([easyr1_row(number) for number in range(4)]), layout="easyr1")
        for number, example in enumerate(examples):
            question = scene(number)[1]
            assert example.question == question.text
            assert example.solution_as_written == example.solution_text == question.choices[question.answer]

    def test_several_images_come_in_their_order(self, parquet):
        sizes = (50, 60, 70)
        images = [{"bytes": photograph(number, side=side), "path": None} for number, side in enumerate(sizes)]
        row = {**easyr1_row(0), "images": images, "problem": f"<image><image>\n<image>{scene(0)[1].text}"}
        example = Table(path=parquet([row]), layout="easyr1")[0]
        assert [image.size for image in example.images] == [(side, side) for side in sizes]
        assert "<image>" not in example.question

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_every_solution_scores_and_choices_change_places(self, layout, parquet):
        path = parquet([LAYOUTS[layout](number) for number in range(8)])
        examples = Table(path=path, layout=layout, choices=choices_of(layout))
        rotated = examples.rotated(1)
        for before, after in zip(examples, rotated, strict=True):
            assert after.choices == (before.choices[-1], *before.choices[:-1])
            assert before.solution_text == after.solution_text and before.id == after.id
            for letter, choice in zip(after.letters, after.choices, strict=True):
                assert after.question.count(f"({letter}) {choice}") == 1
            completion = PROMPT_STYLES["instruct"].answer_only(after)
            assert is_correct(
                Rollout(
                    example=after, completion=completion, num_tokens=1, is_truncated=False, prompt_opens_think=False
                )
            )
        assert examples.fingerprint() != rotated.fingerprint()


class TestSources:
    def test_json_lines_hold_paths_from_their_own_folder(self, jsonl, tmp_path):
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "0.png").write_bytes(scene(0)[0])
        path = jsonl([{**own_row(0), "image": "images/0.png"}])
        assert Table(path=path)[0].images[0].size == (112, 112)

    def test_image_root_is_where_paths_begin(self, jsonl, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "0.png").write_bytes(scene(0)[0])
        path = jsonl([{**own_row(0), "image": "0.png"}])
        assert Table(path=path, image_root=str(tmp_path / "elsewhere"))[0].images[0].size == (112, 112)
        with pytest.raises(ValueError, match=r"mine/scene-0: its image is missing"):
            Table(path=path)

    def test_a_folder_of_save_to_disk(self, tmp_path):
        rows = [own_row(number) for number in range(4)]
        table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(str(tmp_path / "saved"))
        examples = Table(path=str(tmp_path / "saved"), split="train")
        assert len(examples) == 4 and examples[3].id == "saved/scene-3"
        assert examples[3].images[0].size == (112, 112)

    def test_a_configuration_of_a_copied_repository(self, tmp_path):
        for name, number in (("near", 0), ("far", 1)):
            write_parquet(tmp_path / f"{name}.parquet", [own_row(number)])
        configs = "".join(f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in ("near", "far"))
        (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
        assert [example.id.partition("/")[2] for example in Table(path=str(tmp_path), config="far")] == ["scene-1"]

    def test_size_takes_the_first_rows(self, parquet):
        assert len(Table(path=parquet([own_row(number) for number in range(8)]), size=3)) == 3


class TestChoices:
    def test_a_list_in_the_question_gives_them(self, texts):
        example = Table(path=texts([listed("Is it red? Choose (A) True or (B) False.", "(B) False")]))[0]
        assert (example.choices, example.solution) == (("True", "False"), "B")
        assert example.question == "Is it red? Choose (A) True or (B) False."

    def test_numbers_in_columns_are_words(self, texts):
        # 2 is the choice "2", not the second of them.
        example = Table(path=texts([listed("How many?", 2, choices=[1, 3, 2])]))[0]
        assert (example.choices, example.solution) == (("1", "3", "2"), "C")

    def test_letter_and_words_that_disagree_are_refused(self, texts):
        with pytest.raises(ValueError, match=r"'\(A\) right' does not name one of the choices \['left', 'right'\]"):
            Table(path=texts([listed("Where?\n(A) left\n(B) right", "(A) right")]))

    def test_no_choices_anywhere_says_what_to_do(self, texts):
        with pytest.raises(ValueError, match=r"mine/0: the question lists no choices .*choices=from_answers"):
            Table(path=texts([listed("How many?", "3")]))

    def test_answers_of_each_category_are_its_choices(self, texts):
        rows = [
            *(("How many?", answer, "Count") for answer in ("10", "9", 0)),
            *(("Red?", answer, "Color") for answer in ("yes", "No", "no.")),
        ]
        path = texts([listed(question, answer, category=category) for question, answer, category in rows])
        examples = list(Table(path=path, choices="from_answers"))
        assert examples[0].choices == ("0", "9", "10") and examples[2].solution == "A"
        assert examples[3].choices == ("No", "yes") and examples[5].solution == "A"
        assert examples[3].question == "Red? Select from the following choices.\n(A) No\n(B) yes"

    def test_answers_that_are_no_numbers_after_all_are_words(self, texts):
        path = texts([listed("Which?", answer) for answer in ("2", "1/0")])
        assert Table(path=path, choices="from_answers")[0].choices == ("1/0", "2")

    def test_a_seed_shuffles_them_row_by_row(self, texts):
        path = texts([listed("Where?\n(A) left\n(B) right\n(C) here", "B")] * 20)
        examples = list(Table(path=path, shuffle_seed=0))
        assert {example.solution for example in examples} == set("ABC")
        for example in examples:
            assert example.solution_text == "right" and f"\n({example.solution}) right" in example.question

    def test_answers_do_not_depend_on_the_order_of_rows(self, texts):
        rows = [listed("Which?", word) for word in ("b", "a", "C", "c.")]
        assert (
            Table(path=texts(rows), choices="from_answers")[0].choices
            == Table(path=texts(rows[::-1]), choices="from_answers")[0].choices
        )

    @pytest.mark.parametrize(
        ("answers", "message"),
        [
            (range(27), "27 different answers in the category mine (0, 1, 2...), expected 2 to 26"),
            (["3", "3"], "1 different answers in the category mine"),
            (["B", "C"], "the answer B in the category mine is also the letter of another"),
        ],
    )
    def test_answers_that_cannot_be_choices_are_refused(self, texts, answers, message):
        with pytest.raises(ValueError, match="add a column of choices") as refused:
            Table(path=texts([listed("Which?", answer) for answer in answers]), choices="from_answers")
        assert message in str(refused.value) and "\n" not in str(refused.value)

    def test_a_bad_answer_is_a_bad_row_and_no_choice(self, texts):
        rows = [listed("How many?", answer) for answer in ("1", "2", "<answer>3", None)]
        examples = Table(path=texts(rows), choices="from_answers", bad_rows="skip")
        assert examples[0].choices == ("1", "2")
        assert [bad.id for bad in examples.bad] == ["mine/2", "mine/3"]


class TestParts:
    @pytest.fixture
    def path(self, texts):
        return texts([listed("Where?\n(A) left\n(B) right", "A", id=f"row {number}") for number in range(40)])

    def test_the_probe_and_training_divide_the_rows(self, path):
        train, probe = (Table(path=path, part=part, probe_rows=8) for part in ("train", "probe"))
        ids = Counter(example.id for part in (train, probe) for example in part)
        assert (len(train), len(probe)) == (32, 8) and len(ids) == 40

    def test_a_row_keeps_its_place_when_the_table_is_sorted_otherwise(self, path, texts):
        before = {example.id for example in Table(path=path, part="probe", probe_rows=8)}
        rows = [listed("Where?\n(A) left\n(B) right", "A", id=f"row {number}") for number in range(39, -1, -1)]
        assert {example.id for example in Table(path=texts(rows), part="probe", probe_rows=8)} == before

    def test_without_ids_rows_are_divided_by_number(self, texts):
        path = texts([listed("Where?\n(A) left\n(B) right", "A")] * 40)
        train, probe = (Table(path=path, part=part, probe_rows=8) for part in ("train", "probe"))
        assert not {example.id for example in train} & {example.id for example in probe}
        assert {example.id for example in probe} != {f"mine/{number}" for number in range(8)}

    def test_both_parts_have_the_same_choices(self, texts):
        path = texts([listed("How many?", number) for number in range(10)])
        train, probe = (
            Table(path=path, part=part, probe_rows=3, choices="from_answers") for part in ("train", "probe")
        )
        assert train[0].choices == probe[0].choices == tuple("0123456789")

    @pytest.mark.parametrize("probe_rows", [None, 0, 40, 41])
    def test_a_probe_that_leaves_nothing_is_refused(self, path, probe_rows):
        with pytest.raises(ValueError, match=f"probe_rows={probe_rows} of 40 rows: expected at least 1, and fewer"):
            Table(path=path, part="train", probe_rows=probe_rows)


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"question": " "}, "the question is empty"),
            ({"question": None}, "neither a text nor a list of messages: None"),
            ({"question": "<image><image>Where?\n(A) left\n(B) right"}, "2 <image> placeholders"),
            ({"question": "Is <image> left?\n(A) left\n(B) right"}, "within the sentence"),
            ({"question": "Where?\n(A) up\n(B) down"}, "not listed once and in its place"),
            ({"solution": "C"}, "does not name one of the choices"),
            ({"choices": [str(number) for number in range(27)], "solution": "3"}, "27 choices, expected 2 to 26"),
            ({"solution": "up"}, "does not name one of the choices"),
            ({"solution": None}, "expected a text or a number"),
            ({"solution": ""}, "the solution holds no answer"),
            ({"choices": "left, right"}, "expected a list of choices"),
            ({"choices": ["left", "Left"]}, "two choices are equal"),
            ({"choices": ["left", " "]}, "a choice is empty"),
            ({"category": " "}, "category is empty"),
            ({"image": None}, "has no image"),
            ({"image": "nowhere.jpg"}, "its image is missing"),
            ({"id": "0"}, "another row has the same id"),
        ],
    )
    def test_a_bad_row_is_named(self, texts, change, reason):
        good = {"question": "Where?", "solution": "A", "choices": ["left", "right"], "category": "Relation"}
        path = texts([{**good, "id": "0"}, {**good, "id": "1", **change}])
        with pytest.raises(ValueError, match=r"1 bad row, the first is mine/[01]: ") as refused:
            Table(path=path)
        assert reason in str(refused.value) and "\n" not in str(refused.value)
        assert len(Table(path=path, bad_rows="skip")) == 1

    def test_a_broken_image_is_named_when_it_is_read(self, parquet):
        examples = Table(path=parquet([{**own_row(0), "image": {"bytes": scene(0)[0][:200], "path": None}}]))
        with pytest.raises(ValueError, match=r"^mine/scene-0: its image"):
            examples[0]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "no column question; its columns are image, problem, solution; say which holds the question with"),
            ({"layout": "trl"}, "no column prompt"),
            ({"columns": {"question": "text"}}, "no column text"),
            ({"columns": {"choices": "options"}, "layout": "r1_v"}, "no column options"),
            ({"columns": {"label": "solution"}}, r"columns\.label: expected one of images, question, solution"),
            ({"layout": "r1v"}, "layout=r1v: expected one of columns, trl, r1_v, easyr1"),
            ({"choices": "guess"}, "choices=guess: expected one of as_written, from_answers"),
            ({"part": "test"}, "part=test: expected one of all, train, probe"),
        ],
    )
    def test_wrong_columns_and_arguments_are_named(self, parquet, arguments, message):
        with pytest.raises(ValueError, match=message):
            Table(path=parquet([r1_v_row(0)]), **arguments)

    def test_two_columns_for_one_field_are_not_chosen_from(self, texts):
        row = {"images": ["photo.jpg"], **listed("Where?\n(A) left\n(B) right", "A")}
        with pytest.raises(ValueError, match=r"both images and image are there; say which with columns\.images"):
            Table(path=texts([row]))
        assert len(Table(path=texts([row]), columns={"images": "images"})) == 1


class TestThoughts:
    QUESTION = "Where?\n(A) left\n(B) right"

    def test_a_column_that_is_named_is_read(self, texts):
        path = texts([listed(self.QUESTION, "A", thought="It stands left.")])
        [example] = Table(path=path, columns={"thought": "thought"})
        assert example.thought == "It stands left."
        assert Table(path=path)[0].thought is None

    def test_what_is_trained_on_decides_the_fingerprint(self, texts):
        one, other = (
            Table(path=texts([listed(self.QUESTION, "A", why=why)]), columns={"thought": "why"}).fingerprint()
            for why in ("It stands left.", "It is left.")
        )
        assert one != other

    @pytest.mark.parametrize(
        ("thought", "reason"),
        [
            (None, "why is None, expected text"),
            (" ", "why is ' ', expected text"),
            ("<think>Left.</think>", "the thought holds <think>: give the reasoning alone"),
            ("Left. <answer>A</answer>", "the thought holds <answer>"),
            ("Left.<|im_end|>", r"the thought holds <|im_end|>, which is mark-up to a model"),
        ],
    )
    def test_one_that_cannot_be_imitated_makes_a_bad_row(self, texts, thought, reason):
        path = texts([listed(self.QUESTION, "A", why=thought), listed(self.QUESTION, "A", why="Left.")])
        with pytest.raises(ValueError, match="mine/0: ") as refused:
            Table(path=path, columns={"thought": "why"})
        assert reason in str(refused.value) and "\n" not in str(refused.value)
        assert len(Table(path=path, columns={"thought": "why"}, bad_rows="skip")) == 1


class TestConfigs:
    def test_the_probe_follows_the_training_settings(self, parquet):
        overrides = [
            "dataset=table",
            f"dataset.path={parquet([{**r1_v_row(number), 'text': 'How many?'} for number in range(40)])}",
            "dataset.train.layout=r1_v",
            "dataset.train.columns.question=text",
            "dataset.train.choices=from_answers",
            "scale.probe_size=8",
            "tracker=none",
        ]
        experiment = prepare(compose_config(overrides))
        assert (len(experiment.train), len(experiment.probe)) == (32, 8)
        assert experiment.probe[0].question.startswith("How many? Select from")
        assert not {example.id for example in experiment.train} & {example.id for example in experiment.probe}

    def test_a_table_is_a_benchmark_too(self, parquet):
        path = parquet([own_row(number) for number in range(4)])
        config = compose_config(["benchmark=table", f"benchmark.path={path}"])
        assert len(build(config.benchmark.examples)) == 4

    def test_a_path_must_be_given(self):
        with pytest.raises(ValueError, match=r"dataset\.path"):
            prepare(compose_config(["dataset=table"]))
