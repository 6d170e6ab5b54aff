"""The report as one HTML file: no network, opens from disk. What runs have written enters it as text only."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from visual_r1.report.across import Drawn, Findings
from visual_r1.report.cautions import Caution
from visual_r1.report.curves import Chart, Entry
from visual_r1.report.phrases import phrase_table
from visual_r1.report.runs import LeftOut, Run
from visual_r1.report.tables import Cell, Scale, Table

_HERE = Path(__file__).parent

COLOURS = {
    "light": ("#0072B2", "#C24E00", "#00785A", "#A8437F", "#7A6000", "#4F5BB5", "#5A606B", "#B3261E"),
    "dark": ("#56B4E9", "#FF9A4D", "#2FCB9B", "#E59AC8", "#F0E442", "#A9B1FF", "#BFC5CF", "#FF8F85"),
}
"""Okabe and Ito's, darker or lighter until each stands out from its background; marks tell them apart too."""


def as_page(found: Findings, drawn: Drawn) -> str:
    """The HTML of a report."""
    parts = {
        "results": ("Results", _results(found)),
        "warnings": ("Warnings", _warnings(found.cautions)),
        "aha-moment": ("Aha moment", _curves(drawn)),
        "reflection": ("Does reflection help?", _causes(found)),
        "details": ("By category, by run, published", _details(found)),
        "rollouts": ("Rollouts", _browser(drawn)),
        "runs": ("What was run", _runs(found)),
        "left-out": ("Left out", _left_out((*found.left_out, *drawn.left_out))),
    }
    parts = {key: value for key, value in parts.items() if value[1]}
    filled = {
        "title": escape(_title(found)),
        "lead": escape(_lead(found)),
        "nav": "".join(f'<a href="#{key}">{escape(title)}</a>' for key, (title, _) in parts.items()),
        "sections": "\n".join(
            f'<section id="{key}" aria-labelledby="h-{key}"><h2 id="h-{key}">{escape(title)}</h2>{body}</section>'
            for key, (title, body) in parts.items()
        ),
        "made": escape(f"Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by visual-r1 report."),
        "licences": escape(
            f"Charts: Plotly.js, in the Python package plotly {version('plotly')}, Plotly, Inc., MIT licence, "
            "https://github.com/plotly/plotly.js; it is packed into this file, which fetches nothing."
        ),
        "css": _asset("page.css"),
        "js": _asset("page.js").replace("/*CHARTS*/", _asset("charts.js")).replace("/*BROWSER*/", _asset("browser.js")),
        "data": island(_data(found, drawn)),
        "rollouts": _packed(
            json.dumps(
                {"runs": drawn.browsed.runs, "examples": drawn.browsed.examples, "images": drawn.browsed.images},
                separators=(",", ":"),
                allow_nan=False,
            )
        ),
        "plotly": _packed(_plotly()),
    }
    # In one pass over the template: what is filled in may hold the mark of another place.
    pieces = _asset("page.html").split("{{")
    rest = (piece.split("}}", 1) for piece in pieces[1:])
    return pieces[0] + "".join(filled[name] + after for name, after in rest)


def island(value: Any) -> str:
    """JSON that may stand inside a script element: no text in it can end the element or open a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def table_html(table: Table) -> str:
    """A table that scrolls by itself where the page is narrow."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    rows = "".join(
        f"<tr>{_cell(row[0], 'th')}{''.join(_cell(cell, 'td') for cell in row[1:])}</tr>" for row in table.rows
    )
    return (
        f'<h3>{escape(table.title)}</h3><div class="table" tabindex="0" role="region" '
        f'aria-label="{escape(table.title)}"><table aria-label="{escape(table.title)}"><thead>'
        f"<tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        f'<p class="note">{escape(table.note)}</p>'
    )


def _cell(cell: Cell, tag: str) -> str:
    tone = f' class="{escape(cell.tone)}"' if cell.tone else ""
    scope = ' scope="row"' if tag == "th" else ""
    below = f"<small>{escape(cell.below)}</small>" if cell.below else ""
    body = _scale(cell.scale) if cell.scale else escape(cell.text)
    return f"<{tag}{scope}{tone}>{body}{below}</{tag}>"


def _scale(scale: Scale) -> str:
    def at(value: float) -> str:
        return f"left:{100 * min(1.0, max(0.0, value)):.1f}%"

    parts = []
    if scale.chance is not None:
        parts.append(f'<i class="chance" style="{at(scale.chance)}"></i>')
    low, high = scale.after.low, scale.after.high
    if low is not None and high is not None:
        parts.append(f'<i class="ci" style="{at(low)};width:{100 * (min(1.0, high) - max(0.0, low)):.1f}%"></i>')
    if scale.before is not None:
        parts.append(f'<i class="dot before" style="{at(scale.before.value)}"></i>')
    parts.append(f'<i class="dot" style="{at(scale.after.value)}"></i>')
    return f'<div class="scale" aria-hidden="true">{"".join(parts)}</div>'


def _title(found: Findings) -> str:
    names = [group.label for group in found.groups] or [run.label for run in found.runs.runs]
    return ", ".join(names) if len(names) <= 4 else f"{names[0]} and {len(names) - 1} others"


def _lead(found: Findings) -> str:
    count = len(found.runs.runs)
    benchmarks = f" on {', '.join(found.benchmarks)}" if found.benchmarks else ""
    finished = len(found.runs.finished)
    state = "" if finished == count else f", {count - finished} of them unfinished"
    warnings = len(found.cautions)
    return (
        f"{count} run{'s' if count != 1 else ''}{state}; {len(found.groups)} "
        f"configuration{'s' if len(found.groups) != 1 else ''}{benchmarks}. "
        f"{warnings or 'No'} warning{'s' if warnings != 1 else ''}, {len(found.left_out) or 'nothing'} left out."
    )


def _results(found: Findings) -> str:
    if not found.groups:
        return "<p>No run is finished, so there is no result yet; what is measured so far is in the curves.</p>"
    return _tables(found.main_tables())


def _details(found: Findings) -> str:
    tables = found.detail_tables()
    by_run = [table for table in tables if "run by run" in table.title]
    return _tables([table for table in tables if table not in by_run]) + (
        f"<details><summary>Run by run, {len(found.by_run)} runs</summary>{_tables(by_run)}</details>" if by_run else ""
    )


def _causes(found: Findings) -> str:
    short, tables = found.reflection_summary(), found.reflection_tables()
    if not tables:
        return ""
    count = sum(len(table.rows) for table in tables)
    return (_tables([short]) if short else "") + (
        f"<details><summary>All {count} measures, question by question</summary>{_tables(tables)}</details>"
    )


def _tables(tables: Sequence[Table]) -> str:
    return "".join(table_html(table) for table in tables)


def _warnings(cautions: Sequence[Caution]) -> str:
    if not cautions:
        return "<p>None: nothing cut, nothing unreadable, no prompt that differs, seeds enough for what is claimed.</p>"
    return f'<ul class="cautions">{"".join(_item(one.about, one.where, one.text) for one in cautions)}</ul>'


def _left_out(left_out: Sequence[LeftOut]) -> str:
    if not left_out:
        return "<p>Nothing.</p>"
    return f'<ul class="cautions quiet">{"".join(_item(one.what, one.where, one.why) for one in left_out)}</ul>'


def _item(head: str, where: str, text: str) -> str:
    return f"<li><b>{escape(head)}</b>{escape(text)}<small>{escape(where)}</small></li>"


def _curves(drawn: Drawn) -> str:
    if not drawn.curves:
        return "<p>No run has a curve.</p>"
    several = any(len(entry.runs) > 1 for entry in drawn.entries)
    band = (
        "Lines are means over seeds, bands the 95 % t-interval over seeds at each step; of a single seed, shares on "
        "the probe have a band over its examples instead."
        if several
        else "Each line is a single seed: a band, where there is one, is over the probe's examples and says nothing "
        "about other seeds."
    )
    return (
        f"<p>{band} Smoothing is a centred mean of neighbouring points, of the band's ends too: it changes "
        "lines, bands and the values that hovering or the arrow keys read, never the tables.</p>"
        '<div class="bar" id="bar"></div><ul class="legend" id="legend"></ul>'
        '<div class="aha" id="aha"></div>'
        '<h3 id="h-controls" style="margin-top:1.4rem">Controls: what else could explain it</h3>'
        '<div class="charts" id="controls"></div>'
        f"{_phrases(drawn)}"
        "<noscript><p>Curves and rollouts need JavaScript; the tables do not.</p></noscript>"
    )


def _phrases(drawn: Drawn) -> str:
    table = phrase_table(drawn.entries)
    if table is None:
        return ""
    return (
        '<h3 id="h-phrases" style="margin-top:1.4rem">Phrase by phrase</h3>'
        "<p>Completions that hold this phrase of the run's own list, within longer phrases too. One phrase may "
        "carry the whole rise; read in the rollouts whether it is a doubt or a habit.</p>"
        f'<div class="charts" id="phrases"></div>{table_html(table)}'
    )


_BROWSER = """
<p>What the policy wrote, in the run's own record. Filters combine.</p>
<div class="filters">
<label>Run <select id="run"></select></label>
<label>From <select id="kind"><option value="p">held-out probe</option><option value="t">training</option></select>
</label>
<span class="step"><button type="button" id="earlier" aria-label="Earlier step">‹</button>
<select id="step" aria-label="Step"></select>
<button type="button" id="later" aria-label="Later step">›</button></span>
<label>Order <select id="order"><option value="file">as recorded</option><option value="longest">longest first</option>
<option value="reflecting">most reflection first</option><option value="advantage">highest advantage first</option>
</select></label>
</div>
<div class="filters" role="group" aria-label="Filters">
<label><input type="checkbox" id="wrong"> wrong answer</label>
<label><input type="checkbox" id="reflects"> reflects</label>
<label><input type="checkbox" id="changed"> changed its answer</label>
<label><input type="checkbox" id="cut"> cut at the limit</label>
<label>Text <input type="search" id="find" placeholder="words"></label>
</div>
<div class="key"><span class="t">thought</span><span><span class="a">answer</span></span>
<span class="g">&lt;tag&gt;</span><span class="o">outside of both</span><mark>reflecting phrase</mark></div>
<p class="note" id="count" role="status"></p>
<ul class="cards" id="cards"></ul>
<button type="button" id="more" hidden>show more</button>
"""


def _browser(drawn: Drawn) -> str:
    return _BROWSER if drawn.browsed.runs else "<p>No run has rollouts on record.</p>"


def _runs(found: Findings) -> str:
    runs = found.runs.runs
    facts = {
        "command": [
            str(run.summary.get("command") or " ".join(map(str, run.provenance.get("command") or ()))) for run in runs
        ],
        "started": [str(run.provenance.get("started", "–")) for run in runs],
        "resumed": [str(len(run.provenance.get("resumes") or ())) for run in runs],
        "commit": [_commit(run) for run in runs],
        "steps": [str(run.last_step) for run in runs],
        "wall time, s": [str(run.summary.get("wall_seconds", "–")) for run in runs],
        "keyword list": [str(run.part("keywords").get("name", "–")) for run in runs],
        **{f"data, {name}": [_part(run, "data", name) for run in runs] for name in ("train", "probe", "benchmark")},
        **{
            f"hardware, {name}": [_part(run, "hardware", name) for run in runs] for name in ("cpu", "num_cores", "gpus")
        },
        **{name: [_part(run, "versions", name) for run in runs] for name in ("torch", "transformers", "trl", "vllm")},
    }
    everywhere = {key: values for key, values in found.differences.items() if "-" not in values}
    somewhere = {key: values for key, values in found.differences.items() if "-" in values}
    body = ""
    if everywhere:
        body += _text_table("What the configurations differ in", runs, everywhere)
    elif len(runs) > 1 and not somewhere:
        body += "<p>The configurations differ in nothing but name, seed and folder.</p>"
    if somewhere:
        table = _text_table("Settings that only some of the runs have", runs, somewhere)
        body += (
            f"<details><summary>{len(somewhere)} settings that only some of the runs have</summary>{table}</details>"
        )
    same = {key: values[0] for key, values in facts.items() if len(set(values)) == 1 and len(runs) > 1}
    if same:
        shown = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in same.items())
        body += f'<h3>The same in all runs</h3><dl class="same">{shown}</dl>'
    return body + _text_table("Provenance", runs, {key: value for key, value in facts.items() if key not in same})


def _text_table(title: str, runs: Sequence[Run], rows: Mapping[str, Sequence[str]]) -> str:
    """Runs with the same text in every row share a column."""
    columns: dict[tuple[str, ...], list[str]] = {}
    for index, run in enumerate(runs):
        columns.setdefault(tuple(values[index] for values in rows.values()), []).append(run.label)
    head = "".join(f'<th scope="col">{escape(", ".join(labels))}</th>' for labels in columns.values())
    body = "".join(
        f'<tr><th scope="row">{escape(key)}</th>'
        + "".join(f"<td>{escape(values[place])}</td>" for values in columns)
        + "</tr>"
        for place, key in enumerate(rows)
    )
    return (
        f'<h3>{escape(title)}</h3><div class="table" tabindex="0" role="region" aria-label="{escape(title)}">'
        f'<table class="text" aria-label="{escape(title)}"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _commit(run: Run) -> str:
    code = run.provenance.get("code")
    code = code if isinstance(code, dict) else {}
    commit = str(code.get("commit") or run.summary.get("commit") or "–")[:10]
    return f"{commit} with uncommitted changes" if code.get("is_dirty") else commit


def _part(run: Run, part: str, name: str) -> str:
    node = run.provenance.get(part)
    value = node.get(name) if isinstance(node, dict) else None
    return "–" if value in (None, []) else str(value)


def _data(found: Findings, drawn: Drawn) -> dict[str, Any]:
    chances = {fact.value for one in found.by_group if (fact := one.get("chance"))}
    return {
        "colours": {name: list(colours) for name, colours in COLOURS.items()},
        "chance": chances.pop() if len(chances) == 1 else None,
        "entries": [_entry(entry) for entry in drawn.entries],
        "charts": [_chart(chart) for chart in drawn.charts],
        "curves": drawn.curves,
    }


def _entry(entry: Entry) -> dict[str, Any]:
    count = len(entry.runs)
    about = f"{count} seeds" if count > 1 else "one seed"
    return {"label": entry.label, "finished": entry.is_finished, "about": about if entry.is_finished else ""}


def _chart(chart: Chart) -> dict[str, Any]:
    return {
        "key": chart.key,
        "title": chart.title,
        "unit": chart.unit,
        "note": chart.note,
        "place": chart.place,
        "choices": [
            {
                "label": choice.label,
                "lines": [
                    {"label": line.label, "probe": line.probe, "train": line.train, "dash": line.dash}
                    for line in choice.lines
                ],
            }
            for choice in chart.choices
        ],
    }


def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _plotly() -> str:
    import plotly.offline

    return plotly.offline.get_plotlyjs()


def _packed(text: str) -> str:
    # mtime: the same report is the same file.
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=9, mtime=0)).decode()
