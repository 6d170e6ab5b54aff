"""Responses made elsewhere, read from a file: what ``visual-r1 score`` scores.

Three kinds of file are told apart by what they hold: JSON lines of an item each, the result file of the paper's
evaluators, and the ``evaluation.parquet`` of a run here. The last two bring their questions along.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from visual_r1.examples import Example, Rollout
from visual_r1.scoring.scorer import Scorer

_NUM_NAMED = 5
"""Ids that a message names; the others it counts."""


@dataclass(frozen=True, kw_only=True)
class Responses:
    """One response an item, in the order of the questions."""

    rollouts: tuple[Rollout, ...]
    blank_rollouts: tuple[Rollout, ...] = ()
    """The same items asked with a grey image, where the file has them."""
    knows_lengths: bool
    """Every response says how many tokens it has and whether it was cut; where not, 0 and False stand here."""
    missing: tuple[str, ...] = ()
    """Ids of the items without a response. An empty one stands for each, which is wrong and cannot be read."""
    verdicts: tuple[bool, ...] | None = None
    """The file's own verdict on each response, where it has them."""


def read_responses(
    path: Path, benchmark: Callable[[], Sequence[Example]], *, allow_missing: bool = False
) -> dict[str, Responses]:
    """Reads a file of responses by the moment of a run, "before" and "after"; a foreign file has "after" alone.

    Args:
        path: The file.
        benchmark: Gives the questions; called only for a file that does not bring them along.
        allow_missing: Takes a file that has no response to some of the questions.

    Raises:
        ValueError: a line, a row or an item that cannot be used, by its number; an unknown or a second id; an item
            without a response.
        OSError: the file cannot be read.
    """
    if path.suffix == ".parquet":
        return _read_run(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: neither text in UTF-8 nor a .parquet file ({error.reason})") from None
    if (results := _reference_results(text)) is not None:
        return {"after": _read_reference(path, results)}
    return {"after": _read_lines(path, text, benchmark, allow_missing=allow_missing)}


def disagreements(responses: Responses, scorer: Scorer) -> tuple[int, ...]:
    """Positions of the responses on which a file's own verdict is another than a scorer's; none where it has none."""
    pairs = zip(responses.rollouts, responses.verdicts or (), strict=False)
    return tuple(position for position, (rollout, verdict) in enumerate(pairs) if scorer(rollout) != verdict)


def _read_lines(path: Path, text: str, benchmark: Callable[[], Sequence[Example]], *, allow_missing: bool) -> Responses:
    """Lines of ``{"id": ..., "response": ...}``, with ``num_tokens`` and ``is_truncated`` where all of them have it."""
    rows = list(_objects(path, text))
    examples = benchmark()
    questions = [replace(examples[index], images=()) for index in range(len(examples))]
    if not questions:
        raise ValueError(f"{path}: the benchmark has no item that it could be scored on")
    positions = _positions(questions)
    expected = f"expected one as {questions[0].id!r}, or the number at its end"
    given: dict[int, tuple[str, Mapping[str, Any]]] = {}
    for where, row in rows:
        if "id" not in row:
            raise ValueError(f"{where}: no id; {expected}")
        position = positions.get(str(row["id"]))
        if position is None:
            raise ValueError(f"{where}: no item has the id {row['id']!r}; {expected}")
        if position in given:
            first = given[position][0]
            raise ValueError(f"{where}: a second response to {questions[position].id}, the first is in {first}")
        given[position] = (where, row)
    missing = [question.id for position, question in enumerate(questions) if position not in given]
    if missing and not allow_missing:
        raise ValueError(
            f"{path}: no response to {len(missing)} of {len(questions)} items ({_some(missing)}); "
            "complete the file, or count them as wrong with --allow-missing"
        )
    knows_lengths = not missing and all({"num_tokens", "is_truncated"} <= row.keys() for _, row in given.values())
    nothing = ("", {"response": ""})
    return Responses(
        rollouts=tuple(
            _rollout(question, *given.get(position, nothing), knows_lengths=knows_lengths)
            for position, question in enumerate(questions)
        ),
        knows_lengths=knows_lengths,
        missing=tuple(missing),
    )


def _objects(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each line's object, with where it stands."""
    # Not splitlines(): a response may hold other line ends, which JSON leaves as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: a {type(row).__name__}, expected an object with id and response")
        yield where, row


def _positions(questions: Sequence[Example]) -> dict[str, int]:
    """Where each id stands; the number at an id's end stands for it, too, where no other id ends so."""
    ends = [question.id.rpartition("/")[2] for question in questions]
    count = Counter(ends)
    numbers = {end: position for position, end in enumerate(ends) if count[end] == 1}
    return numbers | {question.id: position for position, question in enumerate(questions)}


def _rollout(question: Example, where: str, row: Mapping[str, Any], *, knows_lengths: bool) -> Rollout:
    response = row.get("response", row.get("completion"))
    if not isinstance(response, str):
        raise ValueError(f"{where}: {question.id} has no response; expected text as its response or completion")
    num_tokens, is_truncated = (row["num_tokens"], row["is_truncated"]) if knows_lengths else (0, False)
    if type(num_tokens) is not int or num_tokens < 0 or not isinstance(is_truncated, bool):
        raise ValueError(f"{where}: num_tokens={num_tokens!r} is_truncated={is_truncated!r}, expected as 12 and false")
    return Rollout(
        example=question,
        completion=response,
        num_tokens=num_tokens,
        is_truncated=is_truncated,
        prompt_opens_think=_begins_in_thought(response),
    )


def _begins_in_thought(response: str) -> bool:
    """A thought is closed that was never opened: the prompt must have opened it."""
    before, closed, _ = response.partition("</think>")
    return bool(closed) and "<think>" not in before


def _reference_results(text: str) -> Any | None:
    """``results`` of a file that the paper's evaluators wrote; None for any other text."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return whole.get("results") if isinstance(whole, dict) else None


def _read_reference(path: Path, results: Any) -> Responses:
    """What the paper's evaluators write of an item: question, options, truth, response, verdict, and often its task."""
    if not isinstance(results, list) or not results:
        raise ValueError(f"{path}: its results are no list of items")
    rollouts, verdicts = [], []
    for index, item in enumerate(results):
        where = f"{path}, item {index}"
        if not isinstance(item, dict):
            raise ValueError(f"{where}: a {type(item).__name__}, expected an object")
        try:
            if not isinstance(item["options"], list):
                raise TypeError(f"options is {item['options']!r}")
            if item["correct"] not in (0, 1):
                raise ValueError(f"correct is {item['correct']!r}, expected true or false")
            question = Example(
                id=f"results/{index}",
                images=(),
                question=item["question"],
                choices=tuple(item["options"]),
                solution=item["ground_truth"].strip("()"),
                category=item.get("task") or "all",
            )
            verdicts.append(bool(item["correct"]))
        except KeyError as error:
            raise ValueError(f"{where}: no {error.args[0]}") from None
        except (AttributeError, TypeError) as error:
            raise ValueError(f"{where}: its question, options and ground_truth are not text ({error})") from None
        except ValueError as error:
            raise ValueError(f"{where}: {str(error).removeprefix(f'results/{index}: ')}") from None
        rollouts.append(_rollout(question, where, item, knows_lengths=False))
    return Responses(rollouts=tuple(rollouts), knows_lengths=False, verdicts=tuple(verdicts))


def _read_run(path: Path) -> dict[str, Responses]:
    """The ``evaluation.parquet`` of a run here."""
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
        moments = {when: [row for row in rows if row["when"] == when] for when in ("before", "after")}
        if not moments["after"]:
            raise ValueError(f"{path}: holds no items")
        return {when: _of_run(moment) for when, moment in moments.items() if moment}
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    except KeyError as error:
        raise ValueError(f"{path}: no column {error.args[0]}; expected the evaluation.parquet of a run") from None


def _of_run(rows: Sequence[Mapping[str, Any]]) -> Responses:
    rollouts = tuple(
        Rollout(
            example=Example(
                id=row["example_id"],
                images=(),
                question=row["question"],
                choices=tuple(row["choices"]),
                solution=row["solution"],
                category=row["category"],
                subset=row["subset"],
            ),
            completion=row["completion"],
            num_tokens=row["num_tokens"],
            is_truncated=row["is_truncated"],
            prompt_opens_think=row["prompt_opens_think"],
        )
        for row in rows
    )
    blanks = tuple(replace(one, completion=row["blank_completion"]) for one, row in zip(rollouts, rows, strict=True))
    return Responses(rollouts=rollouts, blank_rollouts=blanks, knows_lengths=True)


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_NUM_NAMED]) + (", ..." if len(ids) > _NUM_NAMED else "")
