"""A sweep's jobs before any of them starts: what cannot run is said now, and not after the jobs before it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from visual_r1.config import CONF, ConfigError, in_one_line, register_schemas, resolve_unchecked, run_folder
from visual_r1.sweeps.ledger import SweepFolder


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What was asked for, composed and checked."""

    jobs: tuple[DictConfig, ...]
    """One config a job; of a search, whose jobs are not known before, two examples."""
    is_search: bool
    folder: SweepFolder
    settings: tuple[str, ...]
    """What the launcher has to know, from what the jobs need and this machine has; to be added to what was typed."""

    @property
    def runs(self) -> list[str] | None:
        """The run folders of the jobs; None where they are not known before."""
        return None if self.is_search else [str(_folder(job)) for job in self.jobs]


def is_sweep(arguments: Sequence[str]) -> bool:
    """Whether the command line runs jobs, and several: not with ``--help`` or ``--cfg``."""
    known, _ = get_args_parser().parse_known_args(list(arguments))
    return known.multirun and not (known.help or known.hydra_help or known.cfg or known.info or known.shell_completion)


def compose_sweep(arguments: Sequence[str], *, gpus: Sequence[str]) -> Sweep:
    """Composes every job of a command line and checks that they can run beside each other.

    Args:
        arguments: what stands behind ``run.py``.
        gpus: those of this machine.

    Raises:
        ConfigError: a job does not compose, two of them would write to one folder, or the launcher cannot run them.
    """
    register_schemas()
    typed = get_args_parser().parse_args(list(arguments))
    overrides = list(typed.overrides)
    if typed.config_dir:
        overrides.append(f"hydra.searchpath=[{_quoted(Path(typed.config_dir).resolve().as_uri())}]")
    with initialize_config_dir(str(CONF), version_base="1.3"), in_one_line():
        jobs, is_search = _jobs(overrides, config_name=typed.config_name or "config")
    sweep = _sweep_folder(jobs[0])
    for job in jobs:
        resolve_unchecked(job)
        _check_timeless(job)
    if is_search:
        _check_search(jobs)
    _check_apart(jobs)
    settings = [f"hydra.sweep.dir={_quoted(str(sweep))}", *_launcher_settings(jobs, overrides, gpus)]
    return Sweep(jobs=jobs, is_search=is_search, folder=SweepFolder(sweep.resolve()), settings=tuple(settings))


def _jobs(overrides: Sequence[str], *, config_name: str) -> tuple[tuple[DictConfig, ...], bool]:
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed = parser.parse_overrides(list(overrides))
    hydras = [_typed(one) for one in parsed if one.is_hydra_override()]
    tasks = [_typed(one) for one in parsed if not one.is_hydra_override()]

    def composed(number: int, chosen: Sequence[str]) -> DictConfig:
        numbered = [*hydras, *chosen, f"hydra.job.num={number}", f"hydra.job.id={number}"]
        return compose(config_name, overrides=numbered, return_hydra_config=True)

    first = composed(0, [_end(one, 0) for one in parsed if not one.is_hydra_override()])
    sweeper = first.hydra.sweeper
    # As Hydra does: what was typed comes after what a file says.
    space = parser.parse_overrides([*(f"{key}={value}" for key, value in (sweeper.params or {}).items()), *tasks])
    if not sweeper._target_.startswith("hydra_plugins."):
        jobs = BasicSweeper.split_arguments(space, None)[0]
        return tuple(composed(number, chosen) for number, chosen in enumerate(jobs)), False
    if not any(one.is_sweep_override() for one in space):
        raise ConfigError("search: no space; for example 'scale.rl_learning_rate=tag(log,interval(1e-6,1e-3))'")
    return tuple(composed(number, [_end(one, number) for one in space]) for number in (0, 1)), True


def _typed(override: Override) -> str:
    return override.input_line or ""


def _end(override: Override, which: int) -> str:
    """The override itself, or the first or last of the values that it lists."""
    if not override.is_sweep_override():
        return _typed(override)
    value: Any = override.value()
    if not override.is_discrete_sweep():
        return f"{override.get_key_element()}={(value.start, value.end)[which]}"
    values = list(override.sweep_string_iterator())
    return f"{override.get_key_element()}={values[-which]}"


def _folder(job: DictConfig) -> Path:
    HydraConfig.instance().set_config(job)  # a name may hold the number of its job
    return run_folder(job).path


def _sweep_folder(job: DictConfig) -> Path:
    HydraConfig.instance().set_config(job)
    return Path(job.hydra.sweep.dir)


def _check_timeless(job: DictConfig) -> None:
    if "${now:" in str(OmegaConf.masked_copy(job, ["name", "runs_dir"])):
        raise ConfigError(
            "name, runs_dir: a job whose folder is named by the clock would not find it when the sweep is typed again; "
            "write the time out"
        )


def _check_apart(jobs: Sequence[DictConfig]) -> None:
    first: dict[Path, int] = {}
    for number, job in enumerate(jobs):
        folder = _folder(job)
        if folder in first:
            raise ConfigError(
                f"jobs {first[folder]} and {number} would both write {folder}: tell them apart, for example by "
                f"name='{folder.parent.name}-{_difference(jobs[first[folder]], job)}'"
            )
        first[folder] = number


def _difference(one: DictConfig, other: DictConfig) -> str:
    """How a name can hold what two jobs differ in."""
    typed = zip(one.hydra.overrides.task, other.hydra.overrides.task, strict=False)
    key = next((mine.partition("=")[0].lstrip("+") for mine, theirs in typed if mine != theirs), "hydra:job.num")
    is_group = OmegaConf.is_dict(OmegaConf.select(one, key)) if ":" not in key else False
    return f"${{{key}.name}}" if is_group else f"${{{key}}}"


def _check_search(examples: Sequence[DictConfig]) -> None:
    job = examples[0]
    if str(job.hydra.sweeper.direction).rpartition(".")[2] != "maximize":
        raise ConfigError("hydra.sweeper.direction: a search maximises the accuracy on the probe; choose search=optuna")
    if job.method.name == "eval":
        raise ConfigError("method=eval: trains nothing, so there is nothing to search for")


def _launcher_settings(jobs: Sequence[DictConfig], typed: Sequence[str], gpus: Sequence[str]) -> list[str]:
    """The launcher's numbers that follow from what a job needs, but for those that were typed."""
    launcher = jobs[0].hydra.runtime.choices["hydra/launcher"]
    node = jobs[0].hydra.launcher
    needs = {(job.distributed.num_processes, job.distributed.num_nodes) for job in jobs}
    per_node = max(max(1, processes // max(1, nodes)) for processes, nodes in needs)
    settings: dict[str, Any] = {}
    if launcher == "joblib":
        if node.n_jobs < 1:
            raise ConfigError(f"hydra.launcher.n_jobs={node.n_jobs}: expected at least 1")
        if gpus:
            settings["n_jobs"] = max(1, len(gpus) // per_node)
    if launcher == "submitit_local":
        settings["gpus_per_node"] = len(gpus)
    if launcher == "submitit_slurm":
        _check_alike(needs, launcher)
        if shutil.which("sbatch") is None:
            raise ConfigError(
                "launcher=submitit_slurm: there is no sbatch here: type this where SLURM takes jobs, or try "
                "launcher=submitit_local"
            )
        settings |= {"nodes": next(iter(needs))[1], "gpus_per_node": per_node}
    if launcher == "ray":
        _check_alike(needs, launcher)
        is_given = any(one.lstrip("+").startswith("hydra.launcher.ray.remote.num_gpus=") for one in typed)
        if node.ray.init.get("address") is not None and not is_given:
            raise ConfigError(
                f"hydra.launcher.ray.init.address={node.ray.init.address}: say what a job needs of the cluster, "
                f"+hydra.launcher.ray.remote.num_gpus={per_node}, or 0"
            )
        if gpus:
            settings["ray.remote.num_gpus"] = per_node
    given = {one.partition("=")[0].lstrip("+") for one in typed}
    return [
        f"++hydra.launcher.{key}={value}" for key, value in settings.items() if f"hydra.launcher.{key}" not in given
    ]


def _check_alike(needs: set[tuple[int, int]], launcher: str) -> None:
    if len(needs) > 1:
        raise ConfigError(
            f"launcher={launcher}: gives each job the same machines and GPUs, and these jobs differ in "
            "distributed.num_processes or num_nodes: make two sweeps of them"
        )


def _quoted(value: str) -> str:
    """A text as Hydra reads it back, whatever it holds."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
