"""Composes one run from conf/ and runs it: ``python run.py model=base method=grpo``."""

import os
import shlex
import sys
import time

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from visual_r1.config import ConfigError, compose_config, expand_model_path, register_schemas

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
    print("loading torch, transformers and trl: some seconds ...", flush=True)
    # Late, so that --help and --cfg answer at once.
    from visual_r1.experiment import prepare, run
    from visual_r1.models import CheckpointError
    from visual_r1.report.table import print_run
    from visual_r1.run_folder import RunFinishedError

    command = shlex.join(["python", "run.py", *HydraConfig.get().overrides.task])
    try:
        experiment = prepare(cfg, command=command)
    except RunFinishedError as finished:
        print(finished, file=sys.stderr)  # a sweep typed again goes on with the jobs that are missing
        return None
    except (ValueError, OSError) as error:  # the user's: one line. What fails later is ours, and keeps its traceback
        return _give_up(command, error)
    try:
        summary = run(experiment, started=started)
    except CheckpointError as error:  # files that look right but do not load, or a hub that does not answer
        return _give_up(command, error)
    print_run(summary, figure=experiment.folder.figure)
    return summary["accuracy_after"]


def _give_up(command: str, error: Exception) -> None:
    _failed.append(command)
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)


if __name__ == "__main__":
    register_schemas()
    try:
        sys.argv[1:] = expand_model_path(sys.argv[1:])
        if not any(argument.startswith("-") for argument in sys.argv[1:]):
            compose_config(sys.argv[1:])  # the same composition, whose errors are one line
    except ConfigError as error:
        sys.exit(f"error: {error}")
    main()
    if _failed:
        sys.exit(1)
