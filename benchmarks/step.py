"""What a step of GRPO takes, stock trl beside ours: time, memory, growth, the floor, and what each flag pays.

    python -m benchmarks.step                          all parts: about two hours on one core
    python -m benchmarks.step update                   the update alone, over a grid, and how it grows
    python -m benchmarks.step memory                   its peak memory, each case in a process of its own
    python -m benchmarks.step flags                    each flag of the step alone, and all together
    python -m benchmarks.step pushes                   weights for a rollout engine: all, or those that changed
    python -m benchmarks.step step                     whole steps: rollouts, rewards, update
    python -m benchmarks.step update --only "8 x 200"  the cases whose name holds these words, printed and not kept
    python -m benchmarks.step update --quick           a rehearsal with nano alone, printed and not kept
    python -m benchmarks.step update --quick --aa      stock on both sides: the ratio is 1.00, or the machine is busy

Everything is wall-clock time, so the machine must have nothing else to do. Stock is ``trl.GRPOTrainer`` with nothing
overridden, ours `RolloutGrpoTrainer` with its default flags, from the same weights, on the same prompts and, but for
whole steps, the same completions; they take turns in one process (A B A B), each after a first time that does not
count (one micro-batch where both together take long), and the median is kept. A row's ``ratio`` is
stock over ours for seconds (how many times faster), ours over stock for bytes (what share is left). A case is written
down as soon as it is measured: a part that was interrupted goes on from there, as long as the commit is the same and
nothing is changed beside it.

Two models: ``nano`` (1.4 million parameters, trained) at the laptop's defaults, and ``28M`` (random weights in the
proportions of Qwen2-VL-2B, see `random_models.write_28m`). Completions of the grid have lengths from half of the
longest to the longest, evenly spread, in random order; in one case all are equal, to show what padding is worth. One
micro-batch is one group there. Neither side recomputes activations (``gradient_checkpointing=false``) and both compute
in float32.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from benchmarks.random_models import write_28m
from benchmarks.recording import (
    NANO,
    RESULTS,
    ROOT,
    Rows,
    compared,
    environment,
    facts,
    in_turns,
    run_command,
    write_part,
)
from visual_r1.files import read_json

if TYPE_CHECKING:
    from benchmarks.updates import Bench, Case

FILE = RESULTS / "step.json"
UNFINISHED = ROOT / "runs" / ".benchmarks"
SIDES = ("stock", "ours")
GROUPS, IMAGES, LENGTHS = (4, 8, 16), (64, 300, 500), (50, 200, 700)
BETA = 0.04
"""Of the cases that also time a pass of the reference policy: those of groups of 8 behind 300 image tokens."""
GROWTH_GROUPS, GROWTH_IMAGES = (1, 2, 4, 8, 16), (64, 144, 300, 500, 750)
GROWTH_GROUP = 4
"""Completions of a group where it is the image that grows."""
WELL_MEASURED = 20.0
"""Seconds of turns that a case should get; a long one gets two turns, a short one at most seven."""
_RATE = 50e9
"""Operations a second by which the number of turns is chosen, on every machine the same."""


def update_cases(*, quick: bool = False) -> list[Case]:
    """What is learned from, what matters most first."""
    from benchmarks.updates import Case, lengths

    def of(image: int, longest: int, group: int) -> Case:
        return Case(
            model="28M",
            image_tokens=(image,),
            lengths=lengths(longest, group),
            longest=longest,
            group=group,
            micro_batch=group,
            beta=BETA if (group, image) == (8, 300) else 0.0,
        )

    laptop = laptop_case()
    if quick:
        return [replace(laptop, image_tokens=laptop.image_tokens[:4], lengths=laptop.lengths[:32], note="rehearsal")]
    bars = [of(300, 200, 8), of(300, 700, 8)]
    equal = replace(bars[0], lengths=(200,) * 8, note="all equally long")
    grid = [of(image, longest, group) for group in (8, 4, 16) for image in IMAGES for longest in LENGTHS]
    growth = [of(300, 200, group) for group in GROWTH_GROUPS]
    growth += [of(image, 200, GROWTH_GROUP) for image in GROWTH_IMAGES]
    return list(dict.fromkeys([laptop, *bars, equal, *growth, *grid]))


@cache
def laptop_case() -> Case:
    """Nano at the laptop's defaults: 16 prompts of the usual size, completions as long as it writes them untrained."""
    from benchmarks.updates import Case, method_of
    from visual_r1.datasets.spatial import Spatial
    from visual_r1.models import ModelSource, load_policy
    from visual_r1.rollout.transformers import TransformersEngine

    method = method_of([])
    policy = load_policy(ModelSource(name="nano", path=str(NANO), style="base"))
    examples = [policy.fitted(one) for one in map(Spatial(split="train", size=1000).__getitem__, range(16))]
    with TransformersEngine(batch_size=128).serving(policy) as sampler:
        groups = sampler.generate(
            [policy.style.messages(example) for example in examples],
            num_generations=method.trl["num_generations"],
            sampling=method.sampling,
            seed=0,
        )
    image = policy.limits.num_tokens(*examples[0].images[0].size)
    return Case(
        model="nano",
        image_tokens=(image,) * method.prompts_per_step,
        text_tokens=round(fmean(map(policy.prompt_length, examples))) - image,
        lengths=tuple(len(completion.token_ids) for group in groups for completion in group),
        longest=method.sampling.max_completion_length,
        group=method.trl["num_generations"],
        micro_batch=method.micro_batch_size,
        beta=method.trl["beta"],
    )


def turns_of(case: Case, config: Mapping[str, Any], *, quick: bool) -> int:
    """How often both sides are asked: the longer it takes, the less often."""
    return 1 if quick else max(2, min(7, round(WELL_MEASURED / seconds_of(case, config, rate=_RATE))))


def seconds_of(case: Case, config: Mapping[str, Any], *, rate: float) -> float:
    """About how long one turn of both sides takes.

    Args:
        case: what is learned from.
        config: of its model.
        rate: operations a second.
    """
    from benchmarks import floor

    shape = {"image_tokens": case.image_tokens, "text_tokens": case.text_tokens, "lengths": case.lengths}
    passes = floor.BACKWARD + (1 if case.beta else 0)
    return passes * (floor.padded(config, **shape).total + floor.once(config, **shape).total) / rate


def update(bench: Bench, case: Case, *, quick: bool, sides: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of one case: the update, the pass without a gradient, making the batch; and the floor under the first."""
    from benchmarks import floor
    from benchmarks.updates import counting, free
    from visual_r1 import update_timing

    config = bench.config(case.model)
    turns = turns_of(case, config, quick=quick)
    trainers = {side: bench.trainer(case, kind) for side, kind in sides.items()}
    # A group of one stands in a batch of two, of which one micro-batch is learned from.
    micro_batches = None if case.group > 1 else 1
    for trainer in trainers.values():
        update_timing.make_batch(trainer)
        # The first time also finds kernels and memory; of a long update one micro-batch is enough for that.
        is_long = seconds_of(case, config, rate=_RATE) > WELL_MEASURED
        update_timing.update(trainer, micro_batches=1 if is_long else micro_batches)
    shape = {"image_tokens": case.image_tokens, "text_tokens": case.text_tokens, "lengths": case.lengths}
    patches = 4 * sum(case.image_tokens)
    tokens = sum(case.image_tokens) + case.prompts * case.text_tokens + sum(case.lengths)
    rate = floor.matmul_rate(config, tokens=tokens, patches=patches)
    computed: dict[str, Any] = {}

    def one(side: str) -> float:
        with counting(trainers[side].model) as passed:
            seconds = update_timing.update(trainers[side], micro_batches=micro_batches)
        computed[side] = vars(passed)
        return seconds

    seconds = in_turns({side: partial(one, side) for side in trainers}, turns=turns)
    least = floor.BACKWARD * floor.once(config, **shape).total / rate
    completion_tokens = sum(case.lengths)
    real = {
        "prompt": case.group * (sum(case.image_tokens) + case.prompts * case.text_tokens),
        "image": case.group * sum(case.image_tokens),
        "completion": completion_tokens,
    }
    row = compared(case.name, "update", seconds, unit="seconds", tokens={"real": real, "computed": computed})
    row["gflops_per_second"] = round(rate / 1e9, 1)
    row["floor"] = float(f"{least:.4g}")
    row["share_of_floor"] = {side: round(least / row[side], 3) for side in SIDES}
    row["shape"] = _sizes(case)
    rows = [row]
    if case.beta:
        made = in_turns(
            {side: partial(update_timing.make_batch, trainer) for side, trainer in trainers.items()}, turns=turns
        )
        passes = {side: [one.pass_seconds for one in each] for side, each in made.items()}
        making = {side: [one.seconds - one.pass_seconds for one in each] for side, each in made.items()}
        rows.append(compared(case.name, "pass without gradient", passes, unit="seconds"))
        rows.append(compared(case.name, "images, rewards, advantages", making, unit="seconds"))
    trainers.clear()
    free()
    return rows


def _sizes(case: Case) -> dict[str, Any]:
    return {
        "model": case.model,
        "image_tokens": max(case.image_tokens),
        "text_tokens": case.text_tokens,
        "prompts": case.prompts,
        "group": case.group,
        "longest": case.longest,
    }


def updates(options: argparse.Namespace, rows: Rows) -> None:
    """Measures the update of every case, then fits how it grows."""
    with _bench(options) as bench:
        cases = _chosen(update_cases(quick=options.quick), options)
        turns = {case: turns_of(case, bench.config(case.model), quick=options.quick) for case in cases}
        _say_minutes(
            sum((turns[case] + 1) * seconds_of(case, bench.config(case.model), rate=_RATE) + 8 for case in cases)
        )
        for case in cases:
            if case.name not in rows:
                rows.add(case.name, _shown(update(bench, case, quick=options.quick, sides=_sides(options))))
    if fitted := growth(rows.rows):
        rows.add("growth", _shown(fitted))


def growth(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Seconds that one more completion and one more image token cost, by least squares over the rows of growth."""
    updates = [row for row in rows if row["metric"] == "update" and row["shape"]["model"] == "28M"]
    updates = [row for row in updates if row["shape"]["longest"] == 200 and "equal" not in row["case"]]
    series = {
        "an extra completion": ("group", [row for row in updates if row["shape"]["image_tokens"] == 300]),
        "an extra image token": ("image_tokens", [row for row in updates if row["shape"]["group"] == GROWTH_GROUP]),
    }
    fitted = []
    for metric, (key, chosen) in series.items():
        sizes = [row["shape"][key] for row in chosen]
        if len(set(sizes)) < 3:
            continue
        slopes = {side: slope(sizes, [row[side] for row in chosen]) for side in SIDES}
        case = f"28M, {key} from {min(sizes)} to {max(sizes)}"
        fitted.append(compared(case, metric, {side: [value] for side, value in slopes.items()}, unit="seconds"))
    return fitted


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the straight line with the least squared distance to the points."""
    centre = fmean(x)
    return sum((one - centre) * other for one, other in zip(x, y, strict=True)) / sum((one - centre) ** 2 for one in x)


def memory(options: argparse.Namespace, rows: Rows) -> None:
    """Measures the peak of resident memory in every case but those that only show growth."""
    cases = update_cases(quick=options.quick)
    cases = [
        case for case in cases if case.model == "nano" or (case.group in GROUPS and case.image_tokens[0] in IMAGES)
    ]
    cases = _chosen(cases, options)
    with tempfile.TemporaryDirectory(prefix="step-") as folder:
        models = _models(Path(folder))
        configs = {name: read_json(path / "config.json") for name, path in models.items()}
        _say_minutes(sum(seconds_of(case, configs[case.model], rate=options.threads * _RATE) + 20 for case in cases))
        for case in cases:
            if case.name in rows:
                continue
            peaks = {side: _peak(case, kind, Path(folder), options) for side, kind in _sides(options).items()}
            made = []
            for metric in ("grown", "whole"):
                values = {side: [float(peak[metric])] for side, peak in peaks.items()}
                name = {"grown": "peak memory of an update", "whole": "peak memory of the process"}[metric]
                made.append(compared(case.name, name, values, unit="bytes", is_share=True, shape=_sizes(case)))
            rows.add(case.name, _shown(made))
        case = flag_case(quick=options.quick)
        for name in FLAG_ROWS:
            key = f"flags, {name}"
            if key in rows or options.aa or (options.only and options.only not in key):
                continue
            peaks = {
                side: _peak(case, "ours", Path(folder), options, flags=turned_on)
                for side, turned_on in {"stock": "none", "ours": name}.items()
            }
            values = {side: [float(peak["grown"])] for side, peak in peaks.items()}
            rows.add(key, _shown([compared(name, FLAG_MEMORY, values, unit="bytes", is_share=True)]))


def _peak(case: Case, side: str, models: Path, options: argparse.Namespace, *, flags: str = "") -> dict[str, int]:
    threads = str(options.threads)
    words = ["--case", case.name, "--side", side, "--models", str(models), "--flags", flags, "--threads", threads]
    command = [sys.executable, "-m", "benchmarks.step", "memory", *words, *(["--quick"] if options.quick else [])]
    return json.loads(run_command(command, threads=threads).splitlines()[-1])


def peak(options: argparse.Namespace) -> dict[str, int]:
    """Bytes that one side's batch and update add at most to what the process holds, and all that it then holds.

    ``grown`` counts the batch with its pixel values, activations and gradients; what was there before are the
    libraries, the weights and the trainer. ``whole`` adds those, and the two moments that Adam would hold beside.
    """
    from benchmarks.updates import Bench, free
    from visual_r1 import update_timing

    cases = [*update_cases(quick=options.quick), flag_case(quick=options.quick)]
    case = next(case for case in cases if case.name == options.case)
    overrides = _flag_overrides(options.flags) if options.flags else []
    with Bench(_models(options.models)) as bench:
        trainer = bench.trainer(
            replace(case, beta=0.0), options.side, overrides=overrides, needs_correction=bool(options.flags)
        )
        free()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # sets the kernel's peak to what is resident now
        before = _resident("VmRSS")
        update_timing.make_batch(trainer)
        update_timing.update(trainer)
        most = _resident("VmHWM")
        moments = sum(2 * 4 * weight.numel() for weight in trainer.model.parameters())
    return {"grown": most - before, "whole": most + moments}


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def flag_case(*, quick: bool) -> Case:
    """Two groups with images of two sizes, a micro-batch for each; one of them has no advantage."""
    from benchmarks.updates import Case, lengths

    if quick:
        return replace(
            laptop_case(), image_tokens=(16, 9) * 2, lengths=laptop_case().lengths[:32], micro_batch=8, beta=0.0
        )
    return Case(
        model="28M",
        image_tokens=(64, 144),
        lengths=lengths(100, 16),
        longest=100,
        group=8,
        micro_batch=8,
        zero_advantage=0.5,
    )


FLAG_ROWS: Mapping[str, Mapping[str, str]] = {
    "none": {},
    "shared_prefix": {"shared_prefix": "true"},
    "keep_groups": {"keep_groups": "true"},
    "shared_prefix, keep_groups": {"shared_prefix": "true", "keep_groups": "true"},
    "encode_once": {"encode_once": "true"},
    "trim_padding": {"trim_padding": "true"},
    "tokens_per_micro_batch=1500": {"tokens_per_micro_batch": "1500"},
    "skip_zero_advantage": {"skip_zero_advantage": "true"},
    "skip_old_logps": {"skip_old_logps": "true"},
    "all": {
        **dict.fromkeys(("shared_prefix", "keep_groups", "encode_once", "trim_padding"), "true"),
        **{"tokens_per_micro_batch": "1500", "skip_zero_advantage": "true", "skip_old_logps": "true"},
    },
}
"""What is turned on, by the row's name; ``none`` is our trainer with trl's step, which says how far rows are alike."""


def _flag_overrides(name: str) -> list[str]:
    """The step of trl, but for what a row of `FLAG_ROWS` turns on."""
    from benchmarks.updates import stock_flags

    # A masked completion would not be learned from, and the given log-probabilities are nobody's.
    correction = "method.trl.vllm_importance_sampling_mode=token_truncate"
    return [*stock_flags(), correction, *(f"method.{flag}={value}" for flag, value in FLAG_ROWS[name].items())]


def flags(options: argparse.Namespace, rows: Rows) -> None:
    """Measures one batch, made and learned from, with each flag alone and with all.

    The completions are said to come from another engine, so that the old log-probabilities are computed, as with vLLM.
    Stock is our trainer without a flag: trl's own takes no correction with rollouts that it is given.
    """
    from benchmarks.updates import free

    case = flag_case(quick=options.quick)
    with _bench(options) as bench:
        config = bench.config(case.model)
        turns = max(2, turns_of(case, config, quick=options.quick))
        _say_minutes(len(FLAG_ROWS) * (turns + 1) * 2.5 * seconds_of(case, config, rate=_RATE))
        for name in FLAG_ROWS:
            if name in rows or (options.only and options.only not in name):
                continue
            trainers = {
                side: bench.trainer(case, "ours", overrides=_flag_overrides(flags_of_side), needs_correction=True)
                for side, flags_of_side in {"stock": "none", "ours": name}.items()
            }
            for trainer in trainers.values():
                _both(trainer)  # the first time does not count
            made = in_turns({side: partial(_both, trainer) for side, trainer in trainers.items()}, turns=turns)
            columns = {metric: {side: [one[metric] for one in each] for side, each in made.items()} for metric in _BOTH}
            rows.add(name, _shown([compared(name, metric, columns[metric], unit="seconds") for metric in _BOTH]))
            trainers.clear()
            free()


FLAG_MEMORY = "peak memory of a batch, made and learned from"
_BOTH = ("making the batch", "update", "together")


def _both(trainer: Any) -> dict[str, float]:
    from visual_r1 import update_timing

    made = update_timing.make_batch(trainer)
    seconds = update_timing.update(trainer)
    return dict(zip(_BOTH, (made.seconds, seconds, made.seconds + seconds), strict=True))


def pushes(options: argparse.Namespace, rows: Rows) -> None:
    """Measures what goes to an engine after an optimizer step: every weight, or those that may have changed.

    Without an engine: the weights are copied as one would take them. Adam's step lies between two pushes.
    """
    import torch

    from visual_r1.rollout.pushes import Pushes

    with _bench(options) as bench:
        for name, frozen in {"nothing": (), "vision": ("vision",), "llm": ("llm",)}.items():
            case = f"freeze={name}"
            if case in rows or (options.only and options.only not in case):
                continue
            policy = bench.policy("nano" if options.quick else "28M", freeze=frozen)
            optimizer = torch.optim.AdamW(weight for weight in policy.model.parameters() if weight.requires_grad)
            given = {"stock": Pushes(changed_only=False), "ours": Pushes(changed_only=True)}
            seconds: dict[str, list[float]] = {side: [] for side in given}
            sizes: dict[str, list[float]] = {side: [] for side in given}
            for _ in range(1 + 5):
                for weight in policy.model.parameters():
                    weight.grad = torch.ones_like(weight) if weight.requires_grad else None
                optimizer.step()
                for side, one in given.items():
                    started = time.perf_counter()
                    with one.next(policy) as push:
                        for _, tensor in push.weights():
                            tensor.clone()
                    seconds[side].append(time.perf_counter() - started)
                    sizes[side].append(float(push.num_bytes))
            # Of the first push all weights are new.
            kept = [{side: values[1:] for side, values in each.items()} for each in (seconds, sizes)]
            made = [
                compared(case, "push after a step", kept[0], unit="seconds"),
                compared(case, "weights pushed after a step", kept[1], unit="bytes", is_share=True),
            ]
            rows.add(case, _shown(made))


def steps(options: argparse.Namespace, rows: Rows) -> None:
    """Measures whole optimizer steps: rollouts, rewards, log-probs, update, Adam; not the first of each block."""
    from benchmarks.updates import whole_steps

    sizes = {
        "nano, laptop's defaults": ("nano", [], 3, 4),
        "28M, 300 image + 100 text tokens, 2 x 8 x 200": (
            "28M",
            ["scale.prompts_per_step=2", "scale.micro_batch_size=8", "scale.max_completion_length=200"],
            2,
            2,
        ),
    }
    _say_minutes(900)
    with _bench(options) as bench:
        for name, (model, overrides, turns, num_steps) in sizes.items():
            if name in rows or (options.only and options.only not in name) or (options.quick and model != "nano"):
                continue
            count = 2 if options.quick else num_steps
            blocks = in_turns(
                {
                    side: partial(whole_steps, bench, model, kind, overrides, num_steps=count)
                    for side, kind in _sides(options).items()
                },
                turns=1 if options.quick else turns,
            )
            every = {side: [one for block in each for one in block] for side, each in blocks.items()}
            seconds = {side: [one["seconds"] for one in each] for side, each in every.items()}
            tokens = {side: [one["tokens"] for one in each] for side, each in every.items()}
            per_token = {side: [1e3 * one["seconds"] / one["tokens"] for one in each] for side, each in every.items()}
            mean = {side: round(fmean(each), 1) for side, each in tokens.items()}
            made = [
                compared(name, "whole step", seconds, unit="seconds", completion_tokens=mean),
                compared(name, "whole step for a completion token", per_token, unit="milliseconds"),
            ]
            rows.add(name, _shown(made))


PARTS: Mapping[str, Callable[[argparse.Namespace, Rows], None]] = {
    "update": updates,
    "flags": flags,
    "pushes": pushes,
    "step": steps,
    "memory": memory,
}


def main() -> None:
    """Runs the parts named, or all of them, and writes each down when it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="nano alone and once each; nothing is written")
    parser.add_argument("--only", metavar="TEXT", help="cases whose name holds this; nothing is written")
    parser.add_argument("--aa", action="store_true", help="stock on both sides; nothing is written")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--flags", help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ |= environment(str(options.threads))
    if options.case:
        print(json.dumps(peak(options)))
        return
    import torch

    torch.set_num_threads(options.threads)
    is_rehearsal = options.quick or options.only or options.aa
    for part in options.parts or PARTS:
        config = {"part": part, "threads": options.threads, "beta": BETA}
        record = facts(config)
        # Of numbers that are not kept, an earlier attempt's are no use either.
        key = {name: record[name] for name in ("commit", "config", "hardware")}
        with tempfile.TemporaryDirectory(prefix="step-") as folder:
            # Uncommitted changes have no name by which their rows would be known again.
            is_passing = is_rehearsal or record["is_dirty"] is not False
            rows = Rows((Path(folder) if is_passing else UNFINISHED) / f"step-{part}.jsonl", key)
            PARTS[part](options, rows)
            if not is_rehearsal:
                write_part(FILE, part, {**record, "results": rows.rows})
                rows.finish()
                print(FILE.relative_to(ROOT))


def _sides(options: argparse.Namespace) -> dict[str, str]:
    """Whose trainer stands on each side."""
    return {"stock": "stock", "ours": "stock" if options.aa else "ours"}


def _chosen(cases: Sequence[Case], options: argparse.Namespace) -> list[Case]:
    return [case for case in cases if not options.only or options.only in case.name]


def _models(folder: Path) -> dict[str, Path]:
    """Both models by name, the random one written where it is not there yet."""
    path = folder / "28M"
    return {"nano": NANO, "28M": path if path.exists() else write_28m(path)}


@contextmanager
def _bench(options: argparse.Namespace) -> Generator[Bench]:
    from benchmarks.updates import Bench

    with tempfile.TemporaryDirectory(prefix="step-") as folder, Bench(_models(Path(folder))) as bench:
        yield bench


def _shown(rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    for row in rows:
        print(
            "{case:52} {metric:34} stock {stock:>10}  ours {ours:>10}  ratio {ratio}  {unit}".format(**row), flush=True
        )
    return rows


def _say_minutes(seconds: float) -> None:
    print(f"about {seconds / 60:.0f} minutes on a quiet core that multiplies 50 GFLOP a second", flush=True)


if __name__ == "__main__":
    main()
