"""Responses made elsewhere: what is taken, and what is refused by its line."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from visual_r1.datasets.spatial import Spatial
from visual_r1.files import write_json, write_jsonl, write_parquet, write_text
from visual_r1.scoring.reference import Reference
from visual_r1.scoring.responses import disagreements, read_responses

QUESTIONS = Spatial(split="test", size=4)
IDS = [question.id for question in QUESTIONS]


def rows(**more):
    return [{"id": name, "response": f"x</think><answer>{name[-1]}</answer>", **more} for name in IDS]


def read(tmp_path, lines, **options):
    path = tmp_path / "responses.jsonl"
    write_text(path, lines) if isinstance(lines, str) else write_jsonl(path, lines)
    return read_responses(path, lambda: QUESTIONS, **options)["after"]


def test_lines_in_any_order_become_rollouts_in_the_benchmarks(tmp_path):
    responses = read(tmp_path, rows()[::-1])
    assert [one.example.id for one in responses.rollouts] == IDS
    assert [one.completion for one in responses.rollouts] == [row["response"] for row in rows()]
    assert [one.example.solution for one in responses.rollouts] == [one.solution for one in QUESTIONS]
    assert not responses.knows_lengths and not responses.missing and responses.verdicts is None
    assert not any(one.example.images for one in responses.rollouts)


@pytest.mark.parametrize("name", [str, int], ids=["text", "number"])
def test_the_number_at_an_ids_end_names_it(tmp_path, name):
    responses = read(tmp_path, [{"id": name(row["id"][-1]), "completion": row["response"]} for row in rows()])
    assert [one.completion for one in responses.rollouts] == [row["response"] for row in rows()]


def test_a_number_that_two_ids_end_in_names_neither(tmp_path):
    two = [replace(QUESTIONS[0], id="a/0"), replace(QUESTIONS[1], id="b/0")]
    write_jsonl(tmp_path / "x.jsonl", [{"id": 0, "response": "x"}])
    with pytest.raises(ValueError, match="no item has the id 0"):
        read_responses(tmp_path / "x.jsonl", lambda: two)


def test_lengths_are_taken_where_all_lines_have_them(tmp_path):
    responses = read(tmp_path, rows(num_tokens=7, is_truncated=True))
    assert responses.knows_lengths and {(one.num_tokens, one.is_truncated) for one in responses.rollouts} == {(7, True)}
    partly = [*rows(num_tokens=7, is_truncated=True)[:3], rows()[3]]
    assert not read(tmp_path, partly).knows_lengths


@pytest.mark.parametrize(
    ("response", "begins_in_thought"),
    [
        ("x</think><answer>B</answer>", True),
        ("<think>x</think><answer>B</answer>", False),
        ("<answer>B</answer>", False),
        ("a <think> b </think>", False),
    ],
)
def test_a_thought_that_was_never_opened_was_opened_by_the_prompt(tmp_path, response, begins_in_thought):
    responses = read(tmp_path, [{**row, "response": response} for row in rows()])
    assert responses.rollouts[0].prompt_opens_think is begins_in_thought


GOOD = [json.dumps(row) for row in rows()]
BAD = {
    "broken JSON": ([GOOD[0], '{"id": 1, "resp'], "line 2: not JSON"),
    "no object": ([*GOOD[:2], '"text"'], "line 3: a str, expected an object"),
    "no id": (['{"response": "x"}'], "line 1: no id; expected one as 'spatial/test/0/0', or the number at its end"),
    "unknown id": ([GOOD[0], '{"id": 9, "response": "x"}'], "line 2: no item has the id 9"),
    "double id": (
        [*GOOD, '{"id": 2, "response": "x"}'],
        "line 5: a second response to spatial/test/0/2, the first is in",
    ),
    "no response": ([*GOOD[:3], '{"id": 3, "answer": "x"}'], "line 4: spatial/test/0/3 has no response"),
    "null response": ([*GOOD[:3], '{"id": 3, "response": null}'], "line 4: spatial/test/0/3 has no response"),
    "missing": (
        GOOD[1:3],
        "no response to 2 of 4 items (spatial/test/0/0, spatial/test/0/3); complete the file, or count",
    ),
    "empty": ([], "no response to 4 of 4 items"),
    "nested too deep": (["[" * 100_000], "line 1: not JSON"),
    "a negative length": (
        [json.dumps(row) for row in rows(num_tokens=-1, is_truncated=False)],
        "line 1: num_tokens=-1",
    ),
    "a length that is a truth value": (
        [json.dumps(row) for row in rows(num_tokens=True, is_truncated=False)],
        "line 1: num_tokens=True",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_named_in_one_line(tmp_path, name):
    lines, message = BAD[name]
    with pytest.raises(ValueError) as refused:
        read(tmp_path, "\n".join(lines))
    assert message in str(refused.value) and "responses.jsonl" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("length", [{"num_tokens": "7", "is_truncated": False}, {"num_tokens": 7, "is_truncated": 0}])
def test_a_length_of_another_type_is_named(tmp_path, length):
    with pytest.raises(ValueError, match=r"line 1: num_tokens=.*7.* is_truncated=.*, expected as 12 and false"):
        read(tmp_path, rows(**length))


def test_missing_responses_count_as_wrong_and_unread(tmp_path):
    responses = read(tmp_path, rows()[:2], allow_missing=True)
    assert responses.missing == tuple(IDS[2:])
    assert [one.completion for one in responses.rollouts] == [rows()[0]["response"], rows()[1]["response"], "", ""]
    assert not any(Reference()(one) or Reference().is_read(one) for one in responses.rollouts[2:])


def test_a_byte_order_mark_is_no_part_of_a_response(tmp_path):
    assert not read(tmp_path, "\ufeff" + "\n".join(map(json.dumps, rows()))).missing


def test_a_benchmark_without_items_is_named(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", rows())
    with pytest.raises(ValueError, match="the benchmark has no item"):
        read_responses(tmp_path / "x.jsonl", lambda: [])


def test_other_line_ends_inside_a_response_are_kept(tmp_path):
    odd = "a\u2028b\x0cc\x85d"
    text = "\n".join(json.dumps({**row, "response": odd}, ensure_ascii=False) for row in rows())
    assert {one.completion for one in read(tmp_path, text).rollouts} == {odd}


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"x\.jsonl: neither text in UTF-8"):
        read_responses(tmp_path / "x.jsonl", lambda: QUESTIONS)


def reference_item(**replaced):
    item = {
        "question": "Which is closer?",
        "options": ["chair", "table"],
        "task": "Depth",
        "ground_truth": "(B)",
        "response": "I see the table.",
        "model_answer": "I see the table.",
        "correct": 1,
    }
    return {**item, **replaced}


def read_results(tmp_path, items):
    path = tmp_path / "CVBench_result.json"
    write_json(path, {"results": items, "accuracy": {}, "args": {}})
    return read_responses(path, lambda: pytest.fail("a result file brings its questions along"))["after"]


def test_the_papers_result_file_brings_its_questions_along(tmp_path):
    agreeing = [reference_item(), reference_item(response="I see a chair.", correct=0)]
    responses = read_results(tmp_path, [*agreeing, reference_item(correct=0)])
    first = responses.rollouts[0].example
    assert (first.choices, first.solution, first.category) == (("chair", "table"), "B", "Depth")
    assert responses.verdicts == (True, False, False) and not responses.knows_lengths
    assert disagreements(responses, Reference()) == (2,)


def test_the_forks_result_file_has_no_task(tmp_path):
    item = reference_item()
    del item["task"]
    assert read_results(tmp_path, [item]).rollouts[0].example.category == "all"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"question": "x"}, "item 1: no options"),
        (reference_item(ground_truth="(C)"), "item 1: solution 'C' is none of"),
        (reference_item(ground_truth=2), "item 1: its question, options and ground_truth are not text"),
        (reference_item(response=None), "item 1: results/1 has no response"),
        (reference_item(options="AB"), "item 1: its question, options and ground_truth are not text"),
        (reference_item(correct="false"), "item 1: correct is 'false', expected true or false"),
        ("text", "item 1: a str, expected an object"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_item_of_a_result_file_is_named(tmp_path, item, message):
    with pytest.raises(ValueError) as refused:
        read_results(tmp_path, [reference_item(), item])
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_result_file_without_items_is_named(tmp_path):
    with pytest.raises(ValueError, match="no list of items"):
        read_results(tmp_path, [])


def test_a_table_that_is_no_runs_is_named(tmp_path):
    path = tmp_path / "evaluation.parquet"
    write_parquet(path, [{"when": "after", "example_id": "x"}])
    with pytest.raises(ValueError, match="no column question; expected the evaluation"):
        read_responses(path, lambda: QUESTIONS)
    write_text(path, "not a table")
    with pytest.raises(ValueError, match=r"evaluation\.parquet: "):
        read_responses(path, lambda: QUESTIONS)
