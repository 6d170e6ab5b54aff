"""TensorBoard's files read back as the record."""

from __future__ import annotations

import logging
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.tracking.rows import TRAINED, rollout_row
from visual_r1.files import write_json, write_text
from visual_r1.tracking import FanOut, JsonlTracker, TensorboardTracker


def train(folder, steps):
    with FanOut([JsonlTracker(folder), TensorboardTracker(folder, timeout_seconds=60.0)]) as tracker:
        for step in steps:
            tracker.log({"reward": step / 7, "kl": float("nan")}, step=step)
            tracker.log({"num_tokens": 1000 * step}, step=step)
            if step % 2 == 0:
                tracker.log({"probe/accuracy": 1 / (step + 1)}, step=step)
                tracker.log_rollouts([rollout_row(completion="<think>a\nb", **TRAINED)], step=step)


def read(folder):
    events = EventAccumulator(str(folder.tensorboard), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def scalars(events):
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def text(events, tag, step):
    [event] = [event for event in events.Tensors(f"{tag}/text_summary") if event.step == step]
    return event.tensor_proto.string_val[0].decode()


def test_the_files_hold_the_record(folder):
    write_text(folder.config, "seed: 0\n")
    train(folder, range(4))
    events = read(folder)
    expected = {}
    for row in folder.read_metrics():
        for key, value in row.items():
            if key != "step" and value is not None:
                expected.setdefault(key, {})[row["step"]] = pytest.approx(value, rel=1e-6)  # they are float32
    assert expected.keys() == {"reward", "num_tokens", "probe/accuracy"} and scalars(events) == expected
    assert "seed: 0" in text(events, "config", 0)
    shown = text(events, "rollouts/train", 2)
    assert "spatial/train/17" in shown and "    Which is closer?" in shown and "    <think>a\n    b" in shown


def test_a_resumed_run_holds_each_value_once(folder):
    train(folder, range(4))
    folder.truncate_metrics(2)
    train(folder, range(3, 6))
    assert len(list(folder.tensorboard.iterdir())) == 1
    assert scalars(read(folder))["reward"] == {step: pytest.approx(step / 7) for step in range(6)}


def test_a_finished_run_adds_its_results(folder):
    report = {"accuracy": 0.5, "accuracy_interval": [0.25, 0.75]}
    write_json(folder.summary, {"scorers": {"strict": {"after": report}}})
    train(folder, range(3))
    measured = scalars(read(folder))
    assert measured["benchmark/accuracy/strict"] == {2: 0.5} and measured["benchmark/accuracy/strict/low"] == {2: 0.25}


def test_a_run_without_the_package_goes_on_with_one_warning(folder, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level(logging.WARNING):
        train(folder, range(3))
    [warning] = caplog.messages
    assert "TensorBoard could not start (not installed: pip install tensorboard)" in warning
    assert len(folder.read_metrics()) == 3
