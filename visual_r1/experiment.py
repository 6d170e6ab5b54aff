"""One run, from a composed config to a summary: check, train, evaluate before and after, write it all down."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visual_r1 import distributed, provenance
from visual_r1.config import ConfigError, build, resolve, run_folder, run_name
from visual_r1.evaluation import check_scoring, with_strict
from visual_r1.examples import Example
from visual_r1.files import read_json, write_json, write_parquet
from visual_r1.metrics.measure import Metric
from visual_r1.metrics.reflection import Reflection
from visual_r1.models import Adapter, ModelSource, saved_steps
from visual_r1.rewards.weighted import WeightedReward
from visual_r1.rollout.engine import RolloutEngine, Sampling
from visual_r1.run_folder import RunFolder
from visual_r1.tracking import FanOut, JsonlTracker, Tracker, shown_in

if TYPE_CHECKING:
    from visual_r1.evaluation import Report
    from visual_r1.methods.training import Method
    from visual_r1.scoring.scorer import Scorer

_NUM_CHECKED = 32
"""Examples of each data set that are read before a model is loaded."""

_OPTIONAL = frozenset(
    ("organism_seed", "num_threads", "max_pixels", "schedule_steps", "train_size", "benchmark_size", "grace_seconds")
)
"""The numbers of a scale that may be null."""

_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that a run needs, built and checked, with no model loaded yet."""

    config: Mapping[str, Any]
    command: str
    name: str
    folder: RunFolder
    source: ModelSource
    freeze: tuple[str, ...]
    adapter: Adapter | None
    method: Method
    rewards: tuple[WeightedReward, ...]
    metrics: tuple[Metric, ...]
    reflection: Reflection
    engine: RolloutEngine
    probe_sampling: Sampling
    benchmark_sampling: Sampling
    train: Sequence[Example]
    probe: Sequence[Example]
    benchmark: Sequence[Example]
    scorers: Mapping[str, Scorer]
    option_swap: bool

    @property
    def seed(self) -> int:
        """Of training order, sampling and initialisation."""
        return int(self.config["seed"])


def prepare(cfg: Any, *, command: str = "") -> Experiment:
    """Builds what is cheap and checks the rest, cheapest first; writes nothing.

    Args:
        cfg: a composed config.
        command: what makes this run again, for its record.

    Raises:
        ConfigError: the config cannot run.
        RunFolderError: the run folder is finished, taken or unwritable.
        CheckpointError: the starting point cannot be used.
        ValueError: an argument of a method, a reward or a data set is out of its range.
    """
    config = resolve(cfg)
    name, folder = run_name(cfg), run_folder(cfg)
    _check_ranges(config)
    _check_precision(config)
    _check_merged(config)
    folder.check(config)
    _check_processes(config)
    source = ModelSource(**{str(key): value for key, value in cfg.model.items()})
    rewards = tuple(
        WeightedReward(name=str(term), weight=node.weight, function=build(node.function))
        for term, node in cfg.reward.terms.items()
    )
    reflection = Reflection(phrases=tuple(cfg.keywords.phrases))
    unknown = set(cfg.freeze.parts) - {"vision", "llm"}
    if unknown:
        raise ConfigError(f"freeze.parts={sorted(cfg.freeze.parts)}: unknown {sorted(unknown)}, expected vision or llm")
    if {"vision", "llm"} <= set(cfg.freeze.parts):
        raise ConfigError(f"freeze.parts={sorted(cfg.freeze.parts)}: every part is frozen, nothing is left to train")
    if "llm" in cfg.freeze.parts and cfg.adapter.lora is not None:
        raise ConfigError("freeze=llm adapter=lora: the adapters would train the language model; choose one of the two")
    limit = config["scale"]["max_completion_length"]
    node = config["benchmark"]
    benchmark_sampling = Sampling(max_completion_length=node["max_completion_length"], temperature=node["temperature"])
    probe_sampling = Sampling(max_completion_length=limit, temperature=config["scale"]["probe_temperature"])
    datasets = {
        "dataset.train": build(cfg.dataset.train),
        "dataset.probe": build(cfg.dataset.probe),
        "benchmark.examples": build(cfg.benchmark.examples),
    }
    for key, examples in datasets.items():
        if not len(examples):
            raise ConfigError(f"{key}: holds no example; raise its size")
        for index in range(min(len(examples), _NUM_CHECKED)):
            examples[index]  # a row that makes no example says so here, not in the middle of the training
    _check_thoughts(config, datasets["dataset.train"])
    scorers = with_strict({str(name): build(node) for name, node in cfg.benchmark.scorers.items()})
    check_scoring(datasets["benchmark.examples"], scorers=scorers, option_swap=cfg.benchmark.option_swap)
    method = build(cfg.method)
    method.check()
    engine = build(cfg.rollout.engine)
    engine.check(source)
    return Experiment(
        config=config,
        command=command,
        name=name,
        folder=folder,
        source=source,
        freeze=tuple(cfg.freeze.parts),
        adapter=None if cfg.adapter.lora is None else build(cfg.adapter.lora),
        method=method,
        rewards=rewards,
        metrics=tuple(build(node) for node in cfg.metrics.values()),
        reflection=reflection,
        engine=engine,
        probe_sampling=probe_sampling,
        benchmark_sampling=benchmark_sampling,
        train=datasets["dataset.train"],
        probe=datasets["dataset.probe"],
        benchmark=datasets["benchmark.examples"],
        scorers=scorers,
        option_swap=cfg.benchmark.option_swap,
    )


def run(experiment: Experiment, *, started: float | None = None) -> dict[str, Any]:
    """Runs a prepared experiment to its end, or on from where it was interrupted; the same command resumes it.

    Of several processes, rank 0 does this; the others `take_part`.

    Args:
        experiment: what `prepare` made.
        started: ``time.perf_counter()`` at the command's start, to count the time that preparing took.

    Returns:
        The contents of ``summary.json``.
    """
    started = time.perf_counter() if started is None else started
    record = provenance.record(config=experiment.config, data=_fingerprints(experiment), root=_ROOT)
    with ExitStack() as stack:
        opened = experiment.folder.open(experiment.config, record)
        is_resumed = distributed.together(lambda: stack.enter_context(opened))
        distributed.wait_for(experiment.folder.config)
        _seed_everything(experiment.seed, num_threads=experiment.config["scale"]["num_threads"])
        if is_resumed:
            _forget_after_checkpoint(experiment.folder)
        with _tracker(experiment) as tracker:
            num_steps = train(experiment, tracker)
            before, after = _evaluate(experiment, num_steps)
            distributed.leave()
            seconds = round(time.perf_counter() - started, 1)
            summary = _summarise(
                experiment, before, after, steps=num_steps, wall_seconds=seconds, is_resumed=is_resumed
            )
            numbers = {key: value for key, value in summary.items() if key.endswith(("_before", "_after"))}
            tracker.log({f"benchmark/{key}": value for key, value in numbers.items()}, step=num_steps)
            _write_results(experiment.folder, before, after, summary)  # within, for a tracker shows them at its end
    return summary


def take_part(experiment: Experiment) -> None:
    """What every process but rank 0 does of a run: its share of all that is computed, and nothing that is written."""
    distributed.together(lambda: None)  # while rank 0 opens the folder
    distributed.wait_for(experiment.folder.config)
    _seed_everything(experiment.seed, num_threads=experiment.config["scale"]["num_threads"])
    _evaluate(experiment, train(experiment, FanOut(())))
    distributed.leave()


def train(experiment: Experiment, tracker: Tracker) -> int:
    """Trains and saves the policy, and returns its optimizer steps; a run that has its model does not train again."""
    from visual_r1.methods.training import TrainingContext
    from visual_r1.models import load_policy, save_policy
    from visual_r1.probe import Probe

    folder, scale = experiment.folder, experiment.config["scale"]
    if (num_steps := saved_steps(folder.model)) is not None:
        return num_steps
    policy = distributed.together(
        lambda: load_policy(experiment.source, freeze=experiment.freeze, adapter=experiment.adapter)
    )
    context = TrainingContext(
        examples=experiment.train,
        rewards=experiment.rewards,
        metrics=experiment.metrics,
        engine=experiment.engine,
        probe=Probe(
            examples=experiment.probe,
            engine=experiment.engine,
            sampling=experiment.probe_sampling,
            metrics=experiment.metrics,
            rewards=experiment.rewards,
            every_steps=scale["probe_every_steps"],
        ),
        tracker=tracker,
        folder=folder,
        seed=experiment.seed,
        save_every_steps=scale["save_every_steps"],
        grace_seconds=scale["grace_seconds"],
        show_every_steps=scale["show_every_steps"],
        rollouts_every_steps=scale["rollouts_every_steps"],
        keyword_hits=experiment.reflection.find,
        deepspeed=experiment.config["distributed"]["deepspeed"],
        fsdp=experiment.config["distributed"]["fsdp"],
    )
    policy, num_steps = experiment.method.train(policy, context)
    if num_steps:
        save_policy(policy, folder.model, num_steps=num_steps)
        distributed.wait_for(folder.model)  # which all evaluate
    return num_steps


def _evaluate(experiment: Experiment, num_steps: int) -> tuple[Report | None, Report]:
    """The starting point and the trained policy on the benchmark; no starting point where nothing was trained.

    Both after training: greedy answers of a saved checkpoint are the same at any time, and the first optimizer step
    comes sooner. Both are read from disk, so what is scored is what was saved. All processes share the questions, and
    rank 0 has the answers.
    """
    _free_memory()  # the trainer refers to itself, and its weights and optimizer would lie beside the benchmark's
    before = _report(experiment, experiment.source, "before")
    if not num_steps:
        return None, before
    _free_memory()
    # Asked as it was trained: what the method has stored beside the weights.
    saved = {"path": str(experiment.folder.model), "style": None, "prompt": None}
    trained = replace(experiment.source, name=experiment.name, **saved)
    return before, _report(experiment, trained, "after")


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _report(experiment: Experiment, source: ModelSource, when: str) -> Report:
    from visual_r1.evaluation import evaluate
    from visual_r1.models import load_policy

    name = experiment.config["benchmark"]["name"]
    # In the arithmetic that it was trained in, whatever its weights are kept in. But rounded to bfloat16, merged
    # weights lose what an adapter has learned.
    if experiment.adapter is not None:
        dtype = "float32"
    else:
        dtype = "bfloat16" if experiment.config["scale"]["bf16"] else source.dtype
    source = replace(source, dtype=dtype, max_pixels=experiment.config["benchmark"]["max_pixels"])
    policy = distributed.together(lambda: load_policy(source))
    return evaluate(
        policy.with_style(policy.style.for_evaluation()),
        experiment.engine,
        experiment.benchmark,
        benchmark=name,
        sampling=experiment.benchmark_sampling,
        reflection=experiment.reflection,
        scorers=experiment.scorers,
        option_swap=experiment.option_swap,
        description=f"benchmark {name}, {when}",
    )


def _summarise(experiment: Experiment, before: Report | None, after: Report, **facts: Any) -> dict[str, Any]:
    from visual_r1.evaluation import summarise

    return summarise(
        None if before is None else before.summary(),
        after.summary(),
        name=experiment.name,
        seed=experiment.seed,
        model=experiment.source.path,
        style=experiment.source.prompt_style.name,
        prompt=experiment.source.prompt_style.wording,
        **{group: experiment.config[group]["name"] for group in ("method", "freeze", "adapter")},
        **facts,
        **_code(experiment.folder),
        **_probe_ends(experiment.folder.read_metrics()),
        keywords=experiment.config["keywords"]["name"],
        command=experiment.command,
    )


def _code(folder: RunFolder) -> dict[str, Any]:
    """The code that the run began with; the checkout may have moved on since."""
    code = read_json(folder.provenance)["code"]
    return {"commit": code["commit"], "is_dirty": code["is_dirty"]}


def _probe_ends(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The first and the last visit of the probe, which samples as training does: greedy answers hide rare behaviour."""
    visits = [row for row in rows if row.get("probe/accuracy") is not None]
    names = {
        "accuracy": "probe/accuracy",
        "length": "probe/completions/mean_length",
        "reflection": "probe/reflection/any_rate",
        "parse_rate": "probe/format/parse_rate",
    }
    ends = {"before": visits[:1], "after": visits[-1:]}
    return {
        f"probe_{name}_{when}": row[key]
        for when, found in ends.items()
        for row in found
        for name, key in names.items()
        if row.get(key) is not None
    }


def _check_ranges(config: Mapping[str, Any]) -> None:
    """Refuses counts that are no counts, in one place for every scale."""
    if config["seed"] < 0:
        raise ConfigError(f"seed={config['seed']}: expected 0 or more")
    for key, value in config["scale"].items():
        is_count = isinstance(value, int) and not isinstance(value, bool)
        least = 0 if key in ("organism_seed", "top_k") else 1
        if is_count and value < least or value is None and key not in _OPTIONAL:
            raise ConfigError(f"scale.{key}={value}: expected at least {least}")
    limit = config["scale"]["max_completion_length"]
    for where, method in _methods(config).items():
        trl = method.get("trl", {})
        if trl.get("max_completion_length", limit) != limit:
            raise ConfigError(
                f"{where}.trl.max_completion_length={trl['max_completion_length']}: set scale.max_completion_length "
                "instead, so that rewards, probe and benchmark go by the same limit"
            )
        if trl.get("max_steps", 1) == 0:
            raise ConfigError(f"{where}.trl.max_steps=0: expected at least 1; to train nothing, use method=eval")


def _methods(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The method and its stages, by where they stand in the config."""
    stages = {f"method.stages.{name}": stage for name, stage in config["method"].get("stages", {}).items()}
    return {"method": config["method"], **stages}


def _check_thoughts(config: Mapping[str, Any], examples: Sequence[Example]) -> None:
    """Refuses to imitate thoughts that the data does not have."""
    for where, method in _methods(config).items():
        if method.get("imitate") == "thought" and examples[0].thought is None:
            raise ConfigError(
                f"{where}.imitate=thought: the training examples have no thoughts; of drawn scenes set "
                "dataset.train.thoughts=reflective, of a table dataset.train.columns.thought=COLUMN"
            )


def _check_precision(config: Mapping[str, Any]) -> None:
    """Refuses to train bfloat16 weights without a float32 copy: steps of 1e-6 are below their rounding, and vanish."""
    node = config["distributed"]
    splits = node["deepspeed"] is not None or node["fsdp"] is not None
    has_float32_copy = config["adapter"]["lora"] is not None or splits
    if not _trains(config) or config["model"]["dtype"] != "bfloat16":
        return
    if not has_float32_copy:
        raise ConfigError(
            "model.dtype=bfloat16: small updates would vanish in its rounding; use model.dtype=float32 with "
            "scale.bf16=true, or adapter=lora, or distributed=zero2, which keeps float32 weights beside"
        )
    if splits and not config["scale"]["bf16"]:
        raise ConfigError(
            f"model.dtype=bfloat16 scale.bf16=false: distributed={node['name']} would train in float32; make them agree"
        )


def _check_merged(config: Mapping[str, Any]) -> None:
    """Refuses an engine that rounds merged adapters: what they learn at a small learning rate would not be sampled."""
    if config["adapter"]["lora"] is not None and config["rollout"]["engine"].get("bf16", False):
        raise ConfigError(
            "adapter=lora rollout.engine.bf16=true: merged and rounded to bfloat16, the weights would lose what the "
            "adapters have learned, in rollouts and in every evaluation; set rollout.engine.bf16=false"
        )


def _check_processes(config: Mapping[str, Any]) -> None:
    """Refuses to train in another number of processes than the config says; an evaluation takes any."""
    node = config["distributed"]
    is_alone = not distributed.is_joined()
    splits = node["deepspeed"] is not None or node["fsdp"] is not None
    if _trains(config) and is_alone and (node["num_processes"] > 1 or splits):
        raise ConfigError(
            f"distributed.num_processes={node['num_processes']}: this process is alone; python run.py or torchrun "
            "starts the others"
        )


def _trains(config: Mapping[str, Any]) -> bool:
    return config["method"]["name"] != "eval"


def _write_results(folder: RunFolder, before: Report | None, after: Report, summary: Mapping[str, Any]) -> None:
    from visual_r1.report.figure import figure_of_run

    write_json(folder.evaluation, after.summary())
    reports = {"after": after} if before is None else {"before": before, "after": after}
    items = [{"when": when, **item} for when, report in reports.items() for item in report.items()]
    write_parquet(folder.evaluation_items, items)
    figure_of_run(folder)
    write_json(folder.summary, summary)  # last: from here on the run is finished


def _tracker(experiment: Experiment) -> Tracker:
    record = JsonlTracker(experiment.folder)  # first: the others show what it has written
    name, config = experiment.name, experiment.config
    shown = shown_in(config["tracker"], experiment.folder, name=name, config=config, code=_ROOT)
    return FanOut([record, *shown])


def _forget_after_checkpoint(folder: RunFolder) -> None:
    from visual_r1.methods.chain import last_kept_step

    if saved_steps(folder.model) is None:
        folder.truncate_metrics(last_kept_step(folder))


def _fingerprints(experiment: Experiment) -> dict[str, str]:
    named = {"train": experiment.train, "probe": experiment.probe, "benchmark": experiment.benchmark}
    return {name: _fingerprint(examples) for name, examples in named.items()}


def _fingerprint(examples: Any) -> str:
    if hasattr(examples, "fingerprint"):
        return examples.fingerprint()
    return f"unknown: {type(examples).__name__} with {len(examples)} examples has no fingerprint()"


def _seed_everything(seed: int, *, num_threads: int | None) -> None:
    import torch
    from transformers import set_seed

    set_seed(seed)
    if num_threads is not None:
        torch.set_num_threads(num_threads)
