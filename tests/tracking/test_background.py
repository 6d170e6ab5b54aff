"""A tracker that shows a record: whole, in order, whenever the service has time for it, and never at the run's cost."""

from __future__ import annotations

import logging
import threading

import pytest

from tests.tracking.rows import TRAINED, rollout_row
from visual_r1.tracking import FanOut, JsonlTracker
from visual_r1.tracking.background import BackgroundTracker


class Service(BackgroundTracker):
    """Keeps what it is shown; waits before each row until it may go on, and fails where it is told to."""

    service = "Service"

    def __init__(self, folder, *, fails=None, error=None, first_step=0, may_show=None, timeout_seconds=60.0):
        self.rows, self.rollouts, self.images = [], {}, {}
        self.calls, self._fails, self._error, self._first_step = [], fails, error or ConnectionError(), first_step
        self._may_show = may_show
        super().__init__(folder, timeout_seconds=timeout_seconds)

    def _call(self, what):
        self.calls.append(what)
        if what == self._fails:
            raise self._error

    def open(self):
        self._call("open")
        return self._first_step

    def show(self, row, rollouts, images):
        if self._may_show is not None:
            self._may_show.wait()
        self._call("show")
        self.rows.append(dict(row))
        self.rollouts |= {(row["step"], source): list(rows) for source, rows in rollouts.items()}
        self.images[row["step"]] = sorted(images)

    def close(self):
        self._call("close")

    def leave(self):
        self._call("leave")
        raise ConnectionError("and cannot be ended")


class Slow(Service):
    """Starts when it may."""

    def __init__(self, folder, may_open):
        self._may_open = may_open
        super().__init__(folder)

    def open(self):
        self._may_open.wait()
        return super().open()


@pytest.fixture
def impatient(monkeypatch):
    """Runs that wait neither for a service to start nor for one that they have left behind."""
    for moment in ("START", "END"):
        monkeypatch.setattr(f"visual_r1.tracking.background._{moment}_PATIENCE_SECONDS", 0.0)


def run(tracker, steps):
    for step in steps:
        tracker.log({"reward": step / 7, "kl": float("nan")}, step=step)
        tracker.log({"probe/accuracy": 1 / (step + 1)}, step=step)


def without_none(rows):
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


def test_every_row_is_shown_once_and_whole(folder):
    with FanOut([JsonlTracker(folder), service := Service(folder)]) as tracker:
        run(tracker, range(5))
    assert service.calls == ["open", *["show"] * 5, "close"]
    assert service.rows == without_none(folder.read_metrics())
    assert service.rows[4] == {"step": 4, "reward": 4 / 7, "probe/accuracy": 1 / 5}


def test_a_row_that_can_still_grow_is_not_shown(folder):
    with FanOut([JsonlTracker(folder), service := Service(folder)]) as tracker:
        tracker.log({"reward": 0.123456789}, step=0)
        tracker.log({"reward": 1.0}, step=1)
        while not service.rows:  # of step 0, which is over
            pass
        tracker.log({"probe/accuracy": 0.5}, step=1)
        assert [row["step"] for row in service.rows] == [0]
    assert service.rows[1] == {"step": 1, "reward": 1.0, "probe/accuracy": 0.5}


def test_a_service_that_hangs_holds_up_no_step_and_loses_no_row(folder):
    may_show = threading.Event()
    with FanOut([JsonlTracker(folder), service := Service(folder, may_show=may_show)]) as tracker:
        run(tracker, range(50))  # would not return if the service were waited for
        assert not service.rows
        may_show.set()
    assert service.rows == without_none(folder.read_metrics()) and len(service.rows) == 50


def test_a_service_that_never_answers_is_left_behind(folder, caplog, impatient):
    never = threading.Event()
    with caplog.at_level(logging.WARNING):
        with FanOut([JsonlTracker(folder), Service(folder, may_show=never, timeout_seconds=0.1)]) as tracker:
            run(tracker, range(3))
        never.set()
    [warning] = caplog.messages
    assert warning == (
        "Service could not finish (no answer after 0.1 seconds); the run goes on without it, "
        f"and `visual-r1 track {folder.path}` shows it afterwards"
    )
    assert len(folder.read_metrics()) == 3


class Gate:
    """Lets one row through at a time."""

    def __init__(self):
        self.places = threading.Semaphore(0)

    def wait(self):
        self.places.acquire()


class Sluggish:
    """A thread that shows one row each time that it is waited for, however long that is, and none in between."""

    def __init__(self, thread, gate, service):
        self._thread, self._gate, self._service = thread, gate, service

    def is_alive(self):
        return self._thread.is_alive()

    def join(self, timeout):
        num_shown = len(self._service.rows)
        self._gate.places.release()
        while self._thread.is_alive() and len(self._service.rows) == num_shown:
            self._thread.join(0.001)
        if len(self._service.rows) == 5:
            self._thread.join()  # closes the service


@pytest.mark.parametrize("is_patient", [True, False])
def test_who_waits_for_nothing_else_waits_while_rows_are_shown(folder, caplog, impatient, monkeypatch, is_patient):
    run(JsonlTracker(folder), range(5))
    service = Service(folder, may_show=(gate := Gate()))
    monkeypatch.setattr(service, "_thread", Sluggish(service._thread, gate, service))
    service.finish(is_patient=is_patient)
    assert service.has_failed != is_patient and bool(caplog.messages) != is_patient
    assert service.calls == ["open", *["show"] * 5, "close"] if is_patient else len(service.rows) < 5
    gate.places.release(5)


def test_a_service_that_does_not_start_holds_up_no_step(folder, impatient):
    may_open = threading.Event()
    with FanOut([JsonlTracker(folder), service := Slow(folder, may_open)]) as tracker:
        run(tracker, range(50))
        assert not service.calls
        may_open.set()
    assert service.rows == without_none(folder.read_metrics())


@pytest.mark.parametrize("error", [ConnectionError("server is gone\nwith details"), SystemExit("server is gone")])
@pytest.mark.parametrize(("fails", "doing"), [("open", "start"), ("show", "log"), ("close", "finish")])
def test_a_call_that_raises_is_one_warning(folder, caplog, fails, doing, error):
    with caplog.at_level(logging.WARNING):
        with FanOut([JsonlTracker(folder), service := Service(folder, fails=fails, error=error)]) as tracker:
            run(tracker, range(3))
            tracker.log_rollouts([rollout_row()], step=2)
    assert service.calls[-2:] == [fails, "leave"] and service.has_failed
    [warning] = caplog.messages
    assert warning.startswith(f"Service could not {doing} (server is gone); the run goes on without it")
    assert len(folder.read_metrics()) == 3 and folder.completions_at(2).exists()


def test_a_resumed_run_is_shown_whole(folder):
    with FanOut([JsonlTracker(folder), Service(folder)]) as tracker:
        run(tracker, range(4))
        tracker.log_rollouts([rollout_row(**TRAINED)], step=1)
        tracker.log_rollouts([rollout_row(**TRAINED)], step=3)
    folder.truncate_metrics(2)
    with FanOut([JsonlTracker(folder), service := Service(folder)]) as tracker:
        tracker.log({"extra": 1.0}, step=2)  # what follows a checkpoint within its step
        run(tracker, range(3, 6))
    assert [row["step"] for row in service.rows] == list(range(6))
    assert service.rows == without_none(folder.read_metrics()) and service.rows[2]["extra"] == 1.0
    assert list(service.rollouts) == [(1, "train")]

    with Service(folder, first_step=4) as later:  # a service that has the others already
        pass
    assert [row["step"] for row in later.rows] == [4, 5]


def test_rollouts_are_those_of_the_record(folder):
    with FanOut([JsonlTracker(folder), service := Service(folder)]) as tracker:
        run(tracker, range(2))
        tracker.log_rollouts([rollout_row(**TRAINED), rollout_row(**TRAINED)], step=1)
        tracker.log_rollouts([rollout_row(completion="(A)")], step=1, name="probe")
        run(tracker, [2])
    assert {key: len(rows) for key, rows in service.rollouts.items()} == {(1, "train"): 2, (1, "probe"): 1}
    assert service.rollouts[1, "train"][0]["score/accuracy"] == 1.0
    assert service.rollouts[1, "probe"][0]["completion"] == "(A)"


def test_an_image_is_handed_over_once_and_few_wait_in_memory(folder, impatient):
    may_open = threading.Event()
    with FanOut([JsonlTracker(folder), service := Slow(folder, may_open)]) as tracker:
        for step in range(9):
            run(tracker, [step])
            example = "first" if step in (0, 8) else "again" if step == 7 else f"of {step}"
            tracker.log_rollouts([rollout_row(example=example)] * 2, step=step)
        tracker.log_rollouts([rollout_row(example="again")], step=8, name="probe")
        may_open.set()
    assert service.images == {**{step: [] for step in range(5)}, 5: ["of 5"], 6: ["of 6"], 7: ["again"], 8: ["first"]}
