"""Studies with real runs, as small as they get."""

from __future__ import annotations

import pytest

from visual_r1.files import read_json
from visual_r1.run_folder import RunFolder, RunFolderError
from visual_r1.studies.conduct import conduct, overview
from visual_r1.studies.entries import StudyError
from visual_r1.studies.running import needed
from visual_r1.studies.study import load

TINY = (
    "method=eval tracker=none scale.probe_size=2 scale.benchmark_size=8 scale.train_size=4 "
    "scale.max_completion_length=4"
)
ASKED = {"says": "it answers", "measure": "benchmark/truncated", "of": "looked", "above": 0.9}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(place, *names, overrides=(), **options):
    return conduct(
        names,
        experiments=place / "experiments",
        runs=place / "runs",
        jobs=2,
        overrides=overrides,
        command="make study",
        **options,
    )


def test_a_study_is_run_judged_and_not_run_again(place, write_study, checkpoint, capfd):
    cell = f"{TINY} model.path={checkpoint('base')}"
    study = write_study(cells={"looked": cell}, seeds=[0, 1], conditions=[ASKED])
    write_study("later", cells={"looked": cell}, seeds=[1], conditions=[ASKED])
    assert run(place, "practice") == 0
    printed = capfd.readouterr().out
    assert "sweep: 2 jobs" in printed and "2 finished" in printed
    record = read_json(study / "results.json")
    assert record["seeds"] == [0, 1] and record["items"] == 8 and record["minutes"] > 0
    config = RunFolder(place / "runs" / "looked" / "seed1").read_config()
    assert (config["seed"], config["scale"]["num_threads"], config["name"]) == (1, 1, "looked")
    # What the page says is what was typed.
    typed = " ".join(read_json(RunFolder(place / "runs" / "looked" / "seed1").provenance)["command"][1:])
    shown = next(line for line in (study / "README.md").read_text().splitlines() if line.startswith("| `looked` |"))
    assert shown.split("run.py ")[1].split("`")[0].replace("=K", "=1") in typed
    assert "scale.organism_seed=K" in shown and "K is 0, 1." in (study / "README.md").read_text()
    # Typed again, and by another study that needs one of them: nothing is left to run.
    assert run(place) == 0
    printed = capfd.readouterr().out
    assert "sweep" not in printed and "later:" in printed
    page = (place / "experiments" / "README.md").read_text()
    assert page.count(f"**{record['verdict']}**") == 2 and "[Practice makes perfect.](practice)" in page
    assert f"{ASKED['says']} (above 90 %): " in page
    # Of other models the verdict is not the organism's.
    before = (study / "results.json").read_bytes()
    with pytest.raises(RunFolderError, match="another configuration"):
        run(place, "practice", overrides=("scale.benchmark_size=4",))
    assert (study / "results.json").read_bytes() == before


def test_a_study_that_builds_does_one_seed_after_the_other(place, write_study, checkpoint, capfd):
    write_study(
        builds={"sheet": "data show seed={seed} --num 1 -o {folder}/sheet.png"},
        cells={"looked": f"{TINY} model.path={checkpoint('base')}"},
        seeds=[0, 1],
        conditions=[ASKED],
    )
    assert run(place, "practice") == 0
    ended = [line.rpartition("runs/")[2] for line in capfd.readouterr().out.splitlines() if ": finished: " in line]
    assert ended == ["builds/sheet/seed0", "looked/seed0", "builds/sheet/seed1", "looked/seed1"]


def test_a_study_that_fails_is_not_judged(place, write_study, checkpoint, capfd):
    cell = f"{TINY} model.path={checkpoint('base')} rollout.engine.batch_size=0"
    study = write_study(cells={"looked": cell}, seeds=[0], conditions=[ASKED])
    assert run(place) == 1
    assert "rollout.engine.batch_size=0" in capfd.readouterr().out
    assert not (study / "results.json").exists()


def test_what_has_not_run_is_not_judged(place, write_study, capsys):
    write_study(cells={"looked": TINY}, conditions=[ASKED])
    assert run(place, judges_alone=True) == 0
    assert "practice: not judged, its runs are not finished" in capsys.readouterr().out
    assert "| not run yet |" in overview(place / "experiments")


def test_of_all_studies_those_of_another_scale_are_left_out(place, write_study, capsys):
    write_study("home", cells={"looked": {"laptop": TINY}}, conditions=[ASKED])
    write_study("both", cells={"seen": {"laptop": TINY, "paper": TINY}}, conditions=[{**ASKED, "of": "seen"}])
    assert run(place, overrides=("scale=paper",), judges_alone=True) == 0
    printed = capsys.readouterr().out
    assert "left out: " in printed and "cells.looked says nothing of scale=paper, only of ['laptop']" in printed
    assert "both: not judged" in printed and "home: not judged" not in printed
    with pytest.raises(StudyError, match=r"cells.looked says nothing of scale=paper"):
        run(place, "home", overrides=("scale=paper",), judges_alone=True)


def test_two_cells_of_one_name_are_refused(place, write_study):
    studies = [
        load(write_study("one", cells={"looked": TINY}, conditions=[ASKED])),
        load(write_study("two", cells={"looked": f"{TINY} scale.top_k=1"}, conditions=[ASKED])),
    ]
    with pytest.raises(StudyError, match=r"two: cells.looked is .*scale.top_k=1', and .* in one: give one"):
        needed(studies, runs=place / "runs")


def test_a_cell_that_does_not_compose_is_named_before_anything_runs(place, write_study):
    studies = [load(write_study(cells={"looked": f"{TINY} scale.steps=3"}, conditions=[ASKED]))]
    with pytest.raises(StudyError, match=r"practice: cells.looked: .*steps"):
        needed(studies, runs=place / "runs")


def test_a_folder_without_studies_is_named(place):
    with pytest.raises(StudyError, match=r"no folder in it has a study.yaml"):
        run(place)
