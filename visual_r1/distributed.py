"""Several processes that train one policy together: who starts them, which one this is, how they keep together.

They run on one machine, a GPU each. ``python run.py`` starts them itself; under ``torchrun`` they are there already.
Rank 0 alone writes the run folder, prints and evaluates. The others take part in training and in the probe, and leave.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

T = TypeVar("T")

USER_ERROR = 2
"""The exit code of processes over a mistake of the user's, which rank 0 has named."""

_TIMEOUT = timedelta(hours=1)
"""How long a process waits for the others: at most for the slowest one's rollouts and rewards."""
_PATIENCE_SECONDS = 20.0
_DECIDED_ELSEWHERE = {
    "train_batch_size": "the method",
    "train_micro_batch_size_per_gpu": "the method",
    "gradient_accumulation_steps": "the method",
    "gradient_clipping": "method.trl.max_grad_norm",
    "bf16.enabled": "scale.bf16",
}


class DistributedError(ValueError):
    """The processes cannot start or do not fit together, or one has died: one line, with the fix."""


class AlreadySaidError(DistributedError):
    """The processes have ended over a mistake of the user's, and rank 0 has said which."""


def is_joined() -> bool:
    """Whether this process was started as one of several, by us or by ``torchrun``."""
    return {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys()


def num_processes() -> int:
    """How many processes train together; 1 for a process on its own."""
    return int(os.environ["WORLD_SIZE"]) if is_joined() else 1


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ["RANK"]) if is_joined() else 0


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def check(*, processes: int, deepspeed: Mapping[str, Any] | None) -> None:
    """Says whether so many processes can train here; starts none.

    Args:
        processes: the number that the config asks for.
        deepspeed: DeepSpeed's own configuration; None trains without it.

    Raises:
        DistributedError: ``torchrun`` has started another number, there are too few GPUs, DeepSpeed is missing, or it
            is asked for something that we cannot do or that the method decides.
    """
    if processes < 1:
        raise DistributedError(f"distributed.num_processes={processes}: expected at least 1")
    if is_joined() and num_processes() != processes:
        raise DistributedError(
            f"WORLD_SIZE={num_processes()} but distributed.num_processes={processes}: make the two equal, or leave "
            "torchrun out, since run.py starts its own processes"
        )
    if deepspeed is not None:
        _check_deepspeed(deepspeed)
    import torch

    num_gpus = torch.cuda.device_count()
    has_own = is_joined() and num_gpus == 1 and "CUDA_VISIBLE_DEVICES" in os.environ  # some launchers deal them out
    if 0 < num_gpus < processes and not has_own:
        raise DistributedError(
            f"distributed.num_processes={processes}: this machine has {num_gpus} GPU{'s' if num_gpus > 1 else ''}; "
            f"set distributed.num_processes={num_gpus}"
        )


def _check_deepspeed(deepspeed: Mapping[str, Any]) -> None:
    if find_spec("deepspeed") is None:
        raise DistributedError("distributed.deepspeed: DeepSpeed is not installed: pip install 'visual-r1[deepspeed]'")
    stage = deepspeed.get("zero_optimization", {}).get("stage", 0)
    if stage not in (0, 1, 2):
        raise DistributedError(
            f"distributed.deepspeed.zero_optimization.stage={stage}: expected at most 2, which leaves each process "
            "the whole weights that it samples with"
        )
    for name, by in _DECIDED_ELSEWHERE.items():
        group, _, key = name.rpartition(".")
        value = (deepspeed.get(group, {}) if group else deepspeed).get(key, "auto")
        if value != "auto":
            raise DistributedError(f"distributed.deepspeed.{name}={value}: {by} decides this; leave it at auto")


def launch(command: Sequence[str], *, processes: int) -> None:
    """Runs a command as several processes that know their rank, until all have ended.

    What they print appears here. When one dies the others are stopped, and what stops this process stops them.

    Raises:
        AlreadySaidError: they have ended with `USER_ERROR`.
        DistributedError: one has failed, or was killed.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port: two runs on one machine must not meet
        local_addr="localhost",  # the machine's own name need not resolve
        max_restarts=0,  # the same command resumes; restarting in silence would hide that something dies
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    try:
        with _as_before():
            elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError as failed:
        first = min(one.timestamp for one in failed.failures.values())
        # Later ones did not stop when they were told to, and were killed for it.
        codes = {number: one.exitcode for number, one in failed.failures.items() if one.timestamp <= first + 1}
        raise _reason(codes, processes) from None
    except SignalException as stopped:
        signal.raise_signal(stopped.sigval)  # our own handlers are back: end as a single process would
        raise


@contextmanager
def _as_before() -> Generator[None]:
    """Keeps the launcher's logging to itself, and takes back the signal handlers that it leaves behind."""
    level = logging.root.manager.disable
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    handlers = {one: signal.getsignal(one) for one in signals}
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(level)
        if threading.current_thread() is threading.main_thread():
            for one, handler in handlers.items():
                signal.signal(one, handler)


def _reason(exit_codes: Mapping[int, int], processes: int) -> DistributedError:
    """What has happened, from the exit codes of the processes that did not end well; negative ones are signals."""
    if USER_ERROR in exit_codes.values():
        return AlreadySaidError("a mistake in the command, named above")
    # The launcher ends the others by SIGTERM; a process killed by anything else is likelier the cause than one that
    # fails because it lost touch with it.
    causes = sorted(exit_codes, key=lambda number: (exit_codes[number] == -signal.SIGTERM, exit_codes[number] > 0))
    code = exit_codes[causes[0]]
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"has failed (exit code {code})"
    return DistributedError(
        f"process {causes[0]} of {processes} {how} and the others were stopped; the same command resumes the run"
    )


def keep_quiet() -> None:
    """Lets rank 0 alone print, warn and show progress. Call before torch and transformers are loaded."""
    if is_main():
        return
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a traceback
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (as long as the process)


def say_error(message: str) -> None:
    """Says in one line what was wrong. One of several processes ends with that: all have found it, rank 0 says it."""
    if is_main():
        print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    else:
        time.sleep(_PATIENCE_SECONDS)  # the launcher stops all as soon as one has ended: first it must be said
    if is_joined():
        os._exit(USER_ERROR)


def fails_first() -> bool:
    """Whether no other process has failed before: most fail because they have lost the first, and hide what it says.

    A process that is not the first returns late, so that the first has said it before the launcher stops all.
    """
    if not is_joined():
        return True
    import torch

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = torch.distributed.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5))
        is_first = store.add("visual_r1/failures", 1) == 1
    except RuntimeError:  # no launcher any more
        return True
    if not is_first:
        time.sleep(_PATIENCE_SECONDS)
    return is_first


def join(*, deepspeed: bool) -> None:
    """Connects this process to the others; does nothing in a process on its own.

    Args:
        deepspeed: whether DeepSpeed is to train.
    """
    if not is_joined():
        return
    import torch

    _end_with_parent()
    local_rank, on_gpu = int(os.environ["LOCAL_RANK"]), torch.cuda.is_available()
    if sys.platform == "linux" and os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # this machine alone: its own name need not resolve
    if on_gpu:
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # accelerate 1.15 would call it cpu:0, which torch cannot load an optimizer's state to.
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    if "OMP_NUM_THREADS" not in os.environ:
        # Each process would take every core. accelerate would decide it otherwise, later, and with a warning.
        threads = max(1, (os.cpu_count() or 1) // num_processes())
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=_TIMEOUT)
    if deepspeed:
        # transformers leaves this out where it trains on the CPU, and DeepSpeed then takes itself for a single process.
        import_module("deepspeed.comm").init_distributed(dist_backend="nccl" if on_gpu else "gloo", timeout=_TIMEOUT)


def _end_with_parent() -> None:
    """Ends this process when the launcher is gone; killed outright, it cannot stop what it has started."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def together(step: Callable[[], T]) -> T:
    """Runs a step in every process; where it refuses its input in one, it does in all, with the same message.

    Raises:
        ValueError, OSError: of this process; else `DistributedError` with the message of the first that has one.
    """
    if not is_joined():
        return step()
    error: Exception | None = None
    result: Any = None
    try:
        result = step()
    except (ValueError, OSError) as raised:
        error = raised
    messages = gathered(None if error is None else str(error))
    if error is not None:
        raise error
    for number, message in enumerate(messages):
        if message is not None:
            raise DistributedError(f"process {number}: {message}")
    return result


def check_same(config: Mapping[str, Any]) -> None:
    """Refuses to begin where the processes have composed different configurations.

    Raises:
        DistributedError: with the keys of the top level that differ.
    """
    configs = gathered(dict(config))
    different = sorted({key for one in configs for key in {**one, **configs[0]} if one.get(key) != configs[0].get(key)})
    if different:
        raise DistributedError(
            f"the processes have composed different values of {', '.join(different)}: spell out what depends on the "
            "clock or on chance"
        )


def gathered(value: T) -> list[T]:
    """The values of all processes in order of rank; they travel by pickle."""
    if not is_joined():
        return [value]
    import torch

    values: list[Any] = [None] * num_processes()
    torch.distributed.all_gather_object(values, value)
    return values


def meet() -> None:
    """Waits until every process has come this far."""
    gathered(None)


def leave() -> None:
    """Parts from the others, when all have come this far; from here on no process waits for another."""
    if not is_joined():
        return
    import torch

    meet()
    torch.distributed.destroy_process_group()
