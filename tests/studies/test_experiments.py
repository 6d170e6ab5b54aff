"""The studies that ship: each is read, and each of its runs composes, at every scale that it is for."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from visual_r1 import config
from visual_r1.cli import main
from visual_r1.files import read_json
from visual_r1.organisms.pretraining import Recipe, trunk_recipe, with_changes
from visual_r1.studies import page
from visual_r1.studies.building import builds_of
from visual_r1.studies.conduct import overview
from visual_r1.studies.entries import OtherScaleError
from visual_r1.studies.records import ARCHIVE
from visual_r1.studies.running import needed
from visual_r1.studies.study import load

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
NAMES = sorted(file.parent.name for file in EXPERIMENTS.glob("*/study.yaml"))
BUILT = ["when-reflection-rises"]
AT_HOME = [*BUILT, "cold-start-worked"]
PACKED = sorted(file.parent.name for file in EXPERIMENTS.glob(f"*/{ARCHIVE}"))


def test_there_are_studies():
    assert len(NAMES) >= 12 and set(BUILT) <= set(NAMES)


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_all_cells_compose_together_and_train_in_batches_that_divide(tmp_path, scale):
    studies = [load(EXPERIMENTS / name, scale=scale) for name in NAMES if scale == "laptop" or name not in AT_HOME]
    for study in studies:
        assert len(study.seeds) >= 3
    overrides = () if scale == "laptop" else (f"scale={scale}",)
    one_seed = [replace(study, seeds=study.seeds[:1]) for study in studies]
    runs = needed(one_seed, runs=tmp_path, overrides=overrides)
    assert {run.cfg.scale.name for run in runs} == {scale}
    # That a step does not divide into micro-batches a run says when its turn comes, an hour into `make studies`.
    for run in runs:
        config.build(run.cfg.method).check()
    # Where a scale has several builds of its organisms, each seed starts from its own.
    for run in runs:
        assert (f"scale.organism_seed={run.seed}" in run.typed) == (run.cfg.scale.organism_seed is not None)
    # What is written out for a laptop alone must not reach the paper's run.
    for run in runs:
        told = [one for one in run.typed if one.startswith("scale.s") and scale == "paper"]
        assert set(told) <= {"scale.sft_steps=12000"}, run.cell


def test_what_is_built_is_built_alike():
    study = load(EXPERIMENTS / "when-reflection-rises")
    builds = [build for build in builds_of([study], runs=Path("runs")) if build.seed == 0]
    bases = [build for build in builds if build.name != "trunk"]
    assert len(builds) == 9 and {build.needs for build in bases} == {(builds[0].folder,)}
    shares = {build.name: {one for one in build.typed if one.startswith("mixture.")} for build in bases}
    same = {tuple(one for one in build.typed if not one.startswith("mixture.")) for build in bases}
    assert len(same) == 1 and len({frozenset(one) for one in shares.values()}) == len(bases)
    for build in bases:
        # Shares that do not add up to one are refused: what one way of answering gains another loses. And the trunk
        # would refuse another recipe than its own.
        recipe = with_changes(Recipe(), sorted(shares[build.name]))
        assert trunk_recipe(asdict(recipe)) == trunk_recipe(asdict(Recipe()))


@pytest.mark.parametrize("name", AT_HOME)
def test_what_the_paper_s_data_cannot_give_runs_at_home_only(name):
    with pytest.raises(OtherScaleError, match=r"it runs at scale=laptop only|only of \['laptop'\]"):
        load(EXPERIMENTS / name, scale="paper")


def test_the_page_over_all_studies_is_the_one_that_their_results_give():
    assert (EXPERIMENTS / "README.md").read_text(encoding="utf-8") == overview(EXPERIMENTS)


@pytest.mark.parametrize("name", PACKED)
def test_the_records_that_ship_give_the_results_that_ship(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EXPERIMENTS / name, tmp_path / "experiments" / name, ignore=shutil.ignore_patterns("results.json"))
    assert main(["study", name, "--unpack"]) == main(["study", name, "--judge"]) == 0
    # Some of the runs of a study may ship before all have been made: then nothing is judged.
    found, expected = (folder / name / page.RESULTS for folder in (tmp_path / "experiments", EXPERIMENTS))
    assert found.exists() == expected.exists()
    if expected.exists():
        assert read_json(found) == read_json(expected)
