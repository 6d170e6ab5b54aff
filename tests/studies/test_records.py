"""What a study's runs leave can be packed, moved and judged again."""

from __future__ import annotations

import json
import shutil
import tarfile

import pytest

from tests.studies.conftest import write_run
from tests.studies.test_conduct import ASKED, TINY, run
from visual_r1.cli import main
from visual_r1.files import read_json, write_json
from visual_r1.run_folder import RunFolder
from visual_r1.studies.entries import StudyError
from visual_r1.studies.records import ARCHIVE, pack, unpack
from visual_r1.studies.study import load

RECORDS = {"config.yaml", "provenance.json", "metrics.jsonl", "evaluation.json", "evaluation.parquet", "summary.json"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def packed(archive):
    with tarfile.open(archive) as tar:
        files = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        return {name: file.read() for name, file in files.items() if file is not None}


def test_packed_runs_are_judged_as_they_were_and_not_run_again(place, write_study, checkpoint, capfd):
    folder = write_study(cells={"looked": f"{TINY} model.path={checkpoint('base')}"}, seeds=[0, 1], conditions=[ASKED])
    assert run(place, "practice") == 0
    results, page = (folder / "results.json").read_bytes(), (folder / "README.md").read_bytes()
    assert pack(load(folder), runs=place / "runs", archive=folder / ARCHIVE) == 2
    found = packed(folder / ARCHIVE)
    assert set(found) == {f"looked/seed{seed}/{name}" for seed in (0, 1) for name in RECORDS}
    assert json.loads(found["looked/seed0/provenance.json"])["command"][0] == "run.py"
    shutil.rmtree(place / "runs")
    (folder / "results.json").unlink()
    assert unpack(folder / ARCHIVE, runs=place / "runs") == [place / "runs" / "looked" / f"seed{k}" for k in (0, 1)]
    capfd.readouterr()
    assert run(place, "practice") == 0
    assert "sweep" not in capfd.readouterr().out
    assert ((folder / "results.json").read_bytes(), (folder / "README.md").read_bytes()) == (results, page)


def finish(runs, cell, seed):
    folder = RunFolder(runs / cell / f"seed{seed}")
    write_run(folder, before=[False], after=[True])
    folder.config.write_text("seed: 0\n")
    write_json(folder.evaluation, {})
    command = [str(runs.parent / "run.py"), "seed=0"]
    write_json(folder.provenance, {"command": command, "resumes": [{"command": command}]})
    folder.model.mkdir()
    (folder.model / "model.safetensors").write_bytes(b"weights")
    return folder


def built(runs, name, seed):
    folder = runs / "builds" / name / f"seed{seed}"
    folder.mkdir(parents=True)
    write_json(folder / "build.json", {"command": name})
    (folder / "model.safetensors").write_bytes(b"weights")


@pytest.fixture
def grown(place, write_study):
    """Two bases of one trunk, each trained, with both seeds; nothing has run yet."""
    grow = "organism build {folder} --seed {seed} --trunk {trunk}"
    study = write_study(
        seeds=[0, 1],
        builds={"trunk": "organism trunk {folder} --seed {seed}", "oak": grow, "elm": f"{grow} mixture.direct=0"},
        cells={"oak": "model={oak} method=grpo", "elm": "model={elm} method=grpo"},
        conditions=[{**ASKED, "of": "oak", "minus": "elm"}],
        probe={"of": ["elm"], "asks": "--examples 2"},
    )
    return load(study), place / "runs"


def test_a_record_of_a_build_is_packed_when_no_run_needs_its_weights_any_more(grown, place):
    study, runs = grown
    for seed in (0, 1):
        for name in ("trunk", "oak", "elm"):
            built(runs, name, seed)
    for cell, seed in (("oak", 0), ("elm", 0), ("oak", 1)):
        finish(runs, cell, seed)
    elm = RunFolder(runs / "elm" / "seed0")
    write_json(elm.reflection, {"command": "visual-r1 probe elm --examples 2"})
    assert pack(study, runs=runs, archive=place / ARCHIVE) == 3
    found = packed(place / ARCHIVE)
    assert {name for name in found if name.startswith("builds/")} == {
        *(f"builds/{name}/seed0/build.json" for name in ("trunk", "oak", "elm")),
        "builds/oak/seed1/build.json",
    }
    assert {name.rpartition("/")[0] for name in found if "builds" not in name} == {
        "oak/seed0",
        "elm/seed0",
        "oak/seed1",
    }
    assert "elm/seed0/reflection.json" in found
    assert not any("safetensors" in name for name in found)
    assert read_json(elm.provenance)["command"][0] == str(place / "run.py")
    shortened = ["run.py", "seed=0"]
    assert json.loads(found["elm/seed0/provenance.json"]) == {
        "command": shortened,
        "resumes": [{"command": shortened}],
    }


def test_a_run_that_is_not_probed_as_asked_stays_behind(grown, place):
    study, runs = grown
    finish(runs, "oak", 0)
    elm = finish(runs, "elm", 0)
    write_json(elm.reflection, {"command": "visual-r1 probe elm --examples 1"})
    assert pack(study, runs=runs, archive=place / ARCHIVE) == 1


def test_the_same_records_make_the_same_bytes(grown, place):
    study, runs = grown
    finish(runs, "oak", 0)
    first, second = place / "first.tar.xz", place / "second.tar.xz"
    pack(study, runs=runs, archive=first)
    for file in (runs / "oak" / "seed0").iterdir():
        file.touch()
    pack(study, runs=runs, archive=second)
    assert first.read_bytes() == second.read_bytes()


def test_what_lies_there_stays(grown, place):
    study, runs = grown
    oak = finish(runs, "oak", 0)
    finish(runs, "oak", 1)
    pack(study, runs=runs, archive=place / ARCHIVE)
    shutil.rmtree(runs / "oak" / "seed1")
    oak.config.write_text("mine\n")
    assert unpack(place / ARCHIVE, runs=runs) == [runs / "oak" / "seed1"]
    assert oak.config.read_text() == "mine\n" and oak.model.exists()
    assert {path.name for path in runs.iterdir()} == {"oak"}


def test_the_command_line_packs_and_unpacks(grown, place, capsys):
    _, runs = grown
    finish(runs, "oak", 0)
    assert main(["study", "practice", "--runs", "runs", "--pack"]) == 0
    assert "practice/runs.tar.xz: 1 of 4 runs" in capsys.readouterr().out
    shutil.rmtree(runs)
    assert main(["study", "practice", "--runs", "runs", "--unpack"]) == 0
    assert capsys.readouterr().out == "runs: 1 folders that were not there\n"
    assert RunFolder(runs / "oak" / "seed0").is_finished


def test_what_cannot_be_packed_or_unpacked_is_named(grown, place):
    study, runs = grown
    with pytest.raises(StudyError, match="holds no finished run of practice"):
        pack(study, runs=runs, archive=place / ARCHIVE)
    with pytest.raises(StudyError, match=r"runs\.tar\.xz: there is no such file"):
        unpack(place / ARCHIVE, runs=runs)
    finish(runs, "oak", 0)
    pack(study, runs=runs, archive=place / ARCHIVE)
    whole = (place / ARCHIVE).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"no archive", b""):
        (place / ARCHIVE).write_bytes(damaged)
        with pytest.raises(StudyError, match=r"runs\.tar\.xz: cannot be unpacked") as refused:
            unpack(place / ARCHIVE, runs=place / "other")
        assert "\n" not in str(refused.value)
        assert not list((place / "other").iterdir())
    RunFolder(runs / "oak" / "seed0").provenance.unlink()
    with pytest.raises(StudyError, match=r"provenance\.json"):
        pack(study, runs=runs, archive=place / ARCHIVE)
