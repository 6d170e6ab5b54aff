"""A job of a sweep: a process of its own, told of every signal, never left behind, and written down."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from visual_r1.files import write_json
from visual_r1.run_folder import RunFolder
from visual_r1.sweeps.job import objective
from visual_r1.sweeps.ledger import SweepFolder

ROOT = Path(__file__).resolve().parents[2]

# Each job's script begins with this; `run` leaves what a finished run does, in no time.
JOB = """
import os, signal, sys, time
from pathlib import Path
from visual_r1.files import write_json
from visual_r1.run_folder import RunFolder
from visual_r1.sweeps.processes import end_with_parent

end_with_parent()

def open_run(number):
    return RunFolder(Path("runs") / str(number)).open({"number": number}, {})

def run(number, accuracy=0.5):
    with open_run(number):
        print("trained", number, flush=True)
        summary = {"probe_accuracy_after": accuracy, "accuracy_after": 1.0}
        write_json(Path("runs") / str(number) / "summary.json", summary)

def serve(number):
    "Runs until a signal comes, and ends as a training does that has saved."
    received = []
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(one, lambda number, frame: received.append(number))
    Path(f"started{number}").write_text(str(os.getpid()))
    while not received:
        time.sleep(0.01)
    time.sleep(0.7)
    print("received", *(signal.Signals(one).name for one in received), flush=True)
    sys.exit(75)
"""

# What `python run.py -m` does with its jobs, which are scripts here.
SWEEP = """
import os, psutil, signal, sys
from pathlib import Path
from visual_r1.run_folder import RunFolder
from visual_r1.sweeps.job import Job, run_job
from visual_r1.sweeps.ledger import SweepFolder, exit_code, table

job, prelude, *scripts = sys.argv[1:]
place = Path.cwd()
sweep = SweepFolder(place / "sweep")
sweep.begin("python run.py -m", [f"runs/{number}" for number in range(len(scripts))])
values = []
with sweep.stoppable():
    exec(prelude)
    for number, script in enumerate(scripts):
        values.append(run_job(Job(
            number=number, command=(sys.executable, "-c", job + script),
            folder=RunFolder(place / "runs" / str(number)), config={"number": number}, sweep=sweep,
            directory=place, num_gpus=1, num_at_once=1,
        )))
print(table(sweep, seconds=60.0))
print("values", values, "pid", os.getpid(), "MiB", psutil.Process().memory_info().rss >> 20)
sys.exit(exit_code(sweep))
"""


def command(*scripts, prelude=""):
    return [sys.executable, "-c", SWEEP, JOB, prelude, *scripts]


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **more}


def start(place, *scripts, prelude=""):
    return subprocess.Popen(
        command(*scripts, prelude=prelude), cwd=place, env=environment(), stdout=subprocess.PIPE, text=True
    )


def sweep(place, *scripts, prelude=""):
    return subprocess.run(
        command(*scripts, prelude=prelude), cwd=place, env=environment(), capture_output=True, text=True, check=False
    )


def states(place):
    return [record.state for record in SweepFolder(place / "sweep").records()]


def wait_for(path):
    deadline = time.monotonic() + 300
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path.name} did not come"
        time.sleep(0.02)
    return int(path.read_text())


def assert_gone(*processes):
    """A process that was killed is gone a moment later, or waits for whoever has started it."""
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def test_every_job_has_a_process_of_its_own_and_takes_its_memory_with_it(tmp_path):
    big = "print('pid', os.getpid()); data = bytearray(2**29); data[::4096] = b'x' * len(data[::4096]); "
    done = sweep(tmp_path, big + "run(0)", big + "run(1, 0.25)")
    assert done.returncode == 0, done.stderr
    pids = re.findall(r"^pid (\d+)", done.stdout, re.MULTILINE)
    [(own, mebibytes)] = re.findall(r"pid (\d+) MiB (\d+)", done.stdout)
    assert len({*pids, own}) == 3
    assert int(mebibytes) < 256  # of the 512 that each job takes
    assert "values [0.5, 0.25]" in done.stdout  # the probe's accuracy, not the benchmark's
    assert done.stdout.count("trained") == 2  # shown as it comes, and kept
    assert "trained 0" in (tmp_path / "sweep" / "job_0.log").read_text()
    assert states(tmp_path) == ["finished", "finished"]


def test_a_killed_job_stops_no_other_and_is_the_only_one_that_comes_again(tmp_path):
    killed = "held = open_run(1); held.__enter__(); print('step 1\\rstep 2', flush=True); "
    killed += "os.kill(os.getpid(), signal.SIGKILL)"
    broken = "print('a line'); print('Error: no such thing', file=sys.stderr); sys.exit(1)"
    done = sweep(tmp_path, "run(0)", killed, broken, "run(3)")
    assert done.returncode == 1
    assert states(tmp_path) == ["finished", "failed", "failed", "finished"]
    assert "sweep: 4 jobs in 1.0 minutes: 2 finished, 2 failed\n" in done.stdout
    assert re.search(r"^1    failed +0\.0 +runs/1$", done.stdout, re.MULTILINE)
    log = tmp_path / "sweep" / "job_1.log"
    assert f"job 1: killed by SIGKILL\n  | step 2\n  log: {log}\n" in done.stdout
    assert "job 2: exit code 1\n  | " in done.stdout
    assert "  | a line\n" in done.stdout and "  | Error: no such thing\n" in done.stdout
    assert "values [0.5, None, None, 0.5]" in done.stdout
    assert "Error: no such thing" in done.stderr and "a line" not in done.stderr

    again = sweep(tmp_path, "run(0)", "run(1)", "run(2)", "run(3)")
    assert again.returncode == 0, again.stderr
    assert states(tmp_path) == ["skipped", "resumed", "finished", "skipped"]
    assert again.stdout.count("trained") == 2 and "values [0.5, 0.5, 0.5, 0.5]" in again.stdout


def test_a_log_that_the_disk_does_not_take_stops_no_job(tmp_path):
    prelude = "sweep.log(0, machine=0).symlink_to('/dev/full')"
    done = sweep(tmp_path, "for number in range(20_000): print('line', number)\nrun(0)", prelude=prelude)
    assert done.returncode == 0, done.stderr
    assert "\nline 19999\n" in done.stdout and states(tmp_path) == ["finished"]


def test_a_job_that_cannot_use_its_folder_is_one_line_and_no_process(tmp_path):
    assert sweep(tmp_path, "run(0)").returncode == 0
    (tmp_path / "runs" / "0" / "config.yaml").write_text("number: 7\n")
    done = sweep(tmp_path, "run(0)", "run(1)")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "holds a finished run with another configuration (number)" in done.stderr
    assert states(tmp_path) == ["failed", "finished"]
    assert done.stdout.count("job 0: ") == 1  # in the table


@pytest.mark.parametrize("sent", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_to_the_sweep_reaches_its_job_once_and_starts_no_other(tmp_path, sent):
    with start(tmp_path, "serve(0)", "run(1)") as running:
        wait_for(tmp_path / "started0")
        running.send_signal(signal.Signals[sent])
        output, _ = running.communicate()
    assert running.returncode == 75
    assert f"received {sent}\n" in output  # once
    assert states(tmp_path) == ["preempted"]
    assert "sweep: 2 jobs in 1.0 minutes: 1 preempted, 1 not started\n" in output


def test_a_job_that_a_person_stops_is_not_a_failed_one(tmp_path):
    script = "signal.signal(signal.SIGINT, signal.SIG_DFL); Path('started').write_text('1'); time.sleep(600)"
    with start(tmp_path, script, "run(1)") as running:
        wait_for(tmp_path / "started")
        running.send_signal(signal.SIGINT)
        running.communicate()
    assert running.returncode == 130
    assert states(tmp_path) == ["stopped"]


def test_a_job_that_was_told_to_stop_stops_the_sweep(tmp_path):
    done = sweep(tmp_path, "sys.exit(75)", "run(1)")
    assert done.returncode == 75
    assert states(tmp_path) == ["preempted"] and "1 not started" in done.stdout


def test_the_jobs_of_a_worker_hear_what_the_sweep_was_told(tmp_path):
    """Wherever it runs: the worker and what was typed share the sweep's folder alone."""
    prelude = "p = sweep.path / 'sweep.json'; p.write_text(p.read_text().replace(str(os.getpid()), '1'))"
    with start(tmp_path, "serve(0)", "run(1)", prelude=prelude) as running:
        wait_for(tmp_path / "started0")
        SweepFolder(tmp_path / "sweep").stop(signal.SIGUSR1)
        output, _ = running.communicate()
    assert "[0] received SIGUSR1\n" in output
    assert states(tmp_path) == ["preempted"]


def test_a_launcher_that_waits_for_the_signal_gets_it_when_the_job_has_saved(tmp_path):
    """As submitit does, which queues the job again."""
    prelude = "signal.signal(signal.SIGUSR2, lambda *_: print('queued again', states_now(), flush=True));"
    prelude += "states_now = lambda: [record.state for record in sweep.records()]"
    with start(tmp_path, "serve(0)", "run(1)", prelude=prelude) as running:
        wait_for(tmp_path / "started0")
        running.send_signal(signal.SIGUSR2)
        output, _ = running.communicate()
    assert output.index("received SIGUSR2") < output.index("queued again ['preempted']")
    assert states(tmp_path) == ["preempted", "finished"]  # the other jobs are none of its business


@pytest.mark.parametrize("is_worker", [False, True], ids=["sweep", "worker"])
def test_nothing_is_left_of_a_sweep_that_is_killed_outright(tmp_path, is_worker):
    script = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path("started").write_text(str(child.pid))
time.sleep(600)
"""
    # A worker outlives what was typed, and has to notice.
    prelude = (
        "pid = os.fork(); Path('child').write_text(str(pid)) if pid else None; pid and os.wait()" if is_worker else ""
    )
    with start(tmp_path, script, prelude=prelude) as running:
        grandchild = psutil.Process(wait_for(tmp_path / "started"))
        job = grandchild.parent()
        running.kill()
    assert job is not None
    assert_gone(grandchild, job)


def test_what_a_job_leaves_behind_ends_with_it(tmp_path):
    script = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path("left").write_text(str(child.pid))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert sweep(tmp_path, script).returncode == 1
    left = int((tmp_path / "left").read_text())
    assert_gone(*(one for one in psutil.process_iter() if one.pid == left))


def test_jobs_at_once_see_gpus_of_their_own_and_share_the_cores(tmp_path):
    """Those of three sweeps at the same time, on a machine with room for two."""
    said = f"''.join(path.read_text() for path in Path({str(tmp_path)!r}).glob('*.out'))"
    wait = f"for _ in range(3000):\n    if 'waits for' in {said}: break\n    time.sleep(0.02)\n"  # for the third
    see = "print('sees', os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'], flush=True)"
    program = SWEEP.replace("num_gpus=1, num_at_once=1", "num_gpus=2, num_at_once=2")
    env = environment(CUDA_VISIBLE_DEVICES="4,5,6,7", TMPDIR=str(tmp_path))
    env.pop("OMP_NUM_THREADS", None)
    running = []
    for number in range(3):
        (place := tmp_path / str(number)).mkdir()
        arguments = [sys.executable, "-c", program, JOB, "", wait + see]
        with (tmp_path / f"{number}.out").open("w") as output:
            running.append(subprocess.Popen(arguments, cwd=place, env=env, stdout=output))
    assert [one.wait() for one in running] == [0, 0, 0]
    outputs = [path.read_text() for path in tmp_path.glob("*.out")]
    seen = [found.groups() for one in outputs if (found := re.search(r"sees (\S+) (\d+)", one))]
    assert sum("job 0: waits for 2 of the GPUs 4, 5, 6, 7\n" in one for one in outputs) == 1
    threads = str(max(1, (os.cpu_count() or 1) // 2))
    assert len(seen) == 3 and set(seen) == {("4,5", threads), ("6,7", threads)}


def test_a_gpu_is_held_until_the_job_itself_has_ended(tmp_path):
    """Not only until the process that watches it is killed."""
    script = f"""
import fcntl, os, pathlib, signal, time
parent = os.getppid()
os.kill(parent, signal.SIGKILL)
while os.getppid() == parent:
    time.sleep(0.01)
[lock] = pathlib.Path({str(tmp_path)!r}).glob("visual_r1-gpus-*/0.lock")
try:
    fcntl.flock(os.open(lock, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    pathlib.Path("held").write_text("1")
else:
    pathlib.Path("held").write_text("0")
"""
    env = environment(CUDA_VISIBLE_DEVICES="0", TMPDIR=str(tmp_path))
    subprocess.run([sys.executable, "-c", SWEEP, "", "", script], cwd=tmp_path, env=env, check=False)
    assert wait_for(tmp_path / "held") == 1


def test_the_objective_is_the_probe_of_a_finished_run(tmp_path):
    folder = RunFolder(tmp_path)
    assert objective(folder) is None
    write_json(folder.summary, {"accuracy_after": 0.9})
    assert objective(folder) is None
    write_json(folder.summary, {"accuracy_after": 0.9, "probe_accuracy_after": 0.25})
    assert objective(folder) == 0.25
