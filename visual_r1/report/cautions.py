"""What a reader must know before believing a number: the report's warnings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from visual_r1.prompts import prompt_style
from visual_r1.report.comparisons import Comparison
from visual_r1.report.groups import Results
from visual_r1.report.runs import Run

MAX_TRUNCATED = 0.10
MIN_PARSED = 0.90
MAX_PROMPT_GAP = 0.10
"""Between accuracy on the probe, as it is trained, and on the benchmark, as it is evaluated."""


@dataclass(frozen=True, kw_only=True)
class Caution:
    """One warning."""

    about: str
    """Its kind, in a word or two: ``truncation``, ``parse rate``."""
    where: str
    text: str


def cautions(runs: Sequence[Run], results: Sequence[Results], comparisons: Sequence[Comparison]) -> tuple[Caution, ...]:
    """All warnings, those about what was measured first; the same text about several runs is one warning."""
    found = [one for run in runs for one in _of_run(run)]
    found += [one for result in results for one in _of_results(result)]
    found += _of_comparisons(comparisons)
    found += _of_runs(runs)
    merged: dict[tuple[str, str], list[str]] = {}
    for one in found:
        merged.setdefault((one.about, one.text), []).append(one.where)
    return tuple(Caution(about=about, where=", ".join(where), text=text) for (about, text), where in merged.items())


def _of_run(run: Run) -> Iterator[Caution]:
    def caution(about: str, text: str) -> Caution:
        return Caution(about=about, where=run.label, text=text)

    measured = (
        *((f"on the benchmark, {when}", run.summary.get(f"truncated_rate_{when}")) for when in run.moments),
        ("on the probe, last visit", run.last("probe/format/truncated_rate")),
        ("in training, last step", run.last("completions/clipped_ratio")),
    )
    for where, share in measured:
        if isinstance(share, int | float) and share > MAX_TRUNCATED:
            text = f"{_percent(share)} of completions were cut at the length limit ({where}): a cut answer counts as"
            yield caution("truncation", f"{text} wrong, and lengths are those of the limit")
    measured = (
        *((f"on the benchmark, {when}", run.summary.get(f"parse_rate_{when}")) for when in run.moments),
        ("on the probe, first visit", run.summary.get("probe_parse_rate_before")),
        ("on the probe, last visit", run.summary.get("probe_parse_rate_after")),
    )
    for where, share in measured:
        if isinstance(share, int | float) and share < MIN_PARSED:
            text = f"only {_percent(share)} of answers could be read ({where}): accuracy there is partly format, and a"
            yield caution("parse rate", f"{text} gain from there partly a format that was learned")
    yield from _prompt_gap(run, caution)
    is_trained = bool(run.last_step)
    if is_trained and not any("probe/accuracy" in row for row in run.rows):
        text = "no probe was measured: its curves are of shuffled training prompts, and step 0 is missing"
        yield caution("no probe", text)
    if run.provenance.get("resumes"):
        count = len(run.provenance["resumes"])
        text = f"resumed {count} time{'s' if count > 1 else ''}; time is the sum of the steps that are on record"
        yield caution("resumed", text)
    if _code(run).get("is_dirty"):
        text = "made by code with uncommitted changes; provenance.json holds the difference"
        yield caution("uncommitted code", text)


def _prompt_gap(run: Run, caution: Callable[[str, str], Caution]) -> Iterator[Caution]:
    model = run.part("model")
    try:
        style = prompt_style(str(model.get("style")), str(model.get("prompt")))
    except ValueError:
        style = None
    if style is not None and style.for_evaluation().template != style.template:
        text = f"model.prompt={model.get('prompt')} asks the benchmark with another prompt than training and the probe"
        yield caution("prompt", text)
    for when in run.moments:
        probe, benchmark = run.summary.get(f"probe_accuracy_{when}"), run.summary.get(f"accuracy_{when}")
        if probe is None or benchmark is None or abs(benchmark - probe) <= MAX_PROMPT_GAP:
            continue
        temperatures = (run.part("scale").get("probe_temperature"), run.part("benchmark").get("temperature"))
        sampled = f"temperature {temperatures[0]} against {temperatures[1]}; " if None not in temperatures else ""
        text = (
            f"{when} training, accuracy is {_percent(probe)} on the probe, asked as in training, and "
            f"{_percent(benchmark)} on the benchmark ({sampled}other items): a curve is not the table's number"
        )
        yield caution("training against evaluation", text)


def _of_results(result: Results) -> Iterator[Caution]:
    accuracy = result.get("accuracy")
    if accuracy is None or accuracy.low is None:
        return
    blank, above, majority = (result.get(name) for name in ("blank_accuracy", "above_blank", "majority"))
    if blank is not None and above is not None and above.low is not None and above.low <= 0:
        text = (
            f"accuracy is {_percent(accuracy.value)}, and {_percent(blank.value)} with blank images; paired by item, "
            "it is not clearly above that: answers need not come from the image"
        )
        yield Caution(about="blank images", where=result.label, text=text)
    if majority is not None and accuracy.low <= majority.value:
        text = f"accuracy is not above always giving the most frequent answer ({_percent(majority.value)})"
        yield Caution(about="baseline", where=result.label, text=text)


def _of_comparisons(comparisons: Iterable[Comparison]) -> Iterator[Caution]:
    for one in comparisons:
        where = f"{one.one} - {one.other}"
        size = abs(one.difference.estimate)
        least = min((count for count in one.num_seeds if count is not None), default=1)
        seeds = f"{least} seed{'s' if least > 1 else ''}"
        best = ", if seeds did not matter" if one.takes_seeds_as_equal else ""
        if size < one.smallest and one.is_resolved:
            text = (
                f"the difference of {100 * size:.1f} points is resolved, but smaller than the "
                f"{100 * one.smallest:.1f} that {one.num_items} items and {seeds} find four times in five{best}: what "
                "is found so is more often too large than too small"
            )
            yield Caution(about="too few seeds", where=where, text=text)
        elif size < one.smallest:
            text = (
                f"the difference of {100 * size:.1f} points is not resolved, and smaller than the "
                f"{100 * one.smallest:.1f} that {one.num_items} items and {seeds} find four times in five{best}: more "
                "seeds or items are needed to claim it"
            )
            yield Caution(about="too few seeds", where=where, text=text)
        elif one.has_one_seed:
            text = "one side has a single seed: the interval is over items and says nothing about other seeds"
            yield Caution(about="too few seeds", where=where, text=text)


def _of_runs(runs: Sequence[Run]) -> Iterator[Caution]:
    everywhere = f"all {len(runs)} runs"
    commits = dict.fromkeys(str(_code(run).get("commit"))[:10] for run in runs)
    if len(commits) > 1:
        text = f"the runs were made by {len(commits)} commits: {', '.join(commits)}"
        yield Caution(about="different code", where=everywhere, text=text)
    for data in ("train", "probe", "benchmark"):
        hashes = dict.fromkeys(str(_recorded(run, "data").get(data)) for run in runs)
        if len(hashes) > 1:
            text = f"the runs have {len(hashes)} different data sets as {data} (by fingerprint)"
            yield Caution(about="different data", where=everywhere, text=text)
    lists = dict.fromkeys(str(run.part("keywords").get("name")) for run in runs)
    if len(lists) > 1:
        text = f"reflection was counted by different keyword lists: {', '.join(lists)}"
        yield Caution(about="different keywords", where=everywhere, text=text)
    asked = dict.fromkeys(f"{run.part('model').get('style')}/{run.part('model').get('prompt')}" for run in runs)
    if len(asked) > 1:
        text = f"the runs were asked in different prompts (style/wording): {', '.join(asked)}"
        yield Caution(about="different prompts", where=everywhere, text=text)


def _code(run: Run) -> dict[str, Any]:
    return _recorded(run, "code")


def _recorded(run: Run, part: str) -> dict[str, Any]:
    """A part of a run's provenance; empty where an older version had none, or another thing by that name."""
    found = run.provenance.get(part)
    return found if isinstance(found, dict) else {}


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
