"""Invariant 9: accuracy never stands alone; every number here is counted by hand."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from PIL import Image

from visual_r1.evaluation import BlankImages, Report, check_scoring, evaluate, summarise, with_blank_images
from visual_r1.examples import Example
from visual_r1.files import write_parquet
from visual_r1.metrics.reflection import Reflection
from visual_r1.rollout.engine import Completion, Sampling
from visual_r1.scoring.reference import Reference
from visual_r1.scoring.responses import read_responses
from visual_r1.scoring.strict import Strict
from visual_r1.statistics import wilson

RED = (250, 0, 0)
SIZE = (56, 112)  # on nano's grid of pixels, so no image is resized
SAMPLING = Sampling(max_completion_length=30, temperature=0.0)
REFLECTION = Reflection(phrases=("wait",))


def example(number, category, solution, num_choices):
    return Example(
        id=f"item/{number}",
        images=(Image.new("RGB", SIZE, RED),),
        question=f"Question {number}?",
        choices=("red", "green", "blue", "grey")[:num_choices],
        solution=solution,
        category=category,
    )


# Four of Count with two choices (letters A A A B), two of Depth with four (B C).
EXAMPLES = [
    *(example(number, "Count", letter, 2) for number, letter in enumerate("AAAB")),
    *(example(number, "Depth", letter, 4) for number, letter in enumerate("BC", start=4)),
]
# What is said about the image, and what is said about the blank in its place.
SAID = [
    ("a thought</think> <answer>A</answer>", "x</think> <answer>A</answer>"),  # right and well formed; blind: right
    ("wait, no</think> <answer>B</answer>", "x</think> <answer>A</answer>"),  # wrong, reflects; blind: right
    ("a thought</think> red it is", ""),  # names nothing
    ("</think> <answer>(b)</answer>", "x</think> <answer>A</answer>"),  # right, but an empty thought
    ("a thought</think> <answer>green</answer>", "x</think> <answer>A</answer>"),  # right, but cut off below
    ("a thought wait</think> <answer>C</answer>", "x</think> <answer>C</answer>"),  # right, reflects; blind: right
]
TRUNCATED = "item/4"

# What is said when the choices have moved on by one place, and the word that the question is known by then.
AGAIN = "Once more"
SAID_AGAIN = [
    "x</think> <answer>red</answer>",  # the same words, right
    "x</think> <answer>green</answer>",  # the same words, wrong
    "",
    "x</think> <answer>(B)</answer>",  # the same letter, other words
    "x</think> <answer>(C)</answer>",  # the same words by another letter, right
    "x</think> blue",
]


@dataclass
class Scripted:
    """An engine that says what the script holds for a question, image or blank."""

    batch_size: int = 4
    needs_correction: bool = False
    takes_prefixes: bool = False
    warn_logp_difference: float | None = None
    seeds: list[int] = field(default_factory=list)
    tokenizer: Any = None

    def check(self, source):
        pass

    @contextmanager
    def serving(self, policy):
        self.tokenizer = policy.tokenizer
        yield self

    def generate(self, conversations, *, num_generations, sampling, seed, prefixes=None):
        self.seeds.append(seed)
        assert sampling == SAMPLING and num_generations == 1 and len(conversations) <= self.batch_size
        return [[self.complete(conversation)] for conversation in conversations]

    def complete(self, conversation):
        image, text = conversation[0]["content"]
        assert image["image"].size == SIZE
        number = next(n for n in range(len(SAID)) if f"Question {n}?" in text["text"])
        is_blank = image["image"].getpixel((0, 0)) != RED
        said = SAID_AGAIN[number] if AGAIN in text["text"] else SAID[number][is_blank]
        ids = self.tokenizer(said)["input_ids"]
        is_truncated = EXAMPLES[number].id == TRUNCATED and not is_blank
        ids = ids if is_truncated else [*ids, self.tokenizer.eos_token_id]
        return Completion(prompt_ids=(), token_ids=tuple(ids), logps=(0.0,) * len(ids), is_truncated=is_truncated)


@pytest.fixture(scope="module")
def report(policies):
    return evaluate(policies["base"], Scripted(), EXAMPLES, benchmark="six", sampling=SAMPLING, reflection=REFLECTION)


def test_accuracy_has_its_context(report):
    summary = report.summary()
    assert summary["benchmark"] == "six" and summary["num_items"] == 6
    assert summary["accuracy"] == pytest.approx(4 / 6)
    # Wilson's interval for 4 of 6, by hand: (4 + 1.9207 -+ 1.96 * sqrt(4 * 2 / 6 + 0.9604)) / (6 + 3.8415)
    assert summary["accuracy_interval"] == pytest.approx([0.29999, 0.90323], abs=1e-4)
    assert summary["chance"] == pytest.approx((4 / 2 + 2 / 4) / 6)
    assert summary["majority"] == pytest.approx((3 + 1) / 6)  # A of Count, either of Depth
    assert summary["blank_accuracy"] == pytest.approx(3 / 6)
    assert summary["blank_accuracy_interval"] == pytest.approx([0.18761, 0.81239], abs=1e-4)
    assert summary["parse_rate"] == pytest.approx(5 / 6)
    assert summary["well_formed_rate"] == pytest.approx(3 / 6)
    assert summary["truncated_rate"] == pytest.approx(1 / 6)
    assert summary["reflection"] == pytest.approx(2 / 6)
    assert summary["length"] == pytest.approx(sum(rollout.num_tokens for rollout in report.rollouts) / 6)
    assert summary["length"] > 5


def test_every_category_has_the_same_context(report):
    summary = report.summary()
    categories = summary["by_category"]
    assert list(categories) == ["Count", "Depth"]
    for measured in categories.values():
        assert measured.keys() == summary.keys() - {"benchmark", "by_category", "scorers"}
    count, depth = categories["Count"], categories["Depth"]
    assert (count["num_items"], depth["num_items"]) == (4, 2)
    assert (count["accuracy"], depth["accuracy"]) == (2 / 4, 2 / 2)
    assert (count["chance"], depth["chance"]) == (1 / 2, 1 / 4)
    assert (count["majority"], depth["majority"]) == (3 / 4, 1 / 2)
    assert (count["blank_accuracy"], depth["blank_accuracy"]) == (2 / 4, 1 / 2)
    assert (count["truncated_rate"], depth["truncated_rate"]) == (0, 1 / 2)
    assert depth["accuracy_interval"] == [wilson(2, 2).low, wilson(2, 2).high]


def test_items_are_what_the_summary_counts(report):
    items = report.items()
    assert [item["example_id"] for item in items] == [one.id for one in EXAMPLES]
    assert [item["choice"] for item in items] == ["A", "B", None, "B", "B", "C"]
    assert [item["correct"] for item in items] == [True, False, False, True, True, True]
    assert [item["blank_choice"] for item in items] == ["A", "A", None, "A", "A", "C"]
    assert [item["blank_correct"] for item in items] == [True, True, False, False, False, True]
    assert [item["well_formed"] for item in items] == [True, True, False, False, False, True]
    assert [item["is_truncated"] for item in items] == [False] * 4 + [True, False]
    assert [item["reflection"] for item in items] == [[], ["wait"], [], [], [], ["wait"]]
    assert [item["completion"] for item in items] == [said for said, _ in SAID]


def test_every_scorer_judges_the_same_responses(policies):
    engine = Scripted()
    scorers = {"reference": Reference(), "strict": Strict()}
    report = evaluate(
        policies["base"],
        engine,
        EXAMPLES,
        benchmark="six",
        sampling=SAMPLING,
        reflection=REFLECTION,
        scorers=scorers,
    )
    assert len(engine.seeds) == 4  # two batches with the image, two without
    summary = report.summary()
    strict, reference = summary["scorers"]["strict"], summary["scorers"]["reference"]
    assert strict.items() <= {**summary, "by_category": strict["by_category"], "by_group": {}}.items()
    assert strict["by_category"]["Depth"].items() <= summary["by_category"]["Depth"].items()
    # By the lenient rule the third is right, too: "a thought" and "red" are both A.
    assert reference["accuracy"] == 5 / 6
    assert reference["accuracy_interval"] == [wilson(5, 6).low, wilson(5, 6).high]
    assert reference["parse_rate"] == 5 / 6 and reference["truncated_rate"] == 1 / 6
    assert (reference["chance"], reference["majority"]) == (summary["chance"], summary["majority"])
    assert reference["by_category"]["Count"]["accuracy"] == 3 / 4
    assert [item["correct_reference"] for item in report.items()] == [True, False, True, True, True, True]
    assert [item["correct"] for item in report.items()] == [True, False, False, True, True, True]


def test_each_scorer_says_how_often_it_found_an_answer(rollout):
    report = Report(
        benchmark="one",
        rollouts=(rollout("<answer>neither</answer>"), rollout("right")),
        reflection=REFLECTION,
        scorers={"strict": Strict(), "reference": Reference()},
    )
    scorers = report.summary()["scorers"]
    assert (scorers["strict"]["parse_rate"], scorers["reference"]["parse_rate"]) == (0, 1 / 2)


def test_a_benchmark_names_no_scorer_and_has_the_strict_one(report):
    assert list(report.summary()["scorers"]) == ["strict"]


def test_the_headline_cannot_be_renamed():
    with pytest.raises(ValueError, match=r"benchmark\.scorers\.strict=Reference: the headline's rule is Strict"):
        check_scoring(EXAMPLES, scorers={"strict": Reference()}, option_swap=False)


class Rotatable(list):
    """Examples whose choices can be put in another order."""

    def rotated(self, num_steps):
        return [
            replace(
                one,
                question=f"{one.question} {AGAIN}",
                choices=one.choices[-num_steps:] + one.choices[:-num_steps],
                solution=one.letters[(one.letters.index(one.solution) + num_steps) % len(one.choices)],
            )
            for one in self
        ]


def test_swapped_options_show_who_chooses_letters(policies):
    report = evaluate(
        policies["base"],
        Scripted(),
        Rotatable(EXAMPLES),
        benchmark="six",
        sampling=SAMPLING,
        reflection=REFLECTION,
        option_swap=True,
    )
    summary = report.summary()
    # red red, green green, nothing nothing, (B) green and then red, green green, blue and then nothing
    assert summary["swap_consistency"] == 3 / 6
    assert summary["swap_consistency_interval"] == [wilson(3, 6).low, wilson(3, 6).high]
    assert summary["both_orders_accuracy"] == 2 / 6  # the first and the fifth
    assert summary["both_orders_accuracy_interval"] == [wilson(2, 6).low, wilson(2, 6).high]
    assert summary["accuracy"] == pytest.approx(4 / 6)  # of the first order, as ever
    assert summary["by_category"]["Depth"]["swap_consistency"] == 1 / 2
    assert [item["rotated_choice"] for item in report.items()] == ["B", "A", None, "B", "C", None]
    assert [item["rotated_correct"] for item in report.items()] == [True, False, False, False, True, False]
    assert report.items()[4]["rotated_choices"] == ["grey", "red", "green", "blue"]
    after = summarise(None, summary, steps=0)
    assert after["swap_consistency_after"] == 3 / 6 and "both_orders_accuracy_after_interval" in after


def test_choices_that_keep_their_order_are_refused_at_the_start(policies):
    message = r"benchmark\.option_swap=true: list cannot put its choices in another order"
    with pytest.raises(ValueError, match=message):
        check_scoring(EXAMPLES, scorers={}, option_swap=True)
    engine = Scripted()
    with pytest.raises(ValueError, match=message):
        evaluate(
            policies["base"],
            engine,
            EXAMPLES,
            benchmark="six",
            sampling=SAMPLING,
            reflection=REFLECTION,
            option_swap=True,
        )
    assert not engine.seeds


def test_the_report_holds_no_images(report):
    assert not any(rollout.example.images for rollout in (*report.rollouts, *report.blank_rollouts))


def test_items_are_all_that_scoring_again_needs(report, tmp_path):
    path = tmp_path / "evaluation.parquet"
    collected = tuple(replace(one, example=replace(one.example, subset="COCO")) for one in report.rollouts)
    report = replace(report, rollouts=collected)
    write_parquet(path, [{"when": when, **item} for when in ("before", "after") for item in report.items()])
    moments = read_responses(path, lambda: pytest.fail("a run brings its questions along"))
    assert list(moments) == ["before", "after"]
    again = moments["after"]
    assert again.knows_lengths and again.rollouts[0].example.subset == "COCO"
    read = Report(benchmark="six", rollouts=again.rollouts, blank_rollouts=again.blank_rollouts, reflection=REFLECTION)
    assert read.summary() == report.summary()


def test_what_nobody_measured_is_no_number(report):
    unknown = replace(report, blank_rollouts=(), knows_lengths=False)
    for measured in (unknown.summary(), unknown.summary()["by_category"]["Count"]):
        for name in ("blank_accuracy", "blank_accuracy_interval", "truncated_rate", "length"):
            assert measured[name] is None
    assert unknown.summary()["accuracy"] == report.summary()["accuracy"]
    assert "blank_choice" not in unknown.items()[0]


def test_batches_have_seeds_of_their_own(policies):
    engine = Scripted()
    evaluate(policies["base"], engine, EXAMPLES, benchmark="six", sampling=SAMPLING, reflection=REFLECTION, seed=10)
    assert engine.seeds == [10, 14, 10, 14]  # the image and the blank in its place draw alike


def test_blank_images_keep_all_but_the_picture():
    blank = with_blank_images(EXAMPLES[0])
    assert blank.images[0].size == EXAMPLES[0].images[0].size
    assert blank.images[0].getcolors() == [(56 * 112, (128, 128, 128))]
    assert (blank.id, blank.question, blank.solution) == (EXAMPLES[0].id, EXAMPLES[0].question, EXAMPLES[0].solution)
    blanks = BlankImages(EXAMPLES)
    assert len(blanks) == 6 and [one.id for one in blanks[2:4]] == ["item/2", "item/3"]
    assert blanks[0].images[0].getpixel((0, 0)) != RED


def test_the_summary_of_a_run_holds_before_and_after(report):
    worse = Report(
        benchmark="six", rollouts=report.blank_rollouts, blank_rollouts=report.blank_rollouts, reflection=REFLECTION
    )
    summary = summarise(worse.summary(), report.summary(), seed=7, steps=3)
    assert (summary["seed"], summary["steps"], summary["num_items"]) == (7, 3, 6)
    assert (summary["accuracy_before"], summary["accuracy_after"]) == pytest.approx((3 / 6, 4 / 6))
    assert summary["accuracy_before_interval"] == pytest.approx([0.18761, 0.81239], abs=1e-4)
    assert summary["accuracy_after_interval"] == pytest.approx([0.29999, 0.90323], abs=1e-4)
    assert (summary["reflection_before"], summary["reflection_after"]) == pytest.approx((0, 2 / 6))
    assert summary["length_after"] > summary["length_before"]
    assert summary["chance"] == pytest.approx(2.5 / 6) and summary["majority"] == pytest.approx(4 / 6)
    assert summary["by_category"]["Depth"]["before"]["accuracy"] == 1 / 2
    assert summary["by_category"]["Depth"]["after"]["accuracy"] == 1
    assert summary["scorers"]["strict"]["before"]["accuracy"] == 3 / 6
    assert not {"scorers_after", "by_category_after"} & summary.keys()
    measured = (
        "accuracy",
        "blank_accuracy",
        "parse_rate",
        "well_formed_rate",
        "truncated_rate",
        "length",
        "reflection",
    )
    for name in measured:
        assert {f"{name}_before", f"{name}_after"} <= summary.keys()


def test_the_summary_of_an_evaluation_has_no_before(report):
    summary = summarise(None, report.summary(), steps=0)
    assert summary["accuracy_after"] == pytest.approx(4 / 6)
    assert not [key for key in summary if "before" in key]
    assert list(summary["by_category"]["Count"]) == ["after"]
