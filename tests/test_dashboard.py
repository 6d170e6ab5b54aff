"""The W&B workspace draws what runs log: all that matters of it, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from visual_r1 import dashboard
from visual_r1.cli import main
from visual_r1.config import compose_config
from visual_r1.experiment import prepare, run
from visual_r1.tracking import read_offline_wandb

TINY = (
    *("scale.num_threads=1", "scale.max_steps=2", "scale.prompts_per_step=2", "scale.num_generations=4"),
    *("scale.micro_batch_size=4", "scale.max_completion_length=24", "scale.train_size=16", "scale.probe_size=32"),
    *(
        "scale.probe_every_steps=1",
        "scale.benchmark_size=4",
        "scale.save_every_steps=2",
        "scale.rollouts_every_steps=1",
    ),
)
# What is logged and in no panel: epochs of a table that is seen in part, and the benchmark's numbers, which are of the
# end and stand in the runs table.
UNDRAWN = ("epoch", "benchmark/*")


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """The curves that W&B was given by a run of the model that ships with the project."""
    place = tmp_path_factory.mktemp("runs")
    experiment = prepare(compose_config([*TINY, f"runs_dir={place}", "tracker=offline"]))
    run(experiment)
    [file] = experiment.folder.path.glob("wandb/offline-run-*/*.wandb")
    history = read_offline_wandb(file).history
    return {key for row in history for key in row if key[0] != "_" and key != "step"}


def test_each_panel_draws_what_a_run_logs(logged):
    panels = dashboard.panels()
    assert len(panels) > 30
    for panel in panels:
        for name in panel.curves:
            one = dashboard.Panel(section="", title="", curves=(name,))
            assert any(one.draws(curve) for curve in logged), f"{panel.section}: {panel.title}: {name}"


def test_each_curve_of_a_run_is_drawn(logged):
    panels = dashboard.panels()
    undrawn = dashboard.Panel(section="", title="", curves=UNDRAWN)
    left = {curve for curve in logged if not undrawn.draws(curve) and not any(panel.draws(curve) for panel in panels)}
    assert left == {"rollouts/train", "rollouts/probe"}  # the tables
    sent = json.dumps([section._to_model().model_dump() for section in dashboard._contents()["sections"]])
    assert all(f'"{table}"' in sent for table in left)


def test_the_sections_are_those_of_the_question():
    sections = list(dict.fromkeys(panel.section for panel in dashboard.panels()))
    assert sections == ["aha moment", "reward terms", "lengths", "groups", "optimisation", "parity", "time"]


def test_a_panel_takes_its_own_curves_only():
    panel = dashboard.Panel(section="", title="", curves=("rewards/*/mean", "kl"))
    assert panel.draws("rewards/format/mean") and panel.draws("kl")
    assert not panel.draws("probe/rewards/format/mean") and not panel.draws("rewards/format/std")


def test_a_dry_run_needs_neither_network_nor_key(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["dashboard", "--dry-run", "--project", "mine"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "project mine" in printed[0] and printed[1] == "aha moment"
    assert printed[2] == "  accuracy on the probe: probe/accuracy"
    assert len(printed) == 1 + 7 + len(dashboard.panels())


def test_without_a_key_it_says_how_to_get_one(tmp_path, monkeypatch, capsys):
    import wandb

    monkeypatch.setattr(wandb, "login", lambda **_: False)
    assert main(["dashboard"]) == 2
    assert "nobody is logged in to W&B: wandb login, or --dry-run" in capsys.readouterr().err


def test_without_its_package_it_names_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    assert main(["dashboard"]) == 2
    assert "pip install wandb-workspaces" in capsys.readouterr().err


class Views(BaseHTTPRequestHandler):
    """W&B's API, as far as a workspace is concerned: views by name, in memory."""

    saved: dict[str, dict] = {}
    num_calls = 0

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        given = asked.get("variables") or {}
        if "upsertView" in asked["query"]:
            type(self).num_calls += 1
            view = {"id": given.get("id") or f"id{len(self.saved)}", "name": given["name"], **given}
            self.saved[view["id"]] = view
            data = {"upsertView": {"view": {"id": view["id"], "name": view["name"]}, "inserted": "id" not in given}}
        elif "allViews" in asked["query"]:
            nodes = [view for view in self.saved.values() if view["name"] == given["viewName"]]
            edges = [{"node": {key: view[key] for key in ("id", "displayName", "spec")}} for view in nodes]
            data = {"project": {"allViews": {"edges": edges}}}
        else:
            data = {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        answer = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format, *args):
        """Says nothing."""


def test_a_second_call_brings_the_same_workspace_up_to_date(tmp_path):
    Views.saved.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Views)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **{"PATH": "", "HOME": str(tmp_path), "WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40},
        "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}",
    }
    script = (
        "import sys\nfrom visual_r1.cli import main\n"
        "for more in ([], [], ['--name', 'another']):\n"
        "    assert main(['dashboard', '--entity', 'me', *more]) == 0\n"
    )
    end = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    server.shutdown()
    assert end.returncode == 0, end.stderr
    addresses = [line for line in end.stdout.splitlines() if line.startswith("http")]
    assert addresses[0] == addresses[1] != addresses[2] and "/me/visual-r1?nw=" in addresses[0]
    assert Views.num_calls == 3 and sorted(view["displayName"] for view in Views.saved.values()) == [
        "aha moment",
        "another",
    ]
