"""``visual-r1 probe RUN``: does reflection decide anything? From what the run has saved, and from new rollouts."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from visual_r1 import provenance
from visual_r1.config import ConfigError, build, keyword_lists, recorded
from visual_r1.files import read_json, write_json, write_parquet
from visual_r1.metrics.reflection import Reflection
from visual_r1.models import ModelSource, saved_steps
from visual_r1.reflection_measures import of_change, of_probed, of_saved, read_saved, schema, trial_rows
from visual_r1.reflection_record import Measurement, sections, table, with_baselines
from visual_r1.run_folder import RunFolder

if TYPE_CHECKING:
    from visual_r1.examples import Example
    from visual_r1.interventions import Probed, Settings
    from visual_r1.rollout.remembering import Journal

LEVEL = 0.95
FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of a thought, after which the answer is forced, or the image removed."""
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says."""

    run: Path
    models: tuple[str, ...]
    """``before``, ``after``, or folders and hub ids; empty takes ``before`` and, where it exists, ``after``."""
    steps: tuple[int, ...]
    """Optimizer steps whose checkpoints are probed as well."""
    num_examples: int
    num_generations: int
    seed: int
    phrase: str
    empty_phrase: str
    rollout: str | None
    """An engine of ``conf/rollout``; None takes the run's."""
    saved_only: bool
    command: str


@dataclass(frozen=True, kw_only=True)
class _Model:
    """A policy to probe."""

    name: str
    source: ModelSource
    step: int | None


def probe(options: Options, *, show: Callable[[str], object] = print) -> dict[str, Any]:
    """Measures, writes ``reflection.json`` and ``reflection.parquet`` into the run folder, and shows the table.

    Returns:
        The contents of ``reflection.json``.

    Raises:
        ValueError: there is no run, or the probe cannot be made as asked; nothing has been sampled or written then.
    """
    started = time.perf_counter()
    folder = RunFolder(options.run)
    config = folder.read_config()
    if options.saved_only and _has_new_rollouts(folder.reflection):
        raise ConfigError(f"--saved-only: {folder.reflection} holds new rollouts, which would be lost; leave it out")
    try:
        keywords = config["keywords"]
        lists = {**keyword_lists(), keywords["name"]: tuple(keywords["phrases"])}
        job = None if options.saved_only else _prepare(options, folder, config)
    except KeyError as error:
        raise ConfigError(f"{folder.config}: has no key {error}; it was written by another version") from error
    reflections = {name: Reflection(phrases=tuple(phrases)) for name, phrases in lists.items()}
    written, left_out = read_saved(folder)
    measured = of_saved(written, reflections, level=LEVEL)
    for source, rollouts in written.items():
        if len({(one.prompt, one.visit) for one in rollouts}) == len(rollouts):
            left_out.append(f"within a prompt, saved {source}: one completion a prompt, so there is nothing to compare")
        if unread := sum(one.choices is None for one in rollouts):
            left_out.append(f"flips, saved {source}: the questions of {unread} rollouts list no choices")
    record: dict[str, Any] = {
        "version": 1,
        "run": str(options.run),
        "command": options.command,
        **{key: value for key, value in _code().items() if key in ("commit", "is_dirty")},
        "seed": options.seed,
        "level": LEVEL,
        "keywords": keywords["name"],
        "settings": None,
        "models": [],
    }
    with ExitStack() as stack:
        journal = None
        if job is None:
            left_out.append("new rollouts: --saved-only was asked for")
        else:
            journal = stack.enter_context(closing(_journal(folder, show)))
            new = _sample(job, reflections, journal, keywords=keywords["name"])
            measured += new.measured
            left_out += [*job.left_out, *new.left_out]
            models = [{"name": one.name, "path": one.source.path, "step": one.step} for one in job.models]
            record |= {"settings": job.description, "models": models}
            write_parquet(folder.reflection_trials, new.rows, schema=schema())
        record |= {
            "wall_seconds": round(time.perf_counter() - started, 1),
            "sections": sections(with_baselines(measured)),
            "left_out": left_out,
        }
        write_json(folder.reflection, record)
        if journal is not None:
            journal.remove()
    record = read_json(folder.reflection)
    show(table(record))
    show(f"{folder.reflection}: {sum(len(part['rows']) for part in record['sections'])} numbers")
    return record


@dataclass(kw_only=True)
class _New:
    """What new rollouts have shown."""

    measured: list[Measurement] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def _journal(folder: RunFolder, show: Callable[[str], object]) -> Journal:
    """What an earlier probe of this run had sampled when it was cut short; it keeps what comes now."""
    from visual_r1.rollout.remembering import Journal

    journal = Journal(folder.reflection_unfinished)
    if journal.num_completions:
        show(
            f"{folder.reflection_unfinished}: an earlier probe was cut short; what it has sampled is not sampled again"
        )
    return journal


def _sample(job: _Job, reflections: Mapping[str, Reflection], journal: Journal, *, keywords: str) -> _New:
    """Asks every policy, and compares each with the first."""
    new = _New()
    first: Probed | None = None
    for model in job.models:
        probed, missing = _probed(model, job, reflections[keywords], journal)
        named = {"model": model.name, "step": model.step, "keywords": keywords, "level": LEVEL}
        new.measured += of_probed(probed, reflections, fractions=FRACTIONS, **named)
        if model.step == 0:
            first = probed
        elif first is not None:
            new.measured += of_change(first, probed, **named)
        new.left_out += missing
        new.rows += trial_rows(probed, model=model.name)
    return new


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What the new rollouts need, checked, with no model loaded yet."""

    models: tuple[_Model, ...]
    engine: Any
    examples: Sequence[Example]
    settings: Settings
    num_threads: int | None
    engine_config: str
    description: dict[str, Any]
    left_out: tuple[str, ...]


def _prepare(options: Options, folder: RunFolder, config: Mapping[str, Any]) -> _Job:
    from visual_r1.interventions import Settings, check_engine, check_phrases
    from visual_r1.rollout.engine import Sampling

    cfg = recorded(config, rollout=options.rollout)
    benchmark, scale = config["benchmark"], config["scale"]
    settings = Settings(
        sampling=Sampling(
            max_completion_length=benchmark["max_completion_length"], temperature=scale["probe_temperature"]
        ),
        num_generations=options.num_generations,
        fractions=FRACTIONS,
        phrase=options.phrase,
        empty_phrase=options.empty_phrase,
        seed=options.seed,
    )
    engine = build(cfg.rollout.engine)
    check_engine(engine)
    models, left_out = _models(options, folder, config)
    for model in models:
        engine.check(model.source)
    examples = build(cfg.benchmark.examples)
    chosen = _sampled(examples, options.num_examples, seed=options.seed)
    if len(chosen) < options.num_examples:
        left_out.append(f"items: {options.num_examples} were asked for, the benchmark has {len(chosen)}")
    check_phrases(settings, chosen)
    if _are_others(examples, folder):
        left_out.append(
            "items: not those of the run, whose benchmark has other data since; its evaluation is of others"
        )
    return _Job(
        models=tuple(models),
        engine=engine,
        examples=chosen,
        settings=settings,
        num_threads=scale["num_threads"],
        engine_config=str(cfg.rollout.engine),
        description={
            "benchmark": benchmark["name"],
            "num_examples": len(chosen),
            "rollout": cfg.rollout.name,
            **asdict(settings.sampling),
            **{key: value for key, value in asdict(settings).items() if key not in ("sampling", "seed")},
            "answers": "greedy, after </think> and <answer> were put in",
        },
        left_out=tuple(left_out),
    )


def _are_others(examples: Any, folder: RunFolder) -> bool:
    """Whether a benchmark's data have changed since the run was started, as far as both are known."""
    known = read_json(folder.provenance)["data"].get("benchmark") if folder.provenance.exists() else None
    return known is not None and hasattr(examples, "fingerprint") and known != examples.fingerprint()


def _models(options: Options, folder: RunFolder, config: Mapping[str, Any]) -> tuple[list[_Model], list[str]]:
    """The policies that were asked for, and what is not there, a line each.

    Raises:
        ValueError: a model or a step that was named is not there.
    """
    has_adapter = config["adapter"]["lora"] is not None
    start = ModelSource(**config["model"])
    # As the run's own benchmark: in the arithmetic that it was trained in; see `experiment`.
    dtype = "float32" if has_adapter else "bfloat16" if config["scale"]["bf16"] else start.dtype
    start = replace(start, dtype=dtype, max_pixels=config["benchmark"]["max_pixels"])
    style = start.prompt_style
    models, left_out = [], []
    num_steps = saved_steps(folder.model)
    for name in dict.fromkeys(options.models or ("before", "after")):
        if name == "before":
            models.append(_Model(name=name, source=start, step=0))
        elif name != "after":
            source = replace(start, name=name, path=name, style=style.name, prompt=style.wording)
            models.append(_Model(name=name, source=source, step=None))
        elif num_steps is not None:
            source = replace(start, name=name, path=str(folder.model), style=None, prompt=None)
            models.append(_Model(name=name, source=source, step=num_steps))
        elif options.models:
            raise ConfigError(f"--model after: {folder.model} is not there; the run is not finished or trains nothing")
        else:
            left_out.append(f"after: {folder.model} is not there; the run is not finished or trains nothing")
    for step in dict.fromkeys(options.steps):
        path = folder.checkpoints / f"checkpoint-{step}"
        if not path.is_dir():
            there = sorted(int(one.name.removeprefix("checkpoint-")) for one in folder.checkpoints.glob("checkpoint-*"))
            raise ConfigError(f"--step {step}: {path} is not there, only steps {there}")
        if has_adapter:
            raise ConfigError(f"--step {step}: a checkpoint of adapter=lora holds no whole model; use --model after")
        source = replace(start, name=f"step {step}", path=str(path), style=style.name, prompt=style.wording)
        models.append(_Model(name=f"step {step}", source=source, step=step))
    return sorted(models, key=lambda model: (model.step is None, model.step)), left_out


def _probed(model: _Model, job: _Job, reflection: Reflection, journal: Journal) -> tuple[Probed, list[str]]:
    """One policy under all conditions, and what of them had no item, a line each."""
    import torch

    from visual_r1.interventions import intervene, num_requests
    from visual_r1.models import load_policy

    if job.num_threads is not None:
        torch.set_num_threads(job.num_threads)
    policy = load_policy(model.source)
    policy = policy.with_style(policy.style.for_evaluation())
    total = num_requests(len(job.examples), job.settings)
    with tqdm(total=total, desc=f"probe, {model.name}", unit="completion") as bar:
        probed = intervene(
            *(policy, job.engine, job.examples),
            settings=job.settings,
            reflection=reflection,
            progress=bar.update,
            remembering=partial(journal.sampler, of=repr((model.source, _weights(model.source), job.engine_config))),
        )
        bar.total = bar.n  # some conditions concern only some items
        bar.refresh()
    left_out = []
    if not any(one.marker is not None for one in probed.completed):
        left_out.append(f"cut, {model.name}: none of {len(probed.completed)} completions reflects in its thought")
    if all(one.marker is not None for one in probed.completed):
        left_out.append(f"forced, {model.name}: all of {len(probed.completed)} completions reflect by themselves")
    if probed.num_without_partner:
        left_out.append(
            f"image of another item, {model.name}: {probed.num_without_partner} items have no other of their category "
            "with images of the same sizes"
        )
    return probed, left_out


def _weights(source: ModelSource) -> list[tuple[str, int, int]]:
    """The files of a model's folder with their sizes and times, by which other weights are noticed; none of the hub's.

    A model of the hub is taken to be what its id says.
    """
    files = sorted(path for path in Path(source.path).glob("*") if path.is_file())
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _has_new_rollouts(file: Path) -> bool:
    """Whether a record of an earlier probe holds what took time to sample; a damaged one holds nothing."""
    try:
        return file.is_file() and bool(read_json(file)["models"])
    except (ValueError, TypeError, KeyError):
        return False


def _sampled(examples: Sequence[Example], number: int, *, seed: int) -> list[Example]:
    """So many examples of all, in their order; the same for every model."""
    chosen = sorted(random.Random(seed).sample(range(len(examples)), min(number, len(examples))))
    return [examples[index] for index in chosen]


def _code() -> dict[str, Any]:
    return provenance.record(config={}, data={}, root=_ROOT)["code"]
