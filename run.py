"""Composes a run from conf/ and runs it, in as many processes as it asks for: ``python run.py method=grpo``.

With ``-m`` it composes several, and runs each as if it had been typed alone.
"""

import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from visual_r1 import distributed, preemption
from visual_r1.config import ConfigError, compose_config, register_schemas, resolve_unchecked, run_folder, spell_out
from visual_r1.files import WriteError
from visual_r1.run_folder import RunFinishedError, RunFolder, RunFolderError
from visual_r1.sweeps.compose import compose_sweep, is_sweep
from visual_r1.sweeps.devices import visible
from visual_r1.sweeps.job import Job, refuse, run_job
from visual_r1.sweeps.ledger import SweepFolder, exit_code, table
from visual_r1.sweeps.processes import end_with_parent

# Before torch is loaded. Threads that wait by spinning are a little faster on idle cores, and make every step many
# times slower as soon as other programs run. Set the variable yourself to choose otherwise.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

RUN = Path(__file__).resolve()

_failed: list[str] = []
"""What could not run."""


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Runs one job; a sweep calls it once a job, in whatever process its launcher has put that.

    Returns:
        For a sweeper that optimises, the accuracy on the probe after training; None for a job that has not finished.
    """
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return _run_job_of_sweep(cfg)
    started = time.perf_counter()
    command = shlex.join(["python", "run.py", *_typed(HydraConfig.get().overrides.task)])
    try:
        if distributed.is_joined():
            distributed.check(**_layout(cfg))
        elif _needs_processes(cfg):
            return _run_in_processes(cfg)
    except distributed.AlreadySaidError:
        return _give_up(command)
    except (distributed.DistributedError, ConfigError) as error:
        return _give_up(command, error)
    print("loading torch, transformers and trl: some seconds ...", flush=True)
    # Late, so that --help and --cfg answer at once.
    from visual_r1.experiment import prepare, run, take_part
    from visual_r1.models import CheckpointError
    from visual_r1.report.table import print_run
    from visual_r1.rollout.engine import EngineError

    layout = _layout(cfg)
    distributed.join(deepspeed=layout["deepspeed"] is not None, rendezvous=layout["rendezvous"])
    try:
        experiment = distributed.together(lambda: prepare(cfg, command=command))
        distributed.check_same(experiment.config)
    except RunFinishedError as finished:
        if distributed.is_main():
            print(finished, file=sys.stderr)  # a sweep typed again goes on with the jobs that are missing
        return None
    except (ValueError, OSError) as error:  # the user's: one line. What fails later is ours, and keeps its traceback
        return _give_up(command, error)
    try:
        if not distributed.is_main():
            return take_part(experiment)
        summary = run(experiment, started=started)
    # A folder that another process has taken, files that do not load, a hub or an engine that does not answer, a full
    # disk. Where the processes had to agree all know of it, and rank 0 says it; elsewhere only the one that has met it.
    except (RunFolderError, CheckpointError, EngineError, WriteError, distributed.DistributedError) as error:
        is_told = isinstance(error, distributed.DistributedError) and not distributed.is_main()
        if distributed.is_joined() and not is_told:
            distributed.end_unheard(str(error))
        return _give_up(command, error)
    except Exception:
        if not distributed.fails_first():
            os._exit(1)  # in silence: the process that this one has lost says why
        raise
    print_run(summary, figure=experiment.folder.figure)
    return None


def _needs_processes(cfg: DictConfig) -> bool:
    """Whether to start processes; a finished run is refused without."""
    layout = _layout(cfg)
    splits = layout["deepspeed"] is not None or layout["fsdp"] is not None
    asks = layout["processes"] != 1 or splits or distributed.has_neighbours()
    return asks and not run_folder(cfg).is_finished


def _layout(cfg: DictConfig) -> dict[str, Any]:
    """The processes that a run asks for; an evaluation makes do with the GPUs that are there, and splits no weights."""
    node = cfg.distributed
    processes, split = node.num_processes, {"deepspeed": node.deepspeed, "fsdp": node.fsdp}
    if cfg.method.name == "eval":
        is_joined = distributed.is_joined()
        processes = distributed.num_processes() if is_joined else distributed.num_evaluating(processes, node.num_nodes)
        split = {"deepspeed": None, "fsdp": None}
    return {"processes": processes, "nodes": node.num_nodes, "rendezvous": node.rendezvous, **split}


def _run_in_processes(cfg: DictConfig) -> None:
    layout = _layout(cfg)
    distributed.check(**layout)
    place = {key: layout[key] for key in ("processes", "nodes", "rendezvous")}
    machines = f" on {place['nodes']} machines" if place["nodes"] > 1 else ""
    print(f"starting {place['processes']} processes{machines} ...", flush=True)
    distributed.launch([sys.executable, str(RUN), *_job_alone()], **place)


def _run_job_of_sweep(cfg: DictConfig) -> float | None:
    """Runs one job of a sweep as a command of its own."""
    node = HydraConfig.get()
    directory = Path(node.runtime.cwd)  # a worker may stand elsewhere
    sweep = SweepFolder(directory / node.sweep.dir)
    try:
        folder, config = run_folder(cfg), resolve_unchecked(cfg)
    except ConfigError as error:
        return refuse(sweep, node.job.num, run="", reason=str(error))
    num_gpus = cfg.distributed.num_processes // max(1, cfg.distributed.num_nodes)
    if cfg.method.name == "eval":  # which makes do with the GPUs that are there
        num_gpus = min(num_gpus, len(visible()))
    job = Job(
        number=node.job.num,
        command=(sys.executable, str(RUN), *_job_alone()),
        folder=RunFolder(directory / folder.path),
        config=config,
        sweep=sweep,
        directory=directory,
        num_gpus=num_gpus,
        num_at_once=node.launcher.get("n_jobs", 1),
    )
    value = run_job(job)
    if sweep.stop_signal() is not None and sweep.is_ours():
        raise SystemExit  # the jobs that are left need not be composed
    return value


def _sweep(arguments: list[str]) -> int:
    """Runs the jobs of a command line with ``-m`` and says what became of each; returns the exit code."""
    started = time.perf_counter()
    if distributed.is_joined() or distributed.has_neighbours():
        raise distributed.DistributedError("a sweep starts each job's processes itself: leave torchrun and srun out")
    sweep = compose_sweep(arguments, gpus=visible())
    try:
        sweep.folder.begin(shlex.join(["python", "run.py", *arguments]), sweep.runs)
    except OSError as error:
        raise ConfigError(f"runs_dir: cannot write {sweep.folder.path}: {error.strerror}") from error
    sys.argv[1:] = [*arguments, *sweep.settings]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra would print what goes wrong in a sweeper or launcher, and exit
    broken = None
    with sweep.folder.stoppable():
        try:
            main()
        except (SystemExit, KeyboardInterrupt):
            pass  # stopped, as its folder says
        except Exception as error:  # a sweeper's or launcher's: no job's comes this far
            broken = error
    print(f"\n{table(sweep.folder, seconds=time.perf_counter() - started)}", flush=True)
    if broken is not None and sweep.folder.stop_signal() is None:
        distributed.say_error(f"{type(broken).__name__}: {broken}")
        return 1
    return exit_code(sweep.folder)


def _typed(overrides: Any) -> list[str]:
    """Overrides as they were typed: read one by one, the list would fill in what ``${...}`` in them stands for."""
    return OmegaConf.to_container(overrides)  # ty: ignore[invalid-explicit-return] (of strings)


def _job_alone() -> list[str]:
    """The arguments that compose this job outside of its sweep."""
    node = HydraConfig.get()
    sources = [f"--config-dir={one.path}" for one in node.runtime.config_sources if one.provider == "command-line"]
    kept = [one for one in node.overrides.hydra if one.lstrip("+").startswith("hydra.searchpath=")]
    known = [key for key in ("num", "id") if not OmegaConf.is_missing(node.job, key)]
    numbers = [f"hydra.job.{key}={getattr(node.job, key)}" for key in known]
    alone = [one for one in _typed(node.overrides.task) if not one.startswith("launcher=")]
    return [*sources, f"--config-name={node.job.config_name}", *alone, *kept, *numbers]


def _give_up(command: str, error: Exception | None = None) -> None:
    """Notes a job that could not run; without an error when it has been said why."""
    _failed.append(command)
    if error is not None:
        distributed.say_error(str(error))


if __name__ == "__main__":
    distributed.adopt_tasks()
    distributed.keep_quiet()
    register_schemas()
    code = 0
    try:
        sys.argv[1:] = spell_out(sys.argv[1:])
        if is_sweep(sys.argv[1:]):
            code = _sweep(sys.argv[1:])
        else:
            end_with_parent()
            preemption.arm(says=distributed.is_main())
            if not any(argument.startswith("-") for argument in sys.argv[1:]):
                compose_config(sys.argv[1:])  # the same composition, whose errors are one line
            main()
    except (ConfigError, distributed.DistributedError) as error:
        _give_up("", error)
    sys.exit(1 if _failed else code)
