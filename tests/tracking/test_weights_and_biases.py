"""A W&B file reads back as the record, tables and results with it; and whatever W&B does, the run goes on."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
from PIL import Image

from tests.tracking.rows import TRAINED, rollout_row
from visual_r1.files import write_json
from visual_r1.run_folder import RunFolder
from visual_r1.tracking import FanOut, JsonlTracker, WandbTracker, read_offline_wandb

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {"name": "grpo", "seed": 0, "method": {"trl": {"beta": 0.04}}}
SECRET = "ghp_0123456789abcdef"


def wandb_file(folder):
    [file] = folder.path.glob("wandb/offline-run-*/*.wandb")
    return file


def rows_and_tables(folder, record):
    """What W&B was given, compared with the record row by row and value by value; its tables by step and key."""
    rows = [{key: value for key, value in row.items() if key[0] != "_"} for row in record.history]
    tables = {(row["step"], key): row.pop(key) for row in rows for key in [*row] if key.startswith("rollouts/")}
    assert rows == [{k: v for k, v in row.items() if v is not None} for row in folder.read_metrics()]
    return tables


def cells_of(file, table):
    read = json.loads((file.parent / "files" / table["path"]).read_text())
    return [dict(zip(read["columns"], row, strict=True)) for row in read["data"]]


def images_of(folder):
    staged = folder.path.glob("wandb/artifacts/staging/tmp*")
    return [Image.open(file).size for file in staged if file.read_bytes()[:4] == b"\x89PNG"]


def train(tracker, steps):
    for step in steps:
        tracker.log({"reward": (step % 3) / 3, "loss": 1 / (step + 1), "kl": float("nan")}, step=step)
        tracker.log({"reflection/keyword/wait": 0.5, "time/update": float(step)}, step=step)
        if step % 2 == 0:
            tracker.log({"probe/accuracy": 0.25 * (4 - step)}, step=step)
            tracker.log_rollouts([rollout_row(**TRAINED), rollout_row(completion="(A)", **TRAINED)], step=step)


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """A finished run's folder and what W&B's file of it holds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", SECRET)
        folder = RunFolder(tmp_path_factory.mktemp("runs") / "grpo" / "seed0")
        folder.path.mkdir(parents=True)
        provenance = {
            "started": "today",
            "code": {"commit": "abc", "diff": "+ a line"},
            "config": CONFIG,
            "resumes": [],
        }
        write_json(folder.provenance, provenance)
        code = folder.path.parent / "code"
        for name in ("run.py", "visual_r1/files.py", "conf/config.yaml", "data/notes.txt"):
            (code / name).parent.mkdir(parents=True, exist_ok=True)
            (code / name).write_text(f"# {name}")
        remote = f"https://user:{SECRET}@example.org/code.git"
        subprocess.run(["git", "init", "-q", code], check=True)
        subprocess.run(["git", "-C", code, "remote", "add", "origin", remote], check=True)
        patch.chdir(code)
        tracker = WandbTracker(
            folder, config=CONFIG, group="grpo", job_type="grpo", tags=["laptop", "x" * 80, "laptop"], code=code
        )
        with FanOut([JsonlTracker(folder), tracker]) as tracker:
            train(tracker, range(4))
            report = {"accuracy": 0.5, "accuracy_interval": [0.4, 0.6]}
            moments = {"before": report, "after": {**report, "by_category": {"Depth": {**report, "accuracy": 0.25}}}}
            unreadable = {"after": {"accuracy": None, "problem": "no groups"}}
            write_json(folder.evaluation, {"accuracy": 0.5})
            write_json(folder.summary, {"chance": 0.25, "scorers": {"strict": moments, "groups": unreadable}})
    return folder, read_offline_wandb(wandb_file(folder))


def test_an_offline_run_reads_back_as_metrics_jsonl(offline):
    folder, record = offline
    assert record.is_complete and {key: record.config[key] for key in CONFIG} == CONFIG
    tables = rows_and_tables(folder, record)
    assert list(tables) == [(0, "rollouts/train"), (2, "rollouts/train")]
    one, other = cells_of(wandb_file(folder), tables[0, "rollouts/train"])
    assert one["example"] == "spatial/train/17" and one["score/accuracy"] == 1.0 and one["advantage"] == 0.5
    assert other["completion"] == "(A)" and one["image"] == other["image"] is not None
    assert images_of(folder) == [(28, 28)] * 2  # one for both rollouts of a prompt, in each table


def test_a_run_is_found_by_its_group_type_and_tags(offline):
    _, record = offline
    assert (record.name, record.group, record.job_type) == ("grpo/seed0", "grpo", "grpo")
    assert record.tags == ("laptop", "x" * 64)  # as long as W&B takes it


def test_a_run_shows_its_provenance_without_secrets(offline):
    folder, record = offline
    assert record.config["provenance"] == {"started": "today", "code": {"commit": "abc"}, "resumes": []}
    files = [file for file in folder.path.rglob("*") if file.is_file()]
    for hidden in (SECRET, "example.org/code.git"):  # the remote's address, even where wandb takes its token out
        assert len(files) > 10 and not [file for file in files if hidden.encode() in file.read_bytes()]


def test_the_runs_table_has_the_best_and_the_last(offline):
    _, record = offline
    assert record.summary["probe/accuracy"] == {"max": 1.0, "last": 0.5}
    assert record.summary["reward"] == {"max": 2 / 3, "last": 0}
    assert record.summary["loss"] == {"min": 0.25, "last": 0.25}
    assert record.summary["time/update"] == {"mean": 1.5}
    assert "reflection/keyword/wait" not in record.summary
    assert record.step_axes["reward"] == record.step_axes["probe/accuracy"] == "step"


def test_a_finished_run_adds_its_results(offline):
    _, record = offline
    measured = {key: value for key, value in record.summary.items() if key.startswith("benchmark/")}
    assert measured == {
        "benchmark/chance": 0.25,
        **{
            "benchmark/accuracy/strict": 0.5,
            "benchmark/accuracy/strict/low": 0.4,
            "benchmark/accuracy/strict/high": 0.6,
        },
        "benchmark/accuracy/strict/Depth": 0.25,
        **{"benchmark/accuracy/strict/Depth/low": 0.4, "benchmark/accuracy/strict/Depth/high": 0.6},
        "benchmark/accuracy_before/strict": 0.5,
        **{"benchmark/accuracy_before/strict/low": 0.4, "benchmark/accuracy_before/strict/high": 0.6},
    }
    assert record.artifacts["grpo-seed0-results"] == {
        *("provenance.json", "metrics.jsonl", "summary.json", "evaluation.json")
    }
    assert record.artifacts["grpo-seed0-code"] == {"run.py", "visual_r1/files.py", "conf/config.yaml"}
    assert "grpo-seed0-model" not in record.artifacts


def test_the_model_is_kept_where_it_is_asked_for(folder):
    folder.model.mkdir()
    (folder.model / "model.safetensors").write_bytes(bytes(8))
    write_json(folder.summary, {})
    with WandbTracker(folder, config={}, log_model=True):
        pass
    record = read_offline_wandb(wandb_file(folder))
    assert record.artifacts["grpo-seed0-model"] == {"model.safetensors"}


def test_a_torn_file_reads_as_far_as_it_goes(offline):
    folder, record = offline
    whole = wandb_file(folder).read_bytes()
    torn = folder.path.parent / "torn.wandb"
    lengths = []
    for size in range(8, len(whole), 199):
        torn.write_bytes(whole[:size])
        part = read_offline_wandb(torn)
        assert part.history == record.history[: len(part.history)]
        lengths.append(len(part.history))
    assert lengths == sorted(lengths) and {0, 1, 2, 3} <= set(lengths)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "x.wandb").write_bytes(b"not wandb")
    with pytest.raises(ValueError, match="not a wandb file"):
        read_offline_wandb(tmp_path / "x.wandb")


def warnings_of(ended):
    """What a script has said, apart from what wandb says under its own name."""
    return [line for line in ended.stderr.splitlines() if not line.startswith("wandb: ")]


KILLED = """
import os, pathlib, sys
from tests.tracking.test_weights_and_biases import train
from visual_r1.run_folder import RunFolder
from visual_r1.tracking import FanOut, JsonlTracker, WandbTracker

folder = RunFolder(pathlib.Path(sys.argv[1]))
train(FanOut([JsonlTracker(folder), WandbTracker(folder, config={})]), range(5))
while not list(folder.path.glob("wandb/images/*.png")):
    pass
os.kill(os.getpid(), 9)
"""


def run_script(script, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **{key: str(value) for key, value in environment.items()}},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_killed_and_resumed_run_is_one_run(folder):
    write_json(folder.provenance, {"started": "today"})
    assert run_script(KILLED, folder.path).returncode == -signal.SIGKILL
    killed = wandb_file(folder)
    folder.truncate_metrics(3)  # its checkpoint
    with FanOut([JsonlTracker(folder), WandbTracker(folder, config={})]) as tracker:
        train(tracker, range(4, 7))
    file = wandb_file(folder)
    assert file != killed and file.name == killed.name
    tables = rows_and_tables(folder, read_offline_wandb(file))
    assert [step for step, _ in tables] == [0, 2, 4, 6]
    assert all(row["image"] for table in tables.values() for row in cells_of(file, table))
    assert images_of(folder) == [(28, 28)] * 4  # those of the killed process, too


def test_a_run_that_was_deleted_and_made_anew_is_another(folder):
    ids = []
    for started in ("first", "second"):
        write_json(folder.provenance, {"started": started})
        WandbTracker(folder, config={}).finish()
        ids.append(read_offline_wandb(wandb_file(folder)).run_id)
    assert ids[0] != ids[1]


def test_a_run_that_goes_online_leaves_no_offline_file_to_be_laid_over_it(folder, monkeypatch):
    WandbTracker(folder, config={}).finish()
    assert wandb_file(folder)
    start, started = WandbTracker._start, []

    def watched(tracker, mode):
        started.append((mode, list(folder.path.glob("wandb/offline-run-*"))))
        start(tracker, "offline")  # there is no server here

    monkeypatch.setattr(WandbTracker, "_start", watched)
    monkeypatch.setattr("wandb.login", lambda **_: True)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    WandbTracker(folder, config={}, mode="online").finish()
    assert started == [("online", [])]


def test_a_wandb_that_is_turned_off_is_not_waited_for(folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr("visual_r1.tracking.weights_and_biases.time", None)  # by which it would wait for a file
    tracker = WandbTracker(folder, config={}, mode="online")
    tracker.finish()
    assert not tracker.has_failed and not list(folder.path.glob("wandb/*run-*"))


def test_a_run_without_wandb_goes_on_with_one_warning(folder, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)  # what an import of a missing package meets
    with caplog.at_level(logging.WARNING), FanOut([JsonlTracker(folder), WandbTracker(folder, config={})]) as tracker:
        train(tracker, range(3))
    assert len(caplog.records) == 1 and "W&B could not start" in caplog.text
    assert len(folder.read_metrics()) == 3


def test_a_wandb_that_is_another_package_stops_nothing(folder, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))  # as a folder of this name makes one
    with caplog.at_level(logging.WARNING), FanOut([JsonlTracker(folder), WandbTracker(folder, config={})]) as tracker:
        train(tracker, range(3))
    assert len(caplog.records) == 1 and len(folder.read_metrics()) == 3


# A package on a disk that does not answer: its import never ends, and neither would a second one.
ENDLESS = """
import pathlib, sys
from tests.tracking.test_weights_and_biases import train
from visual_r1.run_folder import RunFolder
from visual_r1.tracking import FanOut, JsonlTracker, WandbTracker, background

background._START_PATIENCE_SECONDS = background._END_PATIENCE_SECONDS = 0.1
folder = RunFolder(pathlib.Path(sys.argv[1]))
with FanOut([JsonlTracker(folder), WandbTracker(folder, config={}, timeout_seconds=0.1)]) as tracker:
    train(tracker, range(3))
"""


def test_a_wandb_whose_import_hangs_stops_nothing(folder, tmp_path):
    (tmp_path / "wandb.py").write_text("import threading; threading.Event().wait()")
    ended = run_script(ENDLESS, folder.path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert ended.returncode == 0, ended.stderr
    [warning] = warnings_of(ended)
    assert "W&B could not finish (no answer after 0.1 seconds)" in warning and len(folder.read_metrics()) == 3


# The service, a process of its own, is killed in the middle of a run, as by a machine without memory; in the next run
# it stops to answer, as from a disk that does not.
SERVICES = """
import pathlib, sys, psutil
from tests.tracking.test_weights_and_biases import train
from visual_r1.run_folder import RunFolder
from visual_r1.tracking import FanOut, JsonlTracker, WandbTracker

for name, timeout_seconds in (("kill", 60), ("suspend", 1)):
    folder = RunFolder(pathlib.Path(sys.argv[1]) / name)
    folder.path.mkdir()
    shown = WandbTracker(folder, config={}, timeout_seconds=timeout_seconds)
    with FanOut([JsonlTracker(folder), shown]) as tracker:
        train(tracker, range(2))
        *_, service = [child for child in psutil.Process().children() if child.name() == "wandb-core"]
        getattr(service, name)()
        train(tracker, range(2, 40))
"""


def test_a_service_that_dies_or_hangs_is_one_warning_each(tmp_path):
    ended = run_script(SERVICES, tmp_path)
    assert ended.returncode == 0, ended.stderr
    died, hung = warnings_of(ended)  # and no traceback from wandb at the end
    assert f"the run goes on without it, and `visual-r1 track {tmp_path}/kill` shows it" in died
    assert "W&B could not finish (no answer after 1 seconds)" in hung
    assert [len(RunFolder(tmp_path / name).read_metrics()) for name in ("kill", "suspend")] == [40, 40]


# A server that takes every connection and answers none, as one behind a broken proxy.
SILENT = """
import pathlib, socket, sys, os
from tests.tracking.test_weights_and_biases import train
from visual_r1.run_folder import RunFolder
from visual_r1.tracking import FanOut, JsonlTracker, WandbTracker, background

background._START_PATIENCE_SECONDS = 0.1
folder = RunFolder(pathlib.Path(sys.argv[1]))
with socket.create_server(("127.0.0.1", 0)) as server:
    os.environ["WANDB_BASE_URL"] = f"http://127.0.0.1:{server.getsockname()[1]}"
    with FanOut([JsonlTracker(folder), WandbTracker(folder, config={}, mode="online", timeout_seconds=1)]) as tracker:
        train(tracker, range(40))
"""


def test_a_server_that_never_answers_stops_nothing(folder):
    ended = run_script(SILENT, folder.path, WANDB_MODE="online", WANDB_API_KEY="0" * 40)
    assert ended.returncode == 0, ended.stderr
    assert "W&B could not" in ended.stderr and len(folder.read_metrics()) == 40


ONLINE = """
import os, pathlib, sys
from tests.tracking.test_weights_and_biases import train
from visual_r1.run_folder import RunFolder
from visual_r1.tracking import FanOut, JsonlTracker, WandbTracker

for name, key in (("no key", ""), ("no network", "0" * 40)):
    os.environ |= {"WANDB_API_KEY": key, "WANDB_MODE": "online"}
    folder = RunFolder(pathlib.Path(sys.argv[1]) / name)
    folder.path.mkdir()
    shown = WandbTracker(folder, config={}, mode="online", timeout_seconds=6)
    with FanOut([JsonlTracker(folder), shown]) as tracker:
        train(tracker, range(3))
"""


def test_what_cannot_go_online_is_written_offline(tmp_path):
    ended = run_script(ONLINE, tmp_path, NETRC=tmp_path / "netrc", WANDB_BASE_URL="http://127.0.0.1:1")
    assert ended.returncode == 0, ended.stderr
    reasons = ("no API key; run `wandb login`", "")
    for name, reason, warning in zip(("no key", "no network"), reasons, warnings_of(ended), strict=True):
        folder = RunFolder(tmp_path / name)
        assert f"W&B could not start online ({reason}" in warning
        assert f"wandb sync {folder.path}/wandb/offline-run-*" in warning
        rows_and_tables(folder, read_offline_wandb(wandb_file(folder)))
