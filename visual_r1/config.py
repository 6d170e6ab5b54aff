"""The types of conf/, and how a composed config becomes objects. YAML holds the values; no default stands here.

Only this module, sweeps/compose.py and run.py know Hydra and OmegaConf.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from visual_r1.run_folder import RunFolder

CONF = Path(__file__).resolve().parent.parent / "conf"
"""The choices; they stand beside the package, not in it."""


class ConfigError(ValueError):
    """A configuration that cannot run: one line that names the key and the fix."""


@dataclass
class CheckpointsConfig:
    """Where a scale's two starting points lie."""

    base: str = MISSING
    instruct: str = MISSING


@dataclass
class ScaleConfig:
    """What hardware and budget decide; lengths in tokens, sizes in examples."""

    name: str = MISSING
    organism_seed: int | None = MISSING
    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)
    dtype: str = MISSING
    bf16: bool = MISSING
    gradient_checkpointing: bool = MISSING
    num_threads: int | None = MISSING
    max_pixels: int | None = MISSING
    max_steps: int = MISSING
    schedule_steps: int | None = MISSING
    prompts_per_step: int = MISSING
    num_generations: int = MISSING
    micro_batch_size: int = MISSING
    max_completion_length: int = MISSING
    top_k: int = MISSING
    rl_learning_rate: float = MISSING
    sft_learning_rate: float = MISSING
    sft_steps: int = MISSING
    sft_examples_per_step: int = MISSING
    sft_micro_batch_size: int = MISSING
    train_size: int | None = MISSING
    probe_size: int = MISSING
    probe_every_steps: int = MISSING
    probe_temperature: float = MISSING
    benchmark_size: int | None = MISSING
    rollout_batch_size: int = MISSING
    save_every_steps: int = MISSING
    grace_seconds: int | None = MISSING
    show_every_steps: int = MISSING
    rollouts_every_steps: int = MISSING


@dataclass
class ModelConfig:
    """A starting point and how it is asked."""

    name: str = MISSING
    path: str = MISSING
    style: str | None = MISSING
    prompt: str | None = MISSING
    max_pixels: int | None = "${scale.max_pixels}"  # ty: ignore[invalid-assignment]
    dtype: str = "${scale.dtype}"
    trust_remote_code: bool = False


@dataclass
class EvalConfig:
    """``method=eval``."""

    name: str = MISSING
    _target_: str = MISSING


@dataclass
class SftConfig:
    """``method=sft`` and ``method=sft_reference``."""

    name: str = MISSING
    _target_: str = MISSING
    examples_per_step: int = MISSING
    micro_batch_size: int = MISSING
    schedule_steps: int | None = MISSING
    loss_on: str = MISSING
    imitate: str = MISSING
    prompt: str | None = MISSING
    trl: dict[str, Any] = MISSING


@dataclass
class GrpoConfig:
    """``method=grpo`` and its relatives."""

    name: str = MISSING
    _target_: str = MISSING
    prompts_per_step: int = MISSING
    micro_batch_size: int = MISSING
    schedule_steps: int | None = MISSING
    resampling: Any = MISSING
    shared_prefix: bool = MISSING
    encode_once: bool = MISSING
    keep_groups: bool = MISSING
    trim_padding: bool = MISSING
    skip_zero_advantage: bool = MISSING
    tokens_per_micro_batch: int | None = MISSING
    skip_old_logps: bool = MISSING
    trl: dict[str, Any] = MISSING


@dataclass
class ChainConfig:
    """``method=sft_then_grpo``: stages by name."""

    name: str = MISSING
    _target_: str = MISSING
    stages: dict[str, Any] = MISSING


@dataclass
class RewardTermConfig:
    """One score and its share of the reward."""

    weight: float = MISSING
    function: Any = MISSING


@dataclass
class RewardConfig:
    """A named sum; a mapping, because a list's items cannot be added or removed from the command line."""

    name: str = MISSING
    terms: dict[str, RewardTermConfig] = MISSING


@dataclass
class DatasetConfig:
    """Training examples, and the fixed held-out probe."""

    name: str = MISSING
    path: str | None = None
    train: Any = MISSING
    probe: Any = MISSING


@dataclass
class BenchmarkConfig:
    """What a policy is judged on, before and after."""

    name: str = MISSING
    path: str | None = None
    temperature: float = MISSING
    max_completion_length: int = MISSING
    max_pixels: int | None = "${scale.max_pixels}"  # ty: ignore[invalid-assignment]
    option_swap: bool = False
    scorers: dict[str, Any] = field(default_factory=dict)
    examples: Any = MISSING


@dataclass
class RolloutConfig:
    """The engine that samples."""

    name: str = MISSING
    engine: Any = MISSING


@dataclass
class DistributedConfig:
    """How many processes train together, on how many machines, and how they share the work."""

    name: str = MISSING
    num_processes: int = MISSING
    num_nodes: int = MISSING
    rendezvous: str | None = MISSING
    deepspeed: dict[str, Any] | None = MISSING
    fsdp: dict[str, Any] | None = MISSING


class WandbMode(Enum):
    """Whether W&B writes to the run folder or to its server."""

    offline = "offline"
    online = "online"


@dataclass
class TrackerConfig:
    """Where numbers go beside ``metrics.jsonl``."""

    name: str = MISSING
    wandb_mode: WandbMode | None = MISSING
    tensorboard: bool = MISSING
    project: str = MISSING
    entity: str | None = MISSING
    tags: list[str] = MISSING
    log_model: bool = MISSING
    timeout_seconds: float = MISSING


@dataclass
class FreezeConfig:
    """The parts of the model that keep their weights."""

    name: str = MISSING
    parts: list[str] = MISSING


@dataclass
class AdapterConfig:
    """LoRA or nothing."""

    name: str = MISSING
    lora: Any = MISSING


@dataclass
class KeywordsConfig:
    """A list of reflection phrases, with its name: the list decides the curve."""

    name: str = MISSING
    phrases: list[str] = MISSING


@dataclass
class RunConfig:
    """Everything that decides a run."""

    name: str | None = MISSING
    seed: int = MISSING
    runs_dir: str = MISSING
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: Any = MISSING
    reward: RewardConfig = field(default_factory=RewardConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    freeze: FreezeConfig = field(default_factory=FreezeConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    keywords: KeywordsConfig = field(default_factory=KeywordsConfig)
    metrics: dict[str, Any] = field(default_factory=dict)


def register_schemas() -> None:
    """Tells Hydra the types; call before composing."""
    store = ConfigStore.instance()
    store.store(name="run_schema", node=RunConfig)
    for name, node in (
        ("eval", EvalConfig),
        ("sft", SftConfig),
        ("grpo", GrpoConfig),
        ("chain", ChainConfig),
    ):
        store.store(group="method", name=f"{name}_schema", node=node)
    store.store(group="reward", name="reward_schema", node=RewardConfig)
    store.store(group="reward/term", name="term_schema", node=RewardTermConfig)


def compose_config(overrides: Sequence[str] = ()) -> DictConfig:
    """The config that `python run.py OVERRIDES` runs; for tests, the command line tool and notebooks.

    Raises:
        ConfigError: an unknown key, option or value.
    """
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"), in_one_line():
        return compose("config", overrides=spell_out(overrides), return_hydra_config=True)


@contextmanager
def in_one_line() -> Generator[None]:
    """Turns what Hydra and OmegaConf raise within the block into a `ConfigError`."""
    try:
        yield
    except Exception as error:  # their own kinds have no common base; each names the key and the choices
        if type(error).__module__.partition(".")[0] not in ("hydra", "omegaconf"):
            raise
        reasons = [_in_short(str(one)) for one in (error, error.__cause__) if one is not None]
        raise ConfigError(": ".join(reasons)) from error


def _in_short(reason: str) -> str:
    """An error of Hydra or OmegaConf in one line, without where it looked and which of its own types were involved."""
    lines = reason.partition("Config search path")[0].splitlines()
    kept = [
        line.strip() for line in lines if not line.strip().startswith(("full_key:", "object_type=", "reference_type"))
    ]
    return " ".join(" ".join(kept).split())


_PLUGINS = {
    "launcher=joblib": ("hydra_joblib_launcher", "sweeps"),
    "launcher=submitit_local": ("hydra_submitit_launcher", "sweeps"),
    "launcher=submitit_slurm": ("hydra_submitit_launcher", "sweeps"),
    "launcher=ray": ("hydra_ray_launcher", "ray"),
    "search": ("hydra_optuna_sweeper", "sweeps"),
}
"""What a choice needs installed, and the extra that brings it."""


def spell_out(arguments: Sequence[str]) -> list[str]:
    """Turns what is natural to type into what is there: a path as a model, Hydra's names of launchers and sweepers.

    Ours come with settings that suit a run; Hydra's own entries of the same names cannot be changed.

    Raises:
        ConfigError: as `expand_model_path`, or a choice needs an extra that is not installed.
    """
    ours = {"hydra/launcher": "launcher", "hydra/sweeper": "search"}
    spelled: list[str] = []
    for argument in expand_model_path(arguments):
        key, equals, value = argument.partition("=")
        has_our_own = key in ours and (CONF / ours[key] / f"{value}.yaml").exists()
        spelled.append(f"{ours[key]}{equals}{value}" if has_our_own else argument)
    for argument in spelled:
        if argument != "search=none":
            _check_installed(argument)
    return spelled


def _check_installed(argument: str) -> None:
    module, extra = _PLUGINS.get(argument) or _PLUGINS.get(argument.partition("=")[0], ("", ""))
    if module and (find_spec("hydra_plugins") is None or find_spec(f"hydra_plugins.{module}") is None):
        raise ConfigError(f"{argument}: {module.replace('_', '-')} is not installed: pip install 'visual-r1[{extra}]'")


def expand_model_path(arguments: Sequence[str]) -> list[str]:
    """Spells out ``model=PATH`` as ``model=checkpoint model.path=PATH``.

    A config group takes the names of its files only, but the natural thing to type is the folder of a finished run.

    Raises:
        ConfigError: several models of which one is a path; Hydra would need them as one sweep over a group.
    """
    known = {file.stem for file in (CONF / "model").glob("*.yaml")}
    expanded: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        names = value.split(",")
        if key != "model" or not equals or set(names) <= known:
            expanded.append(argument)
        elif any(name in known for name in names):
            raise ConfigError(f"model={value}: mixes names and paths; sweep paths with model=checkpoint model.path=A,B")
        elif all("/" not in name and not Path(name).exists() for name in names):
            raise ConfigError(f"model={value}: neither one of {sorted(known)} nor a checkpoint's folder or hub id")
        else:
            expanded += ["model=checkpoint", f"model.path={value}"]
    return expanded


def recorded(config: Mapping[str, Any], *, rollout: str | None = None) -> DictConfig:
    """A run's stored config as `build` takes it.

    Args:
        config: what `RunFolder.read_config` gives.
        rollout: another engine of ``conf/rollout``, with the run's own batch size and precision.

    Raises:
        ConfigError: there is no such engine.
    """
    cfg = OmegaConf.create(dict(config))
    if rollout is not None:
        file = CONF / "rollout" / f"{rollout}.yaml"
        if not file.is_file():
            there = sorted(one.stem for one in file.parent.glob("*.yaml"))
            raise ConfigError(f"--rollout {rollout}: unknown, expected one of {there}")
        cfg.rollout = OmegaConf.load(file)
    return cfg


def keyword_lists() -> dict[str, tuple[str, ...]]:
    """The phrases of every list in ``conf/keywords``, by its name."""
    nodes = [OmegaConf.load(file) for file in sorted((CONF / "keywords").glob("*.yaml"))]
    return {str(node.name): tuple(node.phrases) for node in nodes}


def build(node: DictConfig, **runtime: Any) -> Any:
    """Makes what a config node names: the one call of `hydra.utils.instantiate`.

    Only our own classes may be named, so that a config can never run somebody else's code.

    Raises:
        ConfigError: a class outside this package, or a misspelt or missing argument of its constructor.
    """
    check_targets(node)
    try:
        return instantiate(_without_names(OmegaConf.to_container(node, resolve=True)), _convert_="all", **runtime)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError | OSError):
            raise ConfigError(str(cause)) from cause
        raise


def check_targets(node: Any) -> None:
    """Refuses what could not be built, in a node and in all that it holds, without building it.

    Raises:
        ConfigError: as `build`.
    """
    if OmegaConf.is_list(node):
        for item in node:
            check_targets(item)
    if not OmegaConf.is_dict(node):
        return
    for key in node:
        if not OmegaConf.is_missing(node, key):
            check_targets(node[key])
    if "_target_" in node:
        _check_target(node)


def _check_target(node: DictConfig) -> None:
    where = node._get_full_key(None)
    target = str(node["_target_"])
    if not target.startswith("visual_r1."):
        raise ConfigError(f"{where}._target_={target}: a config may only name classes of visual_r1")
    try:
        cls = get_class(target)
    except (ImportError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where}._target_={target}: no such class: {' '.join(str(error).split())}") from None
    arguments = {str(key) for key in node if key not in _NOT_ARGUMENTS}
    try:
        inspect.signature(cls).bind(**dict.fromkeys(arguments))
    except TypeError as error:
        raise ConfigError(f"{where}: {target.rpartition('.')[2]}: {error}") from None


_NOT_ARGUMENTS = ("_target_", "name")
"""A choice's name is for people and for the run's folder; no constructor takes it."""


def _without_names(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_names(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {key: _without_names(value) for key, value in node.items() if not ("_target_" in node and key == "name")}


def run_name(cfg: DictConfig) -> str:
    """The name of a run: the user's, or the choices that are not the default ones, model and method always.

    Raises:
        ConfigError: the name could leave the runs folder.
    """
    if cfg.name is not None:
        parts = Path(cfg.name.strip()).parts
        if not parts or Path(cfg.name).is_absolute() or ".." in parts:
            raise ConfigError(f"name={cfg.name}: expected a folder name under {cfg.runs_dir}")
        return str(cfg.name)
    usual = _usual_choices(cfg.scale.name)
    model = cfg.model.name if cfg.model.name != "checkpoint" else _name_of_path(cfg.model.path)
    parts = [model, cfg.method.name]
    for group in ("scale", "reward", "dataset", "benchmark", "rollout", "freeze", "adapter", "keywords"):
        if cfg[group].name != usual[group]:
            parts.append(cfg[group].name)
    return "-".join(parts)


def run_folder(cfg: DictConfig) -> RunFolder:
    """Where a run with this config lies.

    Raises:
        ConfigError: as `run_name`.
    """
    return RunFolder(Path(cfg.runs_dir) / run_name(cfg) / f"seed{cfg.seed}")


def _usual_choices(scale: str) -> dict[str, str]:
    """The option that each group has when nobody names one: the default, or what the scale puts in its place."""
    return {**_choices_in("config"), **_choices_in(f"scale/{scale}"), "scale": "laptop"}


def _choices_in(file: str) -> dict[str, str]:
    """The groups that a file of conf/ chooses for, those of the file of its own group that it builds on included."""
    choices: dict[str, str] = {}
    config = OmegaConf.to_container(OmegaConf.load(CONF / f"{file}.yaml"))
    for entry in config.get("defaults", []) if isinstance(config, dict) else []:
        if isinstance(entry, dict):
            choices |= {str(key).removeprefix("override /"): value for key, value in entry.items()}
        elif "/" in file and entry != "_self_":
            choices |= _choices_in(f"{file.rpartition('/')[0]}/{entry}")
    return choices


def _name_of_path(path: str) -> str:
    """The last three parts of a checkpoint's path, without those that would lead a run's folder elsewhere."""
    parts = [part for part in Path(path).parts if part not in ("/", "..", "~")]
    return "-".join(parts[-3:])


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain dictionaries: interpolations followed, named classes checked, Hydra's own node left out.

    Raises:
        ConfigError: a value is missing, an interpolation leads nowhere, or a class cannot be built (see `build`).
    """
    result = resolve_unchecked(cfg)
    node = cfg.copy()
    OmegaConf.set_struct(node, False)
    node.pop("hydra", None)
    check_targets(node)
    return result


def resolve_unchecked(cfg: DictConfig) -> dict[str, Any]:
    """The same without a look at the classes, which would load torch.

    Raises:
        ConfigError: a value is missing, or an interpolation leads nowhere.
    """
    node = cfg.copy()
    OmegaConf.set_struct(node, False)
    node.pop("hydra", None)
    try:
        result = OmegaConf.to_container(node, resolve=True, throw_on_missing=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        raise ConfigError(" ".join(str(error).split())) from error
    if not isinstance(result, dict):
        raise TypeError("a config is a mapping")
    return {str(key): value for key, value in result.items()}
