"""What all table-backed data sets share: bad rows stop the start, choices move as told, nothing piles up."""

from __future__ import annotations

import json
import pickle
import random
from collections import Counter

import psutil
import pytest

from tests.tables import photograph
from visual_r1.datasets.adapter import (
    Item,
    TableExamples,
    position_of_letter,
    position_of_words,
    text,
    texts,
    with_choices,
)
from visual_r1.datasets.rows import open_rows


class Quiz(TableExamples):
    """The smallest adapter: each column means what its name says."""

    def __init__(self, path, **options):
        super().__init__(
            open_rows(path), name="quiz", columns=("id", "question", "choices", "answer", "image"), **options
        )

    def row_id(self, row, number):
        return f"quiz/{row['id']}"

    def item(self, row):
        choices = texts(row, "choices")
        return Item(choices=choices, answer=position_of_words(text(row, "answer"), choices), category="Quiz")

    def question(self, row, choices):
        return f"{text(row, 'question')} {' or '.join(choices)}?"

    def images(self, row):
        return row["image"]


@pytest.fixture
def quiz(tmp_path):
    """Writes a table of good rows, after they were spoiled, and returns its path."""
    (tmp_path / "picture.jpg").write_bytes(photograph(0))

    def write(num_rows=6, spoil=None):
        rows = [
            {
                "id": n,
                "question": f"What is {n}?",
                "choices": ["x", "y", "z"],
                "answer": "xyz"[n % 3],
                "image": "picture.jpg",
            }
            for n in range(num_rows)
        ]
        if spoil is not None:
            spoil(rows)
        path = tmp_path / "quiz.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def test_a_row_becomes_an_example_when_it_is_read(quiz):
    examples = Quiz(quiz())
    assert len(examples) == 6
    example = examples[4]
    assert (example.id, example.question, example.choices) == ("quiz/4", "What is 4? x or y or z?", ("x", "y", "z"))
    assert (example.solution, example.solution_text, example.category) == ("B", "y", "Quiz")
    assert [image.size for image in example.images] == [(96, 96)]
    assert examples[-1].id == "quiz/5" and [one.id for one in examples[1:3]] == ["quiz/1", "quiz/2"]
    with pytest.raises(IndexError):
        examples[6]


def test_no_pixels_are_decoded_at_the_start(quiz, tmp_path):
    path = quiz()
    (tmp_path / "picture.jpg").write_bytes(b"no picture")
    examples = Quiz(path)
    with pytest.raises(ValueError, match=r"quiz/2: its image is in no image format"):
        examples[2]


BAD = {
    "an empty question": ("question", " ", "question is ' ', expected text"),
    "a question that is no text": ("question", 7, "question is 7, expected text"),
    "an answer that is no choice": ("answer", "w", "the answer 'w' is none of the choices"),
    "no answer": ("answer", None, "answer is None, expected text"),
    "equal choices": ("choices", ["x", "y", " Y"], "two choices are equal"),
    "an empty choice": ("choices", ["y", ""], "a choice is empty"),
    "one choice": ("choices", ["y"], "1 choices"),
    "too many choices": ("choices", [str(n) for n in range(26)] + ["y"], "27 choices"),
    "no choices": ("choices", None, "choices is None, expected a list of texts"),
    "choices that are no texts": ("choices", ["y", 2], "choices is ['y', 2], expected a list of texts"),
    # Found by a run that died in its second step: the processor counts such a token as one more image.
    "a model's own mark-up": ("question", "Is <|image_pad|> red", "the question holds <|image_pad|>, which is mark-up"),
    "mark-up in a choice": ("choices", ["x", "y", "z", "<|im_end|>"], "the question holds <|im_end|>"),
    "another row's id": ("id", 0, "another row has the same id"),
    "a missing image": ("image", "nine.jpg", "its image is missing: there is no file"),
    "no image": ("image", None, "has no image"),
    "one image of two missing": ("image", ["picture.jpg", "nine.jpg"], "image 2 of 2 is missing"),
}


@pytest.mark.parametrize(("column", "value", "reason"), BAD.values(), ids=BAD)
def test_a_bad_row_stops_the_start(column, value, reason, quiz):
    def spoil(rows):
        for number in (4, 1):
            rows[number][column] = value
        if column == "id":
            rows[4]["id"] = 4  # one row's id given twice is one bad row

    with pytest.raises(ValueError) as refused:
        Quiz(quiz(spoil=spoil))
    message = str(refused.value)
    first = "quiz/0" if column == "id" else "quiz/1"
    assert f"the first is {first}: {reason}" in message and "\n" not in message
    assert f"{1 if column == 'id' else 2} bad row" in message and "bad_rows=skip" in message


def test_bad_rows_can_be_left_out(quiz, capsys):
    def spoil(rows):
        rows[1]["answer"] = "w"
        rows[3]["image"] = "nine.jpg"

    examples = Quiz(quiz(spoil=spoil), bad_rows="skip")
    assert [example.id for example in examples] == ["quiz/0", "quiz/2", "quiz/4", "quiz/5"]
    assert [row.id for row in examples.bad] == ["quiz/1", "quiz/3"]
    said = capsys.readouterr().err
    assert "left out 2 bad rows, the first is quiz/1: the answer 'w'" in said and said.count("\n") == 1
    examples.rotated(1)
    assert not capsys.readouterr().err


def test_size_takes_the_first_good_rows(quiz):
    def spoil(rows):
        rows[1]["answer"] = rows[5]["answer"] = "w"

    path = quiz(spoil=spoil)
    assert [example.id for example in Quiz(path, size=3, bad_rows="skip")] == ["quiz/0", "quiz/2", "quiz/3"]
    assert [example.id for example in Quiz(path, first_rows=3, bad_rows="skip")] == ["quiz/0", "quiz/2"]
    assert len(Quiz(path, size=1)) == 1  # what is not needed is not looked at
    assert len(Quiz(quiz(), size=99)) == 6


@pytest.mark.parametrize("options", [{"size": -1}, {"first_rows": -1}, {"bad_rows": "ignore"}], ids=str)
def test_wrong_options_are_refused(options, quiz):
    (name,) = options
    with pytest.raises(ValueError, match=f"quiz: {name}={options[name]}"):
        Quiz(quiz(), **options)


class TestOrder:
    def test_an_order_depends_on_seed_and_id_alone(self, quiz):
        orders = {example.id: example.choices for example in Quiz(quiz(40), shuffle_seed=0)}
        shuffled = lambda rows: random.Random(1).shuffle(rows)  # noqa: E731
        assert {example.id: example.choices for example in Quiz(quiz(40, shuffled), shuffle_seed=0)} == orders
        assert {example.id: example.choices for example in Quiz(quiz(40), shuffle_seed=1)} != orders
        # As it is on every machine and under every version of Python.
        assert ["".join(orders[f"quiz/{n}"]) for n in range(6)] == ["yxz", "yzx", "xzy", "zyx", "zxy", "zyx"]

    def test_every_order_is_as_likely(self, quiz):
        orders = Counter(example.choices for example in Quiz(quiz(600), shuffle_seed=0))
        assert len(orders) == 6 and 70 < min(orders.values()) <= max(orders.values()) < 130

    def test_the_right_choice_stays_right(self, quiz):
        path = quiz()
        for examples in (Quiz(path, shuffle_seed=0), Quiz(path, shuffle_seed=3).rotated(2)):
            assert [example.solution_text for example in examples] == ["x", "y", "z"] * 2
            assert all(" or ".join(example.choices) in example.question for example in examples)

    def test_rotation_moves_each_choice_on(self, quiz):
        def spoil(rows):
            rows[1]["choices"] = ["x", "y"]

        examples = Quiz(quiz(spoil=spoil), size=2)
        turned = [examples.rotated(steps) for steps in range(4)]
        assert ["".join(data[0].choices) for data in turned] == ["xyz", "zxy", "yzx", "xyz"]
        assert [data[0].solution for data in turned] == ["A", "B", "C", "A"]
        assert ["".join(data[1].choices) for data in turned] == ["xy", "yx", "xy", "yx"]
        assert [data[1].solution for data in turned] == ["B", "A", "B", "A"]
        assert {data[0].id for data in turned} == {"quiz/0"}
        assert turned[1].rotated(1)[0].choices == turned[2][0].choices
        assert examples[0].choices == ("x", "y", "z")


def test_the_fingerprint_names_what_decides_the_examples(quiz, tmp_path):
    def fingerprint(column=None, value=None, num_rows=6, **options):
        def spoil(rows):
            if column is not None:
                rows[3][column] = value

        return Quiz(quiz(num_rows, spoil), **options).fingerprint()

    prints = [
        fingerprint(),
        fingerprint("question", "Why?"),
        fingerprint("choices", ["z", "y", "x"]),
        fingerprint("answer", "z"),
        fingerprint("id", 33),
        fingerprint("image", ["picture.jpg", "picture.jpg"]),
        fingerprint(size=5),
        fingerprint(num_rows=7),
        fingerprint(shuffle_seed=0),
        fingerprint(shuffle_seed=1),
        Quiz(quiz()).rotated(1).fingerprint(),
    ]
    assert len(set(prints)) == len(prints)
    assert prints[0] == fingerprint() == fingerprint(size=6)
    (tmp_path / "picture.jpg").write_bytes(photograph(1))
    assert fingerprint() != prints[0]


def test_examples_travel_to_another_process(quiz):
    examples = Quiz(quiz(), shuffle_seed=0).rotated(1)
    again = pickle.loads(pickle.dumps(examples))
    assert again[3].choices == examples[3].choices and again.fingerprint() == examples.fingerprint()


def test_reading_thousands_of_rows_holds_no_file_and_no_image(quiz):
    examples = Quiz(quiz(5_000))
    process = psutil.Process()
    examples[0]
    files, memory = process.num_fds(), process.memory_info().rss
    total = sum(example.images[0].width for example in examples)
    assert total == 5_000 * 96
    assert process.num_fds() == files
    # All images at once would take 138 MB.
    assert process.memory_info().rss - memory < 20e6


class TestAnswers:
    @pytest.mark.parametrize(("words", "position"), [("left", 0), (" Left ", 0), ("right, then left", 1)])
    def test_words_name_a_choice(self, words, position):
        assert position_of_words(words, ["left", "right, then left"]) == position

    @pytest.mark.parametrize("words", ["", "lef", "right", "A"])
    def test_words_that_name_none_are_refused(self, words):
        with pytest.raises(ValueError, match="none of the choices"):
            position_of_words(words, ["left", "right, then left"])

    @pytest.mark.parametrize(("letter", "position"), [("A", 0), ("(B)", 1), (" b ", 1), ("(a)", 0)])
    def test_letters_name_a_choice(self, letter, position):
        assert position_of_letter(letter, ["left", "right"]) == position

    @pytest.mark.parametrize("letter", ["C", "(C)", "", "()", "AB", "1", "left"])
    def test_letters_that_name_none_are_refused(self, letter):
        with pytest.raises(ValueError, match="letters"):
            position_of_letter(letter, ["left", "right"])


class TestWithChoices:
    PROMPT = "Where is it? Select from the following choices.\n(A) left\n(B) right"

    def test_the_same_order_is_the_same_text(self):
        assert with_choices(self.PROMPT, ["left", "right"], ("left", "right")) == self.PROMPT
        assert with_choices("In no form at all", ["left", "right"], ("left", "right")) == "In no form at all"

    def test_another_order_replaces_the_list(self):
        swapped = with_choices(self.PROMPT, ["left", "right"], ["right", "left"])
        assert swapped == "Where is it? Select from the following choices.\n(A) right\n(B) left"
        assert with_choices(swapped, ["right", "left"], ["left", "right"]) == self.PROMPT

    @pytest.mark.parametrize("prompt", ["Where?\n(A) left\n(B) right\n", "Where? (A) left (B) right", "Where?"])
    def test_a_prompt_of_another_form_is_refused(self, prompt):
        with pytest.raises(ValueError, match="cannot change places"):
            with_choices(prompt, ["left", "right"], ["right", "left"])


def test_rows_are_drawn_from_the_whole_table_and_the_same_each_time(quiz):
    path = quiz(40)
    ids = [example.id for example in Quiz(path, size=10, is_drawn=True)]
    assert ids == [example.id for example in Quiz(path, size=10, is_drawn=True)]
    numbers = [int(one.removeprefix("quiz/")) for one in ids]
    assert numbers == sorted(set(numbers)) and len(numbers) == 10 and numbers[-1] >= 20
    assert len(Quiz(path, size=100, is_drawn=True)) == len(Quiz(path, is_drawn=True)) == 40
    prints = {Quiz(path, size=size, is_drawn=True).fingerprint() for size in (9, 10, None)}
    assert len(prints) == 3


def test_an_answer_that_also_names_another_choice_is_refused(quiz):
    def spoil(rows):
        rows[2] |= {"choices": ["B", "A"], "answer": "A"}  # choice B in words, choice A as a letter

    with pytest.raises(ValueError, match=r"quiz/2: its answer 'B' also names another of the choices"):
        Quiz(quiz(spoil=spoil))
