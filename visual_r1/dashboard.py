"""The W&B workspace of a study as code: sections of panels over the curves that every run logs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from visual_r1.errors import first_line

_PANELS = Path(__file__).with_name("dashboard.yaml")


class DashboardError(ValueError):
    """The workspace cannot be made: one line with the reason and the fix."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Curves in one chart, against the step."""

    section: str
    title: str
    curves: tuple[str, ...]
    """Names as in ``metrics.jsonl``; a ``*`` stands for any characters."""

    def draws(self, curve: str) -> bool:
        """Whether a curve of a run is in this panel."""
        return re.fullmatch(self.pattern, curve) is not None

    @property
    def pattern(self) -> str:
        """All curves as one regular expression."""
        return "|".join(re.escape(name).replace(r"\*", ".*") for name in self.curves)


def panels() -> list[Panel]:
    """The panels in their order, from ``dashboard.yaml``."""
    sections: Mapping[str, Mapping[str, Sequence[str]]] = yaml.safe_load(_PANELS.read_text(encoding="utf-8"))[
        "sections"
    ]
    return [
        Panel(section=section, title=title, curves=tuple(curves))
        for section, charts in sections.items()
        for title, curves in charts.items()
    ]


def lines() -> Iterator[str]:
    """The workspace for a reader: a line a section and a line a panel."""
    section = None
    for panel in panels():
        if panel.section != section:
            section = panel.section
            yield section
        yield f"  {panel.title}: {', '.join(panel.curves)}"


def save(*, project: str, entity: str | None, name: str) -> str:
    """Makes the workspace in W&B, or brings the one of this name up to date; returns its address.

    Runs are grouped by name, so that seeds are one curve with a band.

    Raises:
        DashboardError: wandb-workspaces is missing, nobody is logged in, or W&B refuses.
    """
    import wandb

    try:
        from wandb_workspaces.workspaces import Workspace, internal
    except ImportError as error:
        raise DashboardError(f"wandb-workspaces cannot be loaded ({error}): pip install wandb-workspaces") from error
    if not wandb.login(prompt=False, verify=False):
        raise DashboardError("nobody is logged in to W&B: wandb login, or --dry-run to see the panels only")
    try:
        entity = entity or wandb.Api().default_entity
        if entity is None:
            raise DashboardError("W&B knows no default entity: add --entity, your user or team")
        # W&B gives a view a random name at each save; one that follows from ours is found again.
        digest = hashlib.sha256(f"{entity}/{project}/{name}".encode()).hexdigest()
        internal_name = internal._url_query_str_to_internal_name(digest[:11])
        workspace: Any = Workspace(entity=entity, project=project, name=name, **_contents())
        workspace._internal_name = internal_name
        try:
            workspace._internal_id = internal.View.from_name(entity, project, internal_name).id
        except ValueError as error:
            if "not found in project" not in str(error):
                raise
        workspace.save()
    except DashboardError:
        raise
    except Exception as error:  # wandb's own, the network's, the server's
        raise DashboardError(f"W&B did not take the workspace for {entity}/{project}: {first_line(error)}") from error
    return workspace.url


def _contents() -> dict[str, Any]:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    charts: dict[str, list[Any]] = {}
    for panel in panels():
        is_plain = not any("*" in name for name in panel.curves)
        which: dict[str, Any] = {"y": list(panel.curves)} if is_plain else {"metric_regex": f"^({panel.pattern})$"}
        chart = wr.LinePlot(title=panel.title, x="step", groupby_rangefunc="minmax", **which)
        charts.setdefault(panel.section, []).append(chart)
    sections = [ws.Section(name=name, panels=made, is_open=True) for name, made in charts.items()]
    tables: list[Any] = [
        wr.WeavePanelSummaryTable(table_name=f"rollouts/{source}", layout=wr.Layout(w=24, h=12))
        for source in ("probe", "train")
    ]
    sections.append(ws.Section(name="rollouts", panels=tables))
    return {
        "sections": sections,
        "settings": ws.WorkspaceSettings(x_axis="step", remove_legends_from_panels=False),
        "runset_settings": ws.RunsetSettings(groupby=[ws.Metric("Group")]),
    }
