"""Composes one run from conf/ and runs it: ``python run.py model=base method=grpo``."""

import sys

import hydra
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
    from visual_r1.report.table import print_run
    from visual_r1.run_folder import RunFinishedError

    try:
        experiment = prepare(cfg)
    except RunFinishedError as finished:
        print(finished, file=sys.stderr)  # a sweep typed again goes on with the jobs that are missing
        return None
    except (ValueError, OSError) as error:  # the user's: one line. What fails later is ours, and keeps its traceback
        sys.exit(f"error: {error}")
    summary = run(experiment)
    print_run(summary, figure=experiment.folder.figure)
    return summary["accuracy_after"]


if __name__ == "__main__":
    register_schemas()
    try:
        sys.argv[1:] = expand_model_path(sys.argv[1:])
    except ConfigError as error:
        sys.exit(f"error: {error}")
    main()
