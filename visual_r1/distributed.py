"""Several processes that train one policy together: who starts them, which one this is, how they keep together.

They run on one machine or several, a GPU each. ``python run.py`` starts those of its machine itself, also where
``srun`` has started it once on each. Under ``torchrun``, ``accelerate launch`` and ``srun`` with a task a GPU they are
there already. Rank 0 alone writes the run folder and prints; all take part in training, probe and evaluation.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import socket
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
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from visual_r1 import preemption

T = TypeVar("T")

USER_ERROR = 2
"""The exit code of processes over a mistake of the user's, which rank 0 has named."""

_PREEMPTED = {preemption.EXIT_CODE, *(-number for number in preemption.SIGNALS)}
"""How processes end that were told to: as one that has saved, or as one that had not yet begun to listen."""
_TIMEOUT = timedelta(hours=1)
"""How long a process waits for the others: at most for the slowest one's rollouts and rewards."""
_PATIENCE_SECONDS = 20.0
_START_SECONDS = 600
"""How long a machine waits for the others to start."""
_FILE_SECONDS = 90.0
"""How long a file may take to be seen on another machine: a network file system looks anew after 60 seconds."""
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
    """This process's number, from 0; of what ``srun`` has started a task a machine of, the machine's."""
    if is_joined():
        return int(os.environ["RANK"])
    return int(os.environ["SLURM_PROCID"]) if _num_tasks() > 1 else 0


def _num_tasks() -> int:
    """The tasks of the ``srun`` that has started this process; 1 without one, in a batch script for example."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) if "SLURM_PROCID" in os.environ else 1


def has_neighbours() -> bool:
    """Whether ``srun`` has started the same command on other machines, to run together."""
    return not is_joined() and _num_tasks() > 1


def adopt_tasks() -> None:
    """Where ``srun`` has started several tasks on a machine, takes this one's place among them; else does nothing.

    Call before anything else: from here on the process `is_joined`. They meet on the step's first machine, at a port
    that follows from the numbers of job and step, unless ``MASTER_ADDR`` and ``MASTER_PORT`` say otherwise.
    """
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
    if is_joined() or _num_tasks() <= nodes:
        return
    host, _, port = _slurm_rendezvous().rpartition(":")
    os.environ |= {"RANK": os.environ["SLURM_PROCID"], "LOCAL_RANK": os.environ["SLURM_LOCALID"]}
    os.environ["WORLD_SIZE"] = str(_num_tasks())
    os.environ.setdefault("MASTER_ADDR", host if nodes > 1 else "localhost")
    os.environ.setdefault("MASTER_PORT", port)
    os.environ["LOCAL_WORLD_SIZE"] = str(-(-_num_tasks() // nodes))


def _slurm_rendezvous() -> str:
    job, step = (int(os.environ.get(name, 0)) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST") or "localhost"
    return f"{first_node(nodes)}:{15_000 + (31 * job + step) % 15_000}"  # below the ports that Linux gives to clients


def first_node(nodes: str) -> str:
    """The first host of SLURM's compressed list: ``node01`` of ``node[01-04,07],login2``."""
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def check(
    *,
    processes: int,
    nodes: int = 1,
    rendezvous: str | None = None,
    deepspeed: Mapping[str, Any] | None = None,
    fsdp: Mapping[str, Any] | None = None,
) -> None:
    """Says whether so many processes can train here; starts none.

    Args:
        processes: the number that the config asks for, over all machines.
        nodes: machines, each with the same number of processes.
        rendezvous: ``host:port`` where the machines meet; None: as SLURM says, or this machine alone.
        deepspeed: DeepSpeed's own configuration; None trains without it.
        fsdp: what transformers calls ``fsdp_config``; None trains without it.

    Raises:
        DistributedError: a launcher has started another number, there are too few GPUs, the machines have no place to
            meet or it is taken, DeepSpeed is missing, or it is asked for something that the method decides.
    """
    if processes < 1:
        raise DistributedError(f"distributed.num_processes={processes}: expected at least 1")
    if nodes < 1 or not is_joined() and processes % nodes:
        raise DistributedError(
            f"distributed.num_nodes={nodes}: {processes} processes do not divide among so many machines"
        )
    if is_joined():
        _check_launcher(processes)
    else:
        _check_nodes(nodes, rendezvous)
    if deepspeed is not None and fsdp is not None:
        raise DistributedError(
            "distributed.deepspeed and distributed.fsdp: both split the model; set one of them to null"
        )
    if deepspeed is not None:
        _check_deepspeed(deepspeed)
    if fsdp is not None and fsdp.get("version") != 2:
        raise DistributedError(
            f"distributed.fsdp.version={fsdp.get('version')}: expected 2; transformers drops the first"
        )
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes)) if is_joined() else processes // nodes
    import torch

    num_gpus = torch.cuda.device_count()
    if fsdp is not None and not num_gpus:
        raise DistributedError(
            "distributed.fsdp: without a GPU accelerate would train by ddp in silence; choose distributed=zero3 or ddp"
        )
    has_own = is_joined() and num_gpus == 1 and "CUDA_VISIBLE_DEVICES" in os.environ  # some launchers deal them out
    if 0 < num_gpus < here and not has_own:
        raise DistributedError(
            f"distributed.num_processes={processes}: this machine has {num_gpus} GPU{'s' if num_gpus > 1 else ''}"
            f"{f' for {here} of them' if nodes > 1 else ''}; set distributed.num_processes={num_gpus * nodes}"
        )


def num_evaluating(processes: int, nodes: int) -> int:
    """How many processes share an evaluation that a config gives so many: where there are GPUs, at most one each."""
    if processes <= nodes:
        return processes
    import torch

    num_gpus = torch.cuda.device_count()
    return min(processes, num_gpus * nodes) if num_gpus else processes


def _check_launcher(processes: int) -> None:
    """Whether what has started this process agrees with the config."""
    if num_processes() != processes:
        raise DistributedError(
            f"WORLD_SIZE={num_processes()} but distributed.num_processes={processes}: make the two equal, or leave "
            "torchrun, accelerate launch or srun's tasks out, since run.py starts its own processes"
        )
    for library in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{library}", "false").lower() in ("true", "1"):
            raise DistributedError(
                f"ACCELERATE_USE_{library}=true: the config group `distributed` decides how the model is split; leave "
                "it out of accelerate's options and its configuration file, and choose distributed=zero2, zero3 or fsdp"
            )


def _check_nodes(nodes: int, rendezvous: str | None) -> None:
    """Whether this machine can find the others."""
    tasks = _num_tasks()
    if tasks > 1 and tasks != nodes:
        raise DistributedError(
            f"srun has started {tasks} tasks, one a machine, but distributed.num_nodes={nodes}: set "
            f"distributed.num_nodes={tasks}, or start one task with srun --ntasks=1"
        )
    if nodes == 1:
        return
    if tasks == 1 and rendezvous is None:
        raise DistributedError(
            f"distributed.num_nodes={nodes}: nobody says where they meet; set distributed.rendezvous=host:port, the "
            "host one of them, and type the same on each, or let srun start one task on each"
        )
    host, port = _endpoint(rendezvous)
    try:
        if _hosts(host):
            _check_free(host, port)
        else:
            socket.getaddrinfo(host, port)
    except OSError as error:
        raise DistributedError(
            f"{host}:{port}, where the machines meet: {error.strerror or error}; set distributed.rendezvous=host:port"
        ) from error


def _endpoint(rendezvous: str | None) -> tuple[str, int]:
    """Host and port where the machines meet, as the config says or else SLURM."""
    host, _, port = (rendezvous or _slurm_rendezvous()).rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise DistributedError(f"distributed.rendezvous={rendezvous}: expected host:port, as node1:29500")
    return host, int(port)


def _hosts(host: str) -> bool:
    """Whether this machine is the one that the others come to."""
    if _num_tasks() > 1:
        return is_main()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        return False
    return True


def _check_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def _address_towards(host: str, port: int) -> str:
    """This machine's address on the way to a host; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        return probe.getsockname()[0]


def _check_deepspeed(deepspeed: Mapping[str, Any]) -> None:
    if find_spec("deepspeed") is None:
        raise DistributedError("distributed.deepspeed: DeepSpeed is not installed: pip install 'visual-r1[deepspeed]'")
    split = deepspeed.get("zero_optimization", {})
    if split.get("stage", 0) == 3 and not split.get("stage3_gather_16bit_weights_on_model_save", False):
        raise DistributedError(
            "distributed.deepspeed.zero_optimization.stage3_gather_16bit_weights_on_model_save=false: a checkpoint "
            "would not hold the weights; set it to true"
        )
    for name, by in _DECIDED_ELSEWHERE.items():
        group, _, key = name.rpartition(".")
        value = (deepspeed.get(group, {}) if group else deepspeed).get(key, "auto")
        if value != "auto":
            raise DistributedError(f"distributed.deepspeed.{name}={value}: {by} decides this; leave it at auto")


def launch(command: Sequence[str], *, processes: int, nodes: int = 1, rendezvous: str | None = None) -> None:
    """Runs a command as several processes that know their rank, until all have ended.

    What they print appears here. When one dies the others are stopped, and what stops this process stops them.

    Args:
        command: the program and its arguments, the same on each machine.
        processes: over all machines.
        nodes: machines, on each of which this is called.
        rendezvous: where they meet, as `check` takes it.

    Raises:
        AlreadySaidError: they have ended with `USER_ERROR`.
        DistributedError: one has failed or was killed, or a machine has not come.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Any free port of this machine: two runs on it must not meet. Its own name need not resolve.
    meeting: dict[str, Any] = {"rdzv_endpoint": "localhost:0", "local_addr": "localhost", "run_id": uuid.uuid4().hex}
    if nodes > 1:
        host, port = _endpoint(rendezvous)
        is_host = _hosts(host)
        meeting = {
            "rdzv_endpoint": f"{host}:{port}",
            "local_addr": host if is_host else _address_towards(host, port),
            "run_id": uuid.uuid5(uuid.NAMESPACE_URL, "\n".join(command[1:])).hex,  # another run must not be joined
            "rdzv_configs": {"is_host": is_host, "join_timeout": _START_SECONDS, "read_timeout": _START_SECONDS},
        }
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=processes // nodes,
        rdzv_backend="c10d",
        max_restarts=0,  # the same command resumes; restarting in silence would hide that something dies
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        # Of the others the launcher would give no process longer than 30 seconds to save: see preemption.passed_on.
        signals_to_handle="SIGINT,SIGHUP,SIGQUIT",
        **meeting,
    )
    try:
        with _as_before(), preemption.passed_on(_children):
            elastic_launch(config, command[0])(*command[1:])
    except RendezvousError as error:
        raise DistributedError(
            f"{meeting['rdzv_endpoint']}: the {nodes} machines have not met within {_START_SECONDS // 60} minutes; "
            f"start the same command on each, with distributed.rendezvous reachable from all ({error})"
        ) from None
    except ChildFailedError as failed:
        first = min(one.timestamp for one in failed.failures.values())
        # Later ones did not stop when they were told to, and were killed for it.
        codes = {number: one.exitcode for number, one in failed.failures.items() if one.timestamp <= first + 1}
        if (preemption.is_announced() or preemption.EXIT_CODE in codes.values()) and set(codes.values()) <= _PREEMPTED:
            raise preemption.PreemptedError from None
        reason = _reason(codes, processes)
        if not is_main() and not isinstance(reason, AlreadySaidError):  # of a machine that only this process knows
            print(f"error: {socket.gethostname()}: {reason}", file=sys.stderr, flush=True)
            raise AlreadySaidError(str(reason)) from None
        raise reason from None
    except SignalException as stopped:
        signal.raise_signal(stopped.sigval)  # our own handlers are back: end as a single process would
        raise


def _children() -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process().children()]


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


def end_unheard(message: str) -> NoReturn:
    """Ends this process where the others may wait for it and not have been told; the first to end says why."""
    if fails_first():
        whose = "" if is_main() else f"process {rank()}: "
        print(f"error: {whose}{' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(USER_ERROR)


def join(*, deepspeed: bool, rendezvous: str | None = None) -> None:
    """Connects this process to the others; does nothing in a process on its own.

    Args:
        deepspeed: whether DeepSpeed is to train.
        rendezvous: ``host:port`` where tasks of ``srun`` meet, a host's every process one; None: as `adopt_tasks` says.

    Raises:
        DistributedError: the port is taken.
    """
    if not is_joined():
        return
    if "SLURM_PROCID" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
        _prepare_meeting(rendezvous)
    import torch

    _end_with_parent()
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)  # accelerate launch's; scale.bf16 decides
    local_rank, on_gpu = int(os.environ["LOCAL_RANK"]), torch.cuda.is_available()
    if not on_gpu and sys.platform == "linux" and (interface := _interface()) is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    if on_gpu:
        # Where a launcher has given each process a GPU of its own, that is number 0 to it. accelerate, DeepSpeed and
        # vLLM take the GPU by this variable.
        os.environ["LOCAL_RANK"] = str(local_rank % torch.cuda.device_count())
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # accelerate 1.15 would call it cpu:0, which torch cannot load an optimizer's state to.
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    if "OMP_NUM_THREADS" not in os.environ:
        # Each process would take every core. accelerate would decide it otherwise, later, and with a warning.
        threads = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", num_processes())))
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=_TIMEOUT)
    if deepspeed:
        # transformers leaves this out where it trains on the CPU, and DeepSpeed then takes itself for a single process.
        import_module("deepspeed.comm").init_distributed(dist_backend="nccl" if on_gpu else "gloo", timeout=_TIMEOUT)


def _prepare_meeting(rendezvous: str | None) -> None:
    """Where no launcher keeps a meeting place, rank 0 does."""
    if rendezvous is not None:
        host, number = _endpoint(rendezvous)
        os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(number)}
    port = int(os.environ["MASTER_PORT"])
    if is_main():
        try:
            _check_free("", port)
        except OSError as error:
            raise DistributedError(
                f"port {port}, where the tasks of srun meet: {error.strerror}; set distributed.rendezvous=host:port"
            ) from error


def _interface() -> str | None:
    """The network interface to the other processes; gloo goes by this machine's own name, which need not resolve."""
    is_one_machine = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
    if is_one_machine or os.environ["MASTER_ADDR"] in ("localhost", "127.0.0.1"):
        return "lo"
    import psutil

    own = _address_towards(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    names = [name for name, found in psutil.net_if_addrs().items() if own in (one.address for one in found)]
    return next((name for name in names if name != "lo"), None)


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


def collected(value: T) -> list[T]:
    """The values of all processes in order of rank, for rank 0; an empty list for the others."""
    if not is_joined():
        return [value]
    import torch

    values: list[Any] | None = [None] * num_processes() if is_main() else None
    torch.distributed.gather_object(value, values)
    return values or []


def wait_for(path: Path) -> None:
    """Waits until a file that rank 0 has written can be seen here; all processes call this together.

    Raises:
        DistributedError: it cannot: the machines share no folder.
    """

    def seen() -> None:
        deadline = time.monotonic() + _FILE_SECONDS
        while not path.exists():
            if time.monotonic() > deadline:
                raise DistributedError(
                    f"{socket.gethostname()} does not see {path}, which process 0 has written: let runs_dir lie on a "
                    "file system that all machines share"
                )
            time.sleep(0.5)

    meet()
    together(seen)


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
