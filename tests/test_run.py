"""Whole runs on an untrained nano: the record that they leave, and invariants 6 and 7."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.processes import untimed
from visual_r1.config import compose_config
from visual_r1.experiment import prepare, run
from visual_r1.files import read_json
from visual_r1.models import ModelSource
from visual_r1.run_folder import RunFinishedError, RunFolder, RunFolderError
from visual_r1.statistics import wilson
from visual_r1.tracking import read_offline_wandb

ROOT = Path(__file__).resolve().parent.parent
STEPS = 5
TINY = (
    "scale.num_threads=1",
    f"scale.max_steps={STEPS}",
    "scale.prompts_per_step=2",
    "scale.num_generations=4",
    "scale.micro_batch_size=4",
    "scale.max_completion_length=8",
    "scale.sft_steps=2",
    "scale.sft_examples_per_step=4",
    "scale.train_size=32",
    "scale.probe_size=4",
    "scale.probe_every_steps=2",
    "scale.benchmark_size=8",
    "scale.save_every_steps=2",
    "scale.rollouts_every_steps=2",
)

# Without a reward that an untrained policy can earn, nothing would move and nothing would show. At step 3 of a run that
# is told so, it dies as under `kill -9`, between two checkpoints.
USER_REWARD = """
import os, signal

def by_length(completion_ids, trainer_state, **columns):
    if os.environ.get("DIE_AT_STEP") == str(trainer_state.global_step):
        os.kill(os.getpid(), signal.SIGKILL)
    return [0.1 * len(ids) for ids in completion_ids]
"""


@dataclass(frozen=True)
class Place:
    """Where the runs of this module lie, and what they share."""

    path: Path
    checkpoint: Path

    def overrides(self, runs: str, *more: str) -> list[str]:
        return [
            *TINY,
            f"model.path={self.checkpoint}",
            f"runs_dir={self.path / runs}",
            "+reward/term@reward.terms.by_length=trl_function",
            "reward.terms.by_length.function.path=user_reward_of_run.by_length",
            *more,
        ]


@pytest.fixture(scope="module")
def place(tmp_path_factory, checkpoint):
    path = tmp_path_factory.mktemp("place")
    (path / "user_reward_of_run.py").write_text(USER_REWARD)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path)
        yield Place(path=path, checkpoint=checkpoint("base"))
    sys.modules.pop("user_reward_of_run", None)


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: RunFolder
    summary: dict[str, Any]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return self.folder.read_metrics()


def execute(overrides) -> Run:
    experiment = prepare(compose_config(overrides), command="python run.py ...")
    return Run(folder=experiment.folder, summary=run(experiment))


@pytest.fixture(scope="module")
def grpo(place):
    return execute(place.overrides("runs"))


def test_a_run_leaves_its_record(grpo, place):
    folder = grpo.folder.path
    assert folder == place.path / "runs" / "base-grpo" / "seed0"
    expected = {
        *("config.yaml", "provenance.json", "metrics.jsonl", "completions", "checkpoints", "model", "wandb"),
        *("evaluation.json", "evaluation.parquet", "summary.json", "figure.png", "figure.svg"),
    }
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == expected
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["scale"]["max_steps"] == STEPS and config["method"]["trl"]["max_steps"] == STEPS
    assert "hydra" not in config and "${" not in (folder / "config.yaml").read_text()
    provenance = read_json(folder / "provenance.json")
    assert provenance["resumes"] == [] and provenance["data"].keys() == {"train", "probe", "benchmark"}
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["checkpoint-4", "checkpoint-5"]
    assert Image.open(folder / "figure.png").size[0] > 500


def test_the_summary_is_the_evaluation_counted_again(grpo):
    summary, rows = grpo.summary, pyarrow.parquet.read_table(grpo.folder.evaluation_items).to_pylist()
    items = [row for row in rows if row["when"] == "after"]
    before = [row for row in rows if row["when"] == "before"]
    assert [row["example_id"] for row in before] == [row["example_id"] for row in items]  # the same items, for pairing
    assert summary["accuracy_before"] == sum(row["correct"] for row in before) / 8
    assert summary == read_json(grpo.folder.summary)
    assert (summary["steps"], summary["seed"], summary["num_items"], len(items)) == (STEPS, 0, 8, 8)
    num_correct = sum(item["correct"] for item in items)
    interval = wilson(num_correct, 8)
    assert summary["accuracy_after"] == num_correct / 8
    assert summary["accuracy_after_interval"] == pytest.approx([interval.low, interval.high])
    assert summary["length_after"] == sum(item["num_tokens"] for item in items) / 8
    assert set(summary["by_category"]) == {"Count", "Relation", "Depth", "Distance"}
    for measured in summary["by_category"].values():
        assert measured.keys() == {"before", "after"} and measured["after"]["num_items"] == 2
    assert summary["wall_seconds"] > 0 and summary["command"] == "python run.py ..." and "commit" in summary
    evaluation = read_json(grpo.folder.evaluation)
    assert evaluation["accuracy"] == summary["accuracy_after"]
    for name in ("accuracy", "length", "reflection", "blank_accuracy", "parse_rate", "truncated_rate"):
        assert {f"{name}_before", f"{name}_after"} <= summary.keys()
    assert {"chance", "majority", "accuracy_before_interval", "name", "keywords"} <= summary.keys()
    first, last = grpo.metrics[0], grpo.metrics[-1]
    assert summary["probe_reflection_before"] == first["probe/reflection/any_rate"]
    assert summary["probe_length_after"] == last["probe/completions/mean_length"]
    assert summary["commit"] == read_json(grpo.folder.provenance)["code"]["commit"]


def test_the_model_loads_without_us_and_as_one_of_ours(grpo):
    AutoModelForImageTextToText.from_pretrained(grpo.folder.model, use_safetensors=True)
    assert "<|im_start|>" in AutoProcessor.from_pretrained(grpo.folder.model).chat_template
    assert ModelSource(name="x", path=str(grpo.folder.model)).prompt_style.name == "base"


def test_the_curves_have_their_names(grpo):
    metrics = grpo.metrics
    assert [row["step"] for row in metrics] == list(range(STEPS + 1))
    trained = set.intersection(*(set(row) for row in metrics[1:]))
    probed = set.intersection(*(set(metrics[step]) for step in (0, 2, 4, 5)))
    measured = {
        *("accuracy", "format/empty_thought_rate", "format/well_formed_rate", "format/truncated_rate"),
        *("repetition/repeated_rate", "length/incorrect/mean", "reflection/any_rate", "reflection/per_1k_tokens"),
        "reflection/keyword/wait",
        *("reflection/any_rate_incorrect", "completions/mean_length", "rewards/accuracy/mean", "rewards/format/mean"),
    }
    assert measured <= trained
    assert {f"probe/{name}" for name in measured} <= probed
    assert {f"probe/accuracy/{kind}" for kind in ("Count", "Relation", "Depth", "Distance")} <= probed
    assert {
        *("loss", "reward", "rewards/by_length/mean", "completions/clipped_ratio", "frac_reward_zero_std", "entropy"),
        *("kl", "clip_ratio/region_mean", "groups/all_correct", "groups/all_wrong", "groups/mixed"),
        *("parity/logp_difference/mean", "parity/logp_difference/max", "learning_rate", "grad_norm"),
        *("time/rollout", "time/score_and_logps", "time/update"),
    } <= trained
    assert "reward" not in metrics[0] and "probe/accuracy" not in metrics[1] and "probe/accuracy" not in metrics[3]
    every_keyword = {key for key in trained if key.startswith("reflection/keyword/")}
    assert len(every_keyword) == len(yaml.safe_load(grpo.folder.config.read_text())["keywords"]["phrases"])
    assert all(row["parity/logp_difference/max"] < 2e-4 for row in metrics[1:])
    assert metrics[1]["kl"] == pytest.approx(0, abs=1e-6) and metrics[-1]["kl"] > 1e-6


def test_sampled_rollouts_are_kept(grpo):
    files = sorted(path.name for path in grpo.folder.completions.iterdir())
    assert files == [f"step_{step:05d}.parquet" for step in (0, 1, 2, 4, 5)]
    rows = pyarrow.parquet.read_table(grpo.folder.completions_at(2)).to_pylist()
    assert [row["source"] for row in rows] == ["probe"] * 4 + ["train"] * 8
    for row in rows[4:]:
        assert row["score/by_length"] == pytest.approx(0.1 * row["num_tokens"])
        assert row["group"] in (0, 1) and row["advantage"] is not None
    assert rows[0]["score/by_length"] is None
    # A row of metrics.jsonl and the file of its step hold the same rollouts.
    [curves] = [row for row in grpo.metrics if row["step"] == 2]
    assert curves["completions/mean_length"] == pytest.approx(sum(row["num_tokens"] for row in rows[4:]) / 8)


def wandb_record(run):
    """What W&B's only file of a run holds, which must be the record's rows, every value of them and no other."""
    [file] = run.folder.path.glob("wandb/offline-run-*/*.wandb")
    record = read_offline_wandb(file)
    rows = [{key: value for key, value in row.items() if key[0] != "_"} for row in record.history]
    tables = {(row["step"], key) for row in rows for key in [*row] if key.startswith("rollouts/") and row.pop(key)}
    assert rows == [{key: value for key, value in row.items() if value is not None} for row in run.metrics]
    sampled = {"train": (1, 2, 4), "probe": (0, 2, 4, 5)}
    assert tables == {(step, f"rollouts/{source}") for source, steps in sampled.items() for step in steps}
    assert record.is_complete
    return record


def test_wandb_has_the_numbers_of_the_record(grpo):
    record = wandb_record(grpo)
    assert (record.group, record.job_type) == ("base-grpo", "grpo")
    assert record.tags == ("laptop", "base", "grpo", "accuracy_format")
    assert record.config["provenance"]["code"]["commit"] == grpo.summary["commit"]
    assert record.summary["benchmark/accuracy/strict"] == grpo.summary["accuracy_after"]
    assert record.summary["benchmark/accuracy_before/reference/Depth/low"] >= 0
    assert {"summary.json", "evaluation.parquet", "metrics.jsonl", "figure.png"} <= record.artifacts[
        "base-grpo-seed0-results"
    ]
    assert "visual_r1/experiment.py" in record.artifacts["base-grpo-seed0-code"]


def test_the_same_command_gives_the_same_numbers(grpo, place):
    again = execute(place.overrides("again", "tracker=none"))
    assert untimed(again.metrics) == untimed(grpo.metrics)
    ours, theirs = (pyarrow.parquet.read_table(one.folder.evaluation_items) for one in (again, grpo))
    assert ours.equals(theirs)
    assert not (again.folder.path / "wandb").exists()
    other = execute(place.overrides("again", "tracker=none", "seed=1", "scale.max_steps=1"))
    assert other.folder.path.name == "seed1"
    assert untimed(other.metrics)[1] != untimed(grpo.metrics)[1]


def typed(path, *overrides, **environment):
    """``python run.py`` with these overrides, in a folder whose modules it can import."""
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *overrides],
        cwd=path,
        env={**os.environ, "PYTHONPATH": f"{path}:{ROOT}", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_killed_run_typed_again_ends_with_the_same_numbers(grpo, place):
    overrides = place.overrides("killed")
    killed = typed(place.path, *overrides, DIE_AT_STEP="3")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = RunFolder(place.path / "killed" / "base-grpo" / "seed0")
    assert folder.latest_checkpoint() == folder.checkpoints / "checkpoint-2" and not folder.is_finished
    assert [row["step"] for row in folder.read_metrics()] == [0, 1, 2, 3]  # the last one has to come again

    resumed = execute(overrides)
    assert untimed(resumed.metrics) == untimed(grpo.metrics)
    assert len(read_json(folder.provenance)["resumes"]) == 1
    for name in ("accuracy_after", "length_after", "blank_accuracy_after", "steps"):
        assert resumed.summary[name] == grpo.summary[name]
    ours, theirs = (pyarrow.parquet.read_table(one.folder.completions_at(4)).to_pylist() for one in (resumed, grpo))
    assert ours == theirs
    wandb_record(resumed)


@pytest.mark.parametrize("lost", ["model", "evaluation"])
def test_a_run_cut_off_after_its_last_step_trains_no_further(place, grpo, tmp_path, lost):
    """Killed while the model was saved, or later."""
    overrides = place.overrides("cut", f"name={lost}")
    done = execute(overrides)
    before = untimed(done.metrics)
    for path in (done.folder.summary, done.folder.evaluation, done.folder.evaluation_items):
        path.unlink()
    if lost == "model":
        (done.folder.model / "visual_r1.json").unlink()
    again = execute(overrides)
    assert untimed(again.metrics) == before == untimed(grpo.metrics)
    assert again.summary["accuracy_after"] == done.summary["accuracy_after"]


def test_a_finished_run_is_never_overwritten(grpo, place):
    with pytest.raises(RunFinishedError, match="never overwritten"):
        prepare(compose_config(place.overrides("runs")))
    # Skipping this as finished would pass one setting's numbers off as another's.
    with pytest.raises(RunFolderError, match=r"a finished run with another configuration \(.*scale\.max_steps"):
        prepare(compose_config(place.overrides("runs", "scale.max_steps=7")))


def test_an_evaluation_trains_nothing(grpo, place):
    overrides = [*TINY, f"runs_dir={place.path / 'runs'}", f"model={grpo.folder.model}", "method=eval", "tracker=none"]
    evaluated = execute(overrides)
    assert evaluated.summary["steps"] == 0 and "accuracy_before" not in evaluated.summary
    for name in ("accuracy_after", "length_after", "blank_accuracy_after"):
        assert evaluated.summary[name] == grpo.summary[name]
    [row] = evaluated.metrics
    assert row["step"] == 0 and "probe/accuracy" in row
    assert not evaluated.folder.model.exists() and not evaluated.folder.checkpoints.exists()


def test_a_chain_is_a_run(place):
    chained = execute(place.overrides("runs", "method=sft_then_grpo", "scale.max_steps=1", "tracker=none"))
    assert chained.summary["steps"] == 3
    assert [row["step"] for row in chained.metrics] == [0, 1, 2, 3]
    assert ["loss" in row for row in chained.metrics] == [False, True, True, True]
    assert ["reward" in row for row in chained.metrics] == [False, False, False, True]
    assert {path.name for path in (chained.folder.path / "stages").iterdir()} == {"sft", "grpo"}


BAD = {
    "key": (["scale.max_stepss=3"], "max_stepss"),
    "option": (["method=gpro"], "gpro"),
    "keyword list": (["keywords=defualt"], "defualt"),
    "checkpoint": (["model=no/such/folder"], "no/such/folder"),
    "group": (["scale.num_generations=3", "scale.micro_batch_size=4"], "num_generations=3"),
    "trl argument": (["+method.trl.betta=1"], "betta"),
    "trl value": (["method.trl.loss_type=gpro"], "loss_type=gpro"),
    "freeze": (["freeze.parts=[vison]"], "vison"),
    "everything frozen": (["freeze.parts=[vision,llm]"], "every part is frozen"),
    "no examples": (["dataset.probe.size=0"], "dataset.probe"),
    "no thoughts": (["method=sft", "method.imitate=thought"], "method.imitate=thought: the training examples have no"),
    "no thoughts of a stage": (
        ["method=sft_then_grpo", "method.stages.sft.imitate=thought"],
        "method.stages.sft.imitate=thought: the training examples have no thoughts",
    ),
    "no steps": (["scale.max_steps=0"], "scale.max_steps=0"),
    "negative seed": (["seed=-1"], "seed=-1"),
    "greedy groups": (["method.trl.temperature=0"], "method.trl.temperature=0"),
    "benchmark temperature": (["benchmark.temperature=-1"], "temperature=-1"),
    "two length limits of a stage": (
        ["method=sft_then_grpo", "method.stages.grpo.trl.max_completion_length=99"],
        "method.stages.grpo.trl.max_completion_length=99",
    ),
    "two length limits": (["method.trl.max_completion_length=99"], "scale.max_completion_length"),
    "adapters on what is frozen": (["freeze=llm", "adapter=lora"], "freeze=llm adapter=lora"),
    "W&B mode": (["tracker.wandb_mode=onlin"], "onlin"),
    "runs folder": (["runs_dir=/proc/runs"], "/proc/runs"),
    "user function": (
        ["+reward/term@reward.terms.mine=trl_function", "reward.terms.mine.function.path=no.such.function"],
        "no.such.function",
    ),
}


@pytest.mark.parametrize("overrides", [pytest.param(*BAD[name][:1], id=name) for name in BAD])
def test_bad_input_is_refused_before_a_model_is_loaded(place, tmp_path, overrides, monkeypatch):
    [message] = [message for given, message in BAD.values() if given == overrides]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("visual_r1.models.load_policy", lambda *_args, **_kwargs: pytest.fail("a model was loaded"))
    with pytest.raises((ValueError, OSError)) as refused:
        prepare(compose_config([*TINY, f"model.path={place.checkpoint}", "runs_dir=runs", *overrides]))
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_the_command_says_it_in_one_line_and_leaves_nothing(tmp_path):
    wrong = typed(tmp_path, f"model={tmp_path / 'nowhere'}", "runs_dir=runs")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: ") and wrong.stderr.count("\n") == 1
    assert "nowhere" in wrong.stderr and "Traceback" not in wrong.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_that_another_process_is_writing_is_one_line(place, tmp_path):
    folder = tmp_path / "runs" / "base-grpo" / "seed0"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = typed(tmp_path, f"model.path={place.checkpoint}", "tracker=none")
    assert refused.returncode == 1
    assert refused.stderr == (
        "error: runs/base-grpo/seed0 is being written by another process: wait for it, or choose another name=... or "
        "seed=...\n"
    )


def test_a_checkpoint_that_does_not_load_leaves_no_folder(place, tmp_path):
    import shutil

    broken = shutil.copytree(place.checkpoint, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\0" * 64)
    experiment = prepare(compose_config([*TINY, f"model.path={broken}", f"runs_dir={tmp_path / 'runs'}"]))
    with pytest.raises(ValueError, match="cannot be loaded"):
        run(experiment)
    assert not (tmp_path / "runs").exists()
