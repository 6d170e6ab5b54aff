"""Composes one run from conf/ and runs it: ``python run.py model=base method=grpo``."""

import shlex
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from visual_r1.config import ConfigError, expand_model_path, register_schemas


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Runs one job; a sweep calls it once a job.

    Returns:
        The accuracy after training, which an optimising sweeper maximises.
    """
    # Late, so that --help and --cfg answer at once.
    from visual_r1.experiment import prepare, run
    from visual_r1.models import CheckpointError
    from visual_r1.report.table import print_run
    from visual_r1.run_folder import RunFinishedError

    try:
        experiment = prepare(cfg, command=shlex.join(["python", "run.py", *HydraConfig.get().overrides.task]))
    except RunFinishedError as finished:
        print(finished, file=sys.stderr)  # a sweep typed again goes on with the jobs that are missing
        return None
    except (ValueError, OSError) as error:  # the user's: one line. What fails later is ours, and keeps its traceback
        sys.exit(f"error: {error}")
    try:
        summary = run(experiment)
    except CheckpointError as error:  # files that look right but do not load, or a hub that does not answer
        sys.exit(f"error: {error}")
    print_run(summary, figure=experiment.folder.figure)
    return summary["accuracy_after"]


if __name__ == "__main__":
    register_schemas()
    try:
        sys.argv[1:] = expand_model_path(sys.argv[1:])
    except ConfigError as error:
        sys.exit(f"error: {error}")
    main()
