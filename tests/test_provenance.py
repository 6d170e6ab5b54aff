"""The record of a run: enough to make its numbers again, and no secret in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from visual_r1 import provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout with one commit, apart from the user's own git settings."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "A. Tester")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "tester@example.org")
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "run.py").write_text("one\n")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "First"]):
        subprocess.run(["git", "-C", str(root), *arguments], check=True)
    return root


def record(root: Path):
    return provenance.record(config={"seed": 7, "model": "base"}, data={"spatial": "ab12"}, root=root)


def test_a_clean_checkout_is_its_commit(checkout):
    code = record(checkout)["code"]
    head = subprocess.check_output(["git", "-C", str(checkout), "rev-parse", "HEAD"], text=True).strip()
    assert code["commit"] == head == provenance.commit(checkout)
    assert code["is_dirty"] is False and code["diff"] == "" and code["diff_sha256"] is None


def test_a_changed_checkout_keeps_the_change(checkout):
    (checkout / "run.py").write_text("two\n")
    (checkout / "new.py").touch()
    code = record(checkout)["code"]
    assert code["is_dirty"] is True and "+two" in code["diff"] and len(code["diff_sha256"]) == 64
    assert code["untracked"] == ["new.py"]


def test_a_staged_change_is_a_change(checkout):
    (checkout / "run.py").write_text("two\n")
    subprocess.run(["git", "-C", str(checkout), "add", "."], check=True)
    assert "+two" in record(checkout)["code"]["diff"]


GENERATED = (
    *("experiments/README.md", "experiments/aha-moment/README.md", "experiments/aha-moment/results.json"),
    *("experiments/aha-moment/figure.svg", "experiments/aha-moment/curve.svg"),
)


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("new\n")


@pytest.mark.parametrize("is_committed", [False, True])
def test_what_studies_write_is_no_change(checkout, is_committed):
    write(checkout, *GENERATED)
    if is_committed:
        subprocess.run(["git", "-C", str(checkout), "add", "."], check=True)
        subprocess.run(["git", "-C", str(checkout), "commit", "-qm", "Results"], check=True)
        for name in GENERATED:
            (checkout / name).write_text("newer\n")
    code = record(checkout)["code"]
    assert code["is_dirty"] is False and code["diff"] == "" and code["untracked"] == []
    assert provenance.version(checkout)["is_dirty"] is False


@pytest.mark.parametrize(
    "name",
    ["experiments/LOG.md", "experiments/aha-moment/study.yaml", "experiments/aha-moment/notes/README.md", "README.md"],
)
def test_what_studies_do_not_write_is_a_change(checkout, name):
    write(checkout, *GENERATED, name)
    code = record(checkout)["code"]
    assert code["is_dirty"] is True and code["untracked"] == [name]


def test_a_huge_change_is_cut_but_hashed_whole(checkout, monkeypatch):
    monkeypatch.setattr(provenance, "MAX_DIFF_CHARS", 100)
    (checkout / "run.py").write_text("a long line\n" * 1000)
    first = record(checkout)["code"]
    (checkout / "run.py").write_text("a long line\n" * 1001)
    second = record(checkout)["code"]
    assert first["is_diff_cut"] and len(first["diff"]) == 100
    assert first["diff_sha256"] != second["diff_sha256"]


def test_outside_a_checkout_there_is_no_commit(tmp_path):
    assert record(tmp_path)["code"] == {"commit": None, "is_dirty": None}


def test_somebody_elses_checkout_is_not_ours(checkout):
    (checkout / "vendored").mkdir()
    assert provenance.commit(checkout / "vendored") is None


def test_without_git_there_is_no_commit(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.commit(checkout) is None


def test_the_record_is_json_and_complete(tmp_path):
    written = json.loads(json.dumps(record(tmp_path)))
    assert written["seed"] == 7 and written["config"]["model"] == "base" and written["data"] == {"spatial": "ab12"}
    assert written["command"] == sys.argv and written["started"].endswith("+00:00")
    assert (
        written["versions"]["torch"].startswith("2.") and written["versions"]["trl"] and written["versions"]["python"]
    )
    assert written["hardware"]["num_cores"] >= 1 and written["hardware"]["memory_bytes"] > 1e8


def test_secrets_of_the_environment_stay_out(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "hush-hush")
    monkeypatch.setenv("HF_TOKEN", "hush-hush")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    written = record(tmp_path)
    assert "hush" not in json.dumps(written) and written["environment"]["OMP_NUM_THREADS"] == "2"
