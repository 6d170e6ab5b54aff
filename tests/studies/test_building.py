"""What a study makes for itself: in order, once, of one command, and not left half made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from visual_r1.files import read_json, write_json
from visual_r1.studies.building import RECORD, builds_of, make
from visual_r1.studies.entries import StudyError
from visual_r1.studies.study import load

# The cheapest command that writes a file; {first} makes it wait for another.
FIRST = "data show seed={seed} --num 1 -o {folder}/sheet.png"
SECOND = (
    "data check seed={seed} dataset.train.size=1 dataset.probe.size=1 benchmark.examples.size=1 -o {folder}/bad.txt"
)
CELLS = {"cells": {"practised": "method=grpo"}}
ASKED = {"conditions": [{"says": "x", "measure": "benchmark/accuracy", "of": "practised", "above": 0}]}


def study_of(write_study, name="practice", **builds):
    return load(write_study(name, builds=builds, seeds=[3], **CELLS, **ASKED))


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_build_is_made_after_what_it_needs_and_once(place, write_study, capfd):
    study = study_of(write_study, first=FIRST, second=f"{FIRST} {{first}}/sheet.png=")
    first, second = builds_of([study], runs=place / "runs")
    assert second.needs == (first.folder,) and first.folder == place / "runs" / "builds" / "first" / "seed3"
    # The second is no command, so it fails; the first stays.
    assert make([first, second], jobs=2, command="make study", runs=place / "runs") == 1
    assert first.is_finished and not second.is_finished and "1 finished, 1 failed" in capfd.readouterr().out
    record = read_json(first.folder / RECORD)
    assert (record["command"], record["seed"]) == (f"visual-r1 {FIRST.replace('{seed}', '3')}", 3)
    assert len(record["commit"]) == 40 and (first.folder / "sheet.png").exists()
    assert not list((place / "runs" / "builds" / "first").glob(".*"))


def test_what_needs_a_failed_build_is_not_begun(place, write_study, capfd):
    study = study_of(write_study, first="data show nothing=1 -o {folder}/{seed}.png", second=f"{SECOND} {{first}}=")
    builds = builds_of([study], runs=place / "runs")
    assert make(builds, jobs=2, command="make study", runs=place / "runs") == 1
    printed = capfd.readouterr().out
    assert (
        "what it needs has failed" in printed and "2 failed" in printed and "job 1:" not in printed.partition("\n\n")[0]
    )


def test_a_build_of_another_command_is_not_taken_for_this_one(place, write_study):
    study = study_of(write_study, first=FIRST)
    [build] = builds_of([study], runs=place / "runs")
    build.folder.mkdir(parents=True)
    write_json(build.folder / RECORD, {"command": "visual-r1 data show --num 9"})
    with pytest.raises(StudyError, match=r"was made by `visual-r1 data show --num 9`, .*: move it away"):
        builds_of([study], runs=place / "runs")


def test_two_studies_with_another_build_of_one_name_are_refused(place, write_study):
    studies = [study_of(write_study, "one", first=FIRST), study_of(write_study, "two", first=SECOND)]
    with pytest.raises(StudyError, match=r"two: builds.first is another one in an earlier study"):
        builds_of(studies, runs=place / "runs")


def test_a_killed_study_leaves_nothing_half_made_and_goes_on(place, write_study):
    slow = "data check seed={seed} dataset.train.size=100000 -o {folder}/bad.txt"  # a minute
    write_study(builds={"first": FIRST, "slow": slow}, seeds=[3], **CELLS, **ASKED)
    command = (sys.executable, "-m", "visual_r1.cli", "study", "practice", "--jobs", "1", "--runs", str(place / "runs"))
    # What prints finds out by itself that nobody listens any more.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "TQDM_DISABLE": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    scratch = place / "runs" / "builds" / "slow" / ".seed3"
    deadline = time.monotonic() + 120
    while not scratch.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert scratch.exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = place / "runs" / "builds" / "first" / "seed3" / RECORD
    assert first.exists() and not (place / "runs" / "builds" / "slow" / "seed3").exists()
    # What it had begun ends with it, and is begun anew; what it had made stays.
    made = first.stat().st_mtime_ns
    study = study_of(write_study, first=FIRST, slow=slow)
    builds = builds_of([study], runs=place / "runs")
    assert [build.name for build in builds if not build.is_finished] == ["slow"] and first.stat().st_mtime_ns == made
    while is_running(scratch) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(scratch) and not list(scratch.iterdir())


def is_running(scratch: Path) -> bool:
    """Whether a process was told to write there."""
    return str(scratch) in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
