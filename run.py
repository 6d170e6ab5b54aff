"""Composes one run from conf/ and runs it, in as many processes as it asks for: ``python run.py method=grpo``."""

import os
import shlex
import sys
import time
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from visual_r1 import distributed
from visual_r1.config import ConfigError, compose_config, expand_model_path, register_schemas, run_folder
from visual_r1.files import read_json

# Before torch is loaded. Threads that wait by spinning are a little faster on idle cores, and make every step many
# times slower as soon as other programs run. Set the variable yourself to choose otherwise.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_failed: list[str] = []
"""The jobs of this process that could not run; a sweep goes on without them."""


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Runs one job; a sweep calls it once a job.

    Returns:
        The accuracy after training, which an optimising sweeper maximises; None for a job that did not run.
    """
    started = time.perf_counter()
    command = shlex.join(["python", "run.py", *HydraConfig.get().overrides.task])
    try:
        if distributed.is_joined():
            _check_joined(cfg)
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
    from visual_r1.run_folder import RunFinishedError

    distributed.join(deepspeed=cfg.distributed.deepspeed is not None)
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
    except CheckpointError as error:  # files that look right but do not load, or a hub that does not answer
        return _give_up(command, error)
    except Exception:
        if not distributed.fails_first():
            os._exit(1)  # in silence: the process that this one has lost says why
        raise
    print_run(summary, figure=experiment.folder.figure)
    return summary["accuracy_after"]


def _needs_processes(cfg: DictConfig) -> bool:
    """Whether to start processes: an evaluation needs none, and a finished run is refused without."""
    asks = cfg.distributed.num_processes != 1 or cfg.distributed.deepspeed is not None
    return asks and cfg.method.name != "eval" and not run_folder(cfg).is_finished


def _run_in_processes(cfg: DictConfig) -> float | None:
    processes = cfg.distributed.num_processes
    distributed.check(processes=processes, deepspeed=cfg.distributed.deepspeed)
    print(f"starting {processes} processes ...", flush=True)
    distributed.launch([sys.executable, str(Path(__file__).resolve()), *_job_alone()], processes=processes)
    summary = run_folder(cfg).summary
    return read_json(summary)["accuracy_after"] if summary.exists() else None


def _job_alone() -> list[str]:
    """The arguments that compose this job outside of its sweep."""
    node = HydraConfig.get()
    sources = [f"--config-dir={one.path}" for one in node.runtime.config_sources if one.provider == "command-line"]
    kept = [one for one in node.overrides.hydra if one.lstrip("+").startswith("hydra.searchpath=")]
    known = [key for key in ("num", "id") if not OmegaConf.is_missing(node.job, key)]
    numbers = [f"hydra.job.{key}={getattr(node.job, key)}" for key in known]
    return [*sources, f"--config-name={node.job.config_name}", *node.overrides.task, *kept, *numbers]


def _check_joined(cfg: DictConfig) -> None:
    distributed.check(processes=cfg.distributed.num_processes, deepspeed=cfg.distributed.deepspeed)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        raise distributed.DistributedError("a sweep starts the processes of each job itself: leave torchrun out")


def _give_up(command: str, error: Exception | None = None) -> None:
    """Notes a job that could not run; without an error when it has been said why."""
    _failed.append(command)
    if error is not None:
        distributed.say_error(str(error))


if __name__ == "__main__":
    distributed.keep_quiet()
    register_schemas()
    try:
        sys.argv[1:] = expand_model_path(sys.argv[1:])
        if not any(argument.startswith("-") for argument in sys.argv[1:]):
            compose_config(sys.argv[1:])  # the same composition, whose errors are one line
    except ConfigError as error:
        _give_up("", error)
    else:
        main()
    if _failed:
        sys.exit(1)
