"""What is known of a sweep: its jobs, its end, and what is said of both."""

from __future__ import annotations

import json
import os
import signal

import pytest

from visual_r1.sweeps.ledger import Record, SweepFolder, exit_code, last_lines, table


def test_the_last_lines_are_those_that_count(tmp_path):
    log = tmp_path / "log"
    assert last_lines(log) == []
    log.write_bytes(b"".join(b"line %d\n" % number for number in range(10_000)) + b"\n 1%\r 2%\xff\n\n")
    assert last_lines(log) == [*(f"line {number}" for number in range(9_993, 10_000)), " 2%\ufffd"]


def test_a_record_of_a_job_is_a_file(tmp_path):
    folder = SweepFolder(tmp_path)
    record = Record(number=11, run="runs/x", state="running")
    folder.write(record)
    folder.write(Record(number=2, run="runs/y", state="finished", seconds=3.0))
    (tmp_path / "job_2.log").touch()
    assert [one.number for one in folder.records()] == [2, 11]
    assert folder.records()[1] == record
    assert json.loads((tmp_path / "job_2.json").read_text())["seconds"] == 3.0


def test_a_sweep_is_stopped_once_and_ends_at_once_when_it_is_told_again(tmp_path):
    folder = SweepFolder(tmp_path)
    folder.note_signal(signal.SIGTERM, None)
    folder.note_signal(signal.SIGINT, None)  # the same notice, by another way
    assert folder.stop_signal() == signal.SIGTERM
    os.utime(tmp_path / "stopped_by", (0, 0))
    with pytest.raises(KeyboardInterrupt):
        folder.note_signal(signal.SIGINT, None)


@pytest.mark.parametrize(
    ("states", "by", "code"),
    [
        (["finished", "skipped", "resumed"], None, 0),
        (["finished", "failed"], None, 1),
        (["finished", "running"], None, 1),
        (["failed", "preempted"], None, 75),
        (["failed"], signal.SIGUSR1, 75),
        (["stopped"], signal.SIGINT, 130),
        ([], None, 0),
    ],
)
def test_the_exit_code_says_what_to_do(tmp_path, states, by, code):
    folder = SweepFolder(tmp_path)
    for number, state in enumerate(states):
        folder.write(Record(number=number, run=f"runs/{number}", state=state))
    if by is not None:
        folder.stop(by)
    assert exit_code(folder) == code


def test_a_search_ends_with_the_best(tmp_path):
    folder = SweepFolder(tmp_path)
    folder.begin("python run.py -m search=x", None)
    assert table(folder, seconds=0).endswith("best: none, for no job has finished")
    for number, objective in enumerate((0.25, 0.75, None)):
        state = "failed" if objective is None else "finished"
        folder.write(
            Record(number=number, run=f"runs/{number}", state=state, objective=objective, reason="exit code 1")
        )
    shown = table(folder, seconds=0)
    assert "sweep: 3 jobs in 0.0 minutes: 2 finished, 1 failed\n" in shown
    assert "\nbest: job 1, 75.0 % on the probe: runs/1\n" in shown


def test_a_job_of_which_no_end_was_heard_is_not_called_finished(tmp_path):
    folder = SweepFolder(tmp_path)
    folder.begin("python run.py -m", ["runs/0"])
    folder.write(Record(number=0, run="runs/0", state="running", log=str(tmp_path / "job_0.log")))
    assert "1 unknown" in table(folder, seconds=0) and "job 0: nothing was heard of its end" in table(folder, seconds=0)
