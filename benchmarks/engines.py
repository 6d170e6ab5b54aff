"""What the engines cost on this machine: rollouts, new weights, a second process, starting.

    python -m benchmarks.engines                       all parts: about 25 minutes on two cores
    python -m benchmarks.engines rollout               tokens a second, transformers beside vLLM, 1 to 64 completions
    python -m benchmarks.engines push                  giving vLLM the policy's weights, as a share of a GRPO step
    python -m benchmarks.engines scaling               a GRPO step in one process and in two
    python -m benchmarks.engines startup               until the first token, and until two processes train
    python -m benchmarks.engines rollout --quick       a rehearsal, printed and not written down

Everything is wall-clock time, so the machine must have nothing else to do. What is compared is measured in turns and
the median is kept. ``OMP_NUM_THREADS`` is 1 unless it is said otherwise: a thread for each process.

Two models: ``nano`` (1.4 million parameters, trained: completions end by themselves) and ``33M`` (random weights of
nano's kind, 32.5 million: completions run to the limit, and the arithmetic outweighs Python).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.random_models import write_33m
from benchmarks.recording import NANO, ROOT, environment, facts, run_command, write_part

RESULTS = ROOT / "benchmarks" / "results" / "engines.json"
ENGINES = ("transformers", "vllm_colocate")
BATCHES = (1, 2, 4, 8, 16, 32, 64)
GROUP = 8
"""Completions of one prompt, where the batch holds so many."""
NUM_TOKENS = 64
REPEATS = 5
STEPS = 5
"""Optimizer steps of a GRPO run; the first is not counted."""
SMALL_STEP = (
    *("scale.prompts_per_step=8", "scale.micro_batch_size=16", f"scale.max_completion_length={NUM_TOKENS}"),
    *("scale.probe_size=1", "scale.probe_every_steps=1000", "scale.benchmark_size=4", "scale.save_every_steps=1000"),
    *("scale.num_threads=null", "tracker=none"),
)


def models(folder: Path) -> dict[str, Path]:
    """Both models' folders by name."""
    return {"nano": NANO, "33M": write_33m(folder / "33M")}


def rollout(folder: Path, *, quick: bool, turns: int) -> Iterator[dict[str, Any]]:
    """Tokens a second of each engine, in turns, at each size of batch."""
    for name, path in models(folder).items():
        for batch, seconds_and_tokens in child("rollout", path, quick=quick).items():
            rates = {
                engine: [tokens / seconds for seconds, tokens in measured]
                for engine, measured in seconds_and_tokens.items()
            }
            num_tokens = sum(tokens for measured in seconds_and_tokens.values() for _, tokens in measured)
            num_completions = int(batch) * sum(len(measured) for measured in seconds_and_tokens.values())
            one = row(f"{name}, batch {batch}", "rollout", rates, unit="tokens a second")
            yield {**one, "mean_length": round(num_tokens / num_completions, 1)}


def push(folder: Path, *, quick: bool, turns: int) -> Iterator[dict[str, Any]]:
    """Seconds that vLLM takes for new weights, beside those of a whole GRPO step."""
    steps = 3 if quick else STEPS
    for name, path in models(folder).items():
        pushes = child("push", path, quick=quick)
        run = train(folder, path, f"scale.max_steps={steps}", "rollout=vllm_colocate")
        seconds = [sum(one[key] for key in one if key.startswith("time/")) for one in run]
        step = statistics.median(seconds)
        median = statistics.median(pushes)
        yield {
            **{"case": name, "metric": "weights pushed to vLLM", "push": round(median, 4), "step": round(step, 3)},
            **{"share": round(median / step, 4), "unit": "seconds", "runs": len(pushes)},
        }


def scaling(folder: Path, *, quick: bool, turns: int) -> Iterator[dict[str, Any]]:
    """Completion tokens a second of whole GRPO steps."""
    ways = {
        "one process": ("1", "distributed=single"),
        "one process, two threads": ("2", "distributed=single"),
        "ddp, two processes": ("1", "distributed=ddp", "distributed.num_processes=2"),
        "zero2, two processes": ("1", "distributed=zero2", "distributed.num_processes=2"),
    }
    steps = 2 if quick else STEPS
    for name, path in models(folder).items():
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(turns):
            for way, (threads, *overrides) in ways.items():
                run = train(folder, path, f"scale.max_steps={steps}", *overrides, threads=threads)
                rates[way] += [step_rate(one) for one in run]
        yield row(name, "GRPO step", rates, unit="completion tokens a second", against="one process")


def startup(folder: Path, *, quick: bool, turns: int) -> Iterator[dict[str, Any]]:
    """Seconds from an empty process to what is named, nano each time."""
    ways: dict[str, Callable[[], float]] = {
        **{
            f"{engine}, first completion": lambda engine=engine: child("startup", NANO, engine=engine)
            for engine in ENGINES
        },
        "vllm_server, ready": server_ready,
        "a run of one step, one process": lambda: whole_run(folder, "distributed=single"),
        "a run of one step, ddp, two processes": lambda: whole_run(folder, "distributed=ddp"),
        "a run of one step, zero2, two processes": lambda: whole_run(
            folder, "distributed=zero2", "distributed.num_processes=2"
        ),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(turns):
        for way, measure in ways.items():
            seconds[way].append(measure())
    for way, values in seconds.items():
        yield {
            **{"case": way, "metric": "start-up", "median": round(statistics.median(values), 1)},
            **{"all": [round(value, 1) for value in values], "unit": "seconds", "runs": len(values)},
        }


PARTS = {"rollout": rollout, "push": push, "scaling": scaling, "startup": startup}


def row(
    case: str, metric: str, values: Mapping[str, Sequence[float]], *, unit: str, against: str = ENGINES[0]
) -> dict[str, Any]:
    """Medians of what was measured in turns, the spread, and the ratio to one of them."""
    medians = {name: statistics.median(each) for name, each in values.items()}
    return {
        "case": case,
        "metric": metric,
        **{name: round(value, 1) for name, value in medians.items()},
        "ratio": {name: round(value / medians[against], 2) for name, value in medians.items() if name != against},
        "spread": {name: [round(min(each), 1), round(max(each), 1)] for name, each in values.items()},
        "unit": unit,
        "runs": min(len(each) for each in values.values()),
    }


def train(folder: Path, model: Path, *overrides: str, threads: str = "1") -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl`` of a short GRPO run, without its first step's."""
    runs = Path(tempfile.mkdtemp(dir=folder))
    chosen = ("model=checkpoint", f"model.path={model}", "model.style=base", f"runs_dir={runs}", "name=run")
    run_command([sys.executable, "run.py", "method=grpo", *chosen, *SMALL_STEP, *overrides], threads=threads)
    lines = (runs / "run" / "seed0" / "metrics.jsonl").read_text().splitlines()
    shutil.rmtree(runs)
    return [one for one in map(json.loads, lines) if one["step"] > 1 and "time/update" in one]


def step_rate(one: Mapping[str, Any]) -> float:
    """Completion tokens a second of a step, over all processes."""
    num_completions = 8 * GROUP  # SMALL_STEP's prompts
    seconds = sum(one[key] for key in ("time/rollout", "time/score_and_logps", "time/update"))
    return num_completions * one["completions/mean_length"] / seconds


def whole_run(folder: Path, *overrides: str) -> float:
    """Seconds of a whole run of one step, its evaluation of four items included."""
    started = time.perf_counter()
    train(folder, NANO, "scale.max_steps=1", *overrides)
    return time.perf_counter() - started


def server_ready() -> float:
    """Seconds until ``visual-r1 rollout-server`` answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    words = ("rollout=vllm_server", f"rollout.engine.url={url}", f"scale.rollout_batch_size={max(BATCHES)}")
    started = time.perf_counter()
    command = [sys.executable, "-m", "visual_r1.cli", "rollout-server", *words]
    with tempfile.TemporaryFile() as said:
        server = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=said, stderr=said, start_new_session=True
        )
        try:
            while not _answers(url):
                if server.poll() is not None:
                    said.seek(0)
                    raise RuntimeError(f"{' '.join(command)}: {said.read().decode()[-2000:]}")
                time.sleep(0.1)
            return time.perf_counter() - started
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def child(part: str, model: Path, *, engine: str = "", quick: bool = False) -> Any:
    """What a process of its own has measured."""
    started = time.time()
    command = [sys.executable, "-m", "benchmarks.engines", part, "--model", str(model), "--engine", engine]
    answer = json.loads(run_command([*command, *(["--quick"] if quick else [])]).splitlines()[-1])
    return answer - started if part == "startup" else answer


def measure(part: str, model: Path, *, engine: str, quick: bool) -> Any:
    """One part's measurements, in this process."""
    from visual_r1.config import build, compose_config
    from visual_r1.datasets.spatial import Spatial
    from visual_r1.models import ModelSource, load_policy
    from visual_r1.rollout.engine import Sampling

    policy = load_policy(ModelSource(name="model", path=str(model), style="base"))
    sampling = Sampling(max_completion_length=NUM_TOKENS)
    examples = Spatial(split="train", size=1000)

    def engine_of(name: str) -> Any:
        largest = f"scale.rollout_batch_size={max(BATCHES)}"
        return build(compose_config([f"rollout={name}", largest]).rollout.engine)

    def conversations(number: int, batch: int) -> list[Any]:
        first = number * max(BATCHES)
        return [
            policy.style.messages(policy.fitted(examples[first + index])) for index in range(max(1, batch // GROUP))
        ]

    if part == "startup":
        with engine_of(engine).serving(policy) as sampler:
            sampler.generate(conversations(0, 1), num_generations=1, sampling=Sampling(max_completion_length=1), seed=0)
        return time.time()
    if part == "push":
        one, pushes = engine_of("vllm_colocate"), []
        for _ in range(3 if quick else 2 + 4 * REPEATS):
            started = time.perf_counter()
            with one.serving(policy):
                pushes.append(time.perf_counter() - started)
        return pushes[2:]  # the first starts the engine
    engines = {name: engine_of(name) for name in ENGINES}
    measured: dict[int, dict[str, list[tuple[float, int]]]] = {}
    for batch in BATCHES[:2] if quick else BATCHES:
        measured[batch] = {name: [] for name in engines}
        for number in range(-1, 1 if quick else REPEATS):  # the first is not kept
            for name, one in engines.items():
                asked = conversations(number + 1, batch)
                with one.serving(policy) as sampler:
                    started = time.perf_counter()
                    groups = sampler.generate(
                        asked, num_generations=min(batch, GROUP), sampling=sampling, seed=number + 1
                    )
                    seconds = time.perf_counter() - started
                num_tokens = sum(len(completion.token_ids) for group in groups for completion in group)
                if number >= 0:
                    measured[batch][name].append((seconds, num_tokens))
    return measured


def main() -> None:
    """Runs the parts named, or all of them, and writes each down when it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="few repeats of the small cases; nothing is written")
    parser.add_argument("--turns", type=int, default=3, help="of scaling and startup (default: %(default)s)")
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model:
        print(json.dumps(measure(options.parts[0], options.model, engine=options.engine, quick=options.quick)))
        return
    for part in options.parts or PARTS:
        with tempfile.TemporaryDirectory(prefix="engines-") as folder:
            rows = []
            for one in PARTS[part](Path(folder), quick=options.quick, turns=1 if options.quick else options.turns):
                print(json.dumps(one), flush=True)
                rows.append(one)
        if options.quick:
            continue
        config = {"max_completion_length": NUM_TOKENS, "group": GROUP, "small_step": SMALL_STEP, "threads": 1}
        write_part(RESULTS, part, {**facts(config), "results": rows})
        print(RESULTS.relative_to(ROOT))


if __name__ == "__main__":
    main()
