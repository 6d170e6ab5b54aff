"""Runs in processes that start at once: forked from one that has imported everything, to be killed and started again.

As a program it reads a request a line from its input, forks a run, and answers with its id; see `Warm`.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True)
class Process:
    """A forked run."""

    warm: Warm
    pid: int
    log: Path

    def cpu_seconds(self) -> float:
        """What it has used of a processor: the measure of its progress that a busy machine does not change."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def has_ended(self) -> bool:
        return self._state() == "Z"

    def _state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def is_held(self) -> bool:
        """Whether it waits at the call that it was to be held at; SIGCONT lets it go on."""
        return self._state() == "T"

    def wait(self) -> int:
        """Its exit code; the negative number of the signal that killed it."""
        return self.warm.ask({"wait": self.pid})

    def wait_until(self, is_so: Callable[[], bool]) -> bool:
        """Whether something came true before it ended."""
        while not self.has_ended():
            if is_so():
                return True
            time.sleep(0.005)
        return False

    def started_at(self) -> list[int]:
        """The steps at which its trainings began: 0, or that of a checkpoint; a chain has several."""
        file = self.log.with_suffix(".steps")
        return [int(line) for line in file.read_text().split()] if file.exists() else []


class Warm:
    """The process that forks runs. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.engines.resuming.warm"],
            cwd=folder,
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._server.stdout is not None
        # Libraries may print before it: transformers that wandb is offline.
        assert "ready\n" in iter(self._server.stdout.readline, "")

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.kill()
        self._server.wait()

    def start(
        self, overrides: Sequence[str], *, die: str | None = None, hold: str | None = None, **environment: str
    ) -> Process:
        """Begins a run.

        Args:
            overrides: as for ``run.py``.
            die: ``before|after|half module.name number``: the process kills itself before or after that call of a
                function, or after it and having cut the file that the call wrote in two.
            hold: the same, but it only stands still: see `Process.is_held`.
            environment: what this process alone has.
        """
        self._number += 1
        log = self._folder / f"{self._number:03}.log"
        signals = {signal.SIGKILL.name: die, signal.SIGSTOP.name: hold}
        request = {"run": list(overrides), "signals": signals, "log": str(log), "environment": environment}
        return Process(self, self.ask(request), log)

    def run(self, overrides: Sequence[str], **more: Any) -> tuple[int, Process]:
        """A run to its end: its exit code, and what it was."""
        process = self.start(overrides, **more)
        return process.wait(), process

    def start_two(self, overrides: Sequence[str]) -> tuple[Process, Process]:
        """Begins a run in two processes that meet here, as they do at a launcher's."""
        self._meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._meeting.port)}
        first, second = (self.start(overrides, RANK=str(rank), LOCAL_RANK=str(rank), **common) for rank in range(2))
        return first, second

    def ask(self, request: Any) -> int:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())


def main() -> None:
    """Answers requests until the input ends."""
    from visual_r1 import experiment, models  # noqa: F401 (what takes long, and starts no thread)
    from visual_r1.methods import chain, grpo, resampling_trainer, sft  # noqa: F401
    from visual_r1.report import figure  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        elif (answer := os.fork()) == 0:
            os._exit(_run(request))
        print(answer, flush=True)


def _run(request: dict[str, Any]) -> int:
    """What run.py does, in a process that has imported all of it."""
    log = os.open(request["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(0)
    os.environ |= request["environment"]
    from visual_r1 import distributed, preemption
    from visual_r1.config import compose_config
    from visual_r1.experiment import prepare, run, take_part
    from visual_r1.files import WriteError
    from visual_r1.methods.training import TrackingCallback

    def note(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with Path(request["log"]).with_suffix(".steps").open("a") as file:
            file.write(f"{state.global_step}\n")
        began(self, args, state, control, **kwargs)

    began, TrackingCallback.on_train_begin = TrackingCallback.on_train_begin, note
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background, it is ignored
    distributed.keep_quiet()
    preemption.arm(says=distributed.is_main())
    for name, point in request["signals"].items():
        if point is not None:
            _signal_at(signal.Signals[name], *point.split())
    try:
        distributed.join(deepspeed=False)
        experiment = distributed.together(lambda: prepare(compose_config(request["run"])))
        if distributed.is_main():
            run(experiment)
        else:
            take_part(experiment)
    except SystemExit as ended:
        return int(ended.code or 0)
    except WriteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BaseException:
        import traceback

        traceback.print_exc()
        return 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _signal_at(sent: signal.Signals, when: str, name: str, number: str) -> None:
    """Signals this process around one call of a function, by its dotted name where the caller looks it up."""
    owner, _, attribute = name.rpartition(".")
    try:
        place = importlib.import_module(owner)
    except ModuleNotFoundError:
        module, _, of = owner.rpartition(".")
        place = getattr(importlib.import_module(module), of)
    function, calls = getattr(place, attribute), 0

    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        is_it = calls == int(number)
        if is_it and when == "before":
            os.kill(os.getpid(), sent)
        result = function(*args, **kwargs)
        if is_it and when != "before":
            if when == "half":
                path = next(Path(one) for one in args if isinstance(one, str | Path))
                os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), sent)
        return result

    setattr(place, attribute, called)


if __name__ == "__main__":
    main()
