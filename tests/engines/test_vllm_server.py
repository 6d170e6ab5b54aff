"""vLLM's own server as `visual-r1 rollout-server` starts it: exact tokens and log-probs, new weights, and its death."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch

from tests.engines.vllm_reference import (
    EXAMPLES,
    GREEDY,
    by_transformers,
    conversations,
    generate,
    largest_difference,
    plain_logps,
    tokens,
)
from visual_r1.models import Adapter, ModelSource, load_policy
from visual_r1.rollout.engine import EngineError
from visual_r1.rollout.vllm_server import VllmServerEngine

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ModelSource(name="base", path=str(ROOT / "models" / "seed0" / "nano-base"), style="base")
WARM = replace(GREEDY, temperature=1.0)
SMALL = ["rollout=vllm_server", "scale.rollout_batch_size=32", "rollout.engine.max_model_length=512"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def server(url, log):
    """A server of its own process group, since it has a process for its engine."""
    command = [sys.executable, "-m", "visual_r1.cli", "rollout-server", *SMALL, f"rollout.engine.url={url}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "a") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True, env=environment
        )
    try:
        while not answers(url):
            assert process.poll() is None, Path(log).read_text()[-3000:]
            time.sleep(0.5)
        yield process
    finally:
        kill(process)


def answers(url):
    try:
        return urlopen(f"{url}/health", timeout=5).status == 200
    except (URLError, OSError):
        return False


def kill(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    address = f"http://127.0.0.1:{free_port()}"
    with server(address, tmp_path_factory.mktemp("server") / "log.txt"):
        yield address


def new_engine(url, *, weights_dir="/dev/shm", bf16=False):
    return VllmServerEngine(
        url=url,
        weights_dir=weights_dir,
        bf16=bf16,
        timeout_seconds=300.0,
        batch_size=32,
        max_model_length=512,
        kv_cache_gib=None,
        cuda_graphs=False,
        push_changed_only=True,
    )


@pytest.fixture(scope="module")
def engine(url):
    return new_engine(url)


@pytest.fixture
def policy():
    """The shipped nano, whose weights a test may change."""
    return load_policy(SOURCE)


def test_a_server_of_ours_is_welcome(engine):
    engine.check(SOURCE)


def test_tokens_and_logps_are_those_of_transformers(engine, policy):
    ours, theirs = generate(engine, policy), by_transformers(policy)
    assert largest_difference(ours, theirs) < 1e-4
    assert [group[0].prompt_ids for group in ours] == [group[0].prompt_ids for group in theirs]
    assert [group[0].is_truncated for group in ours] == [group[0].is_truncated for group in theirs]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logps_are_the_trainers_at_the_sampling_temperature(engine, policy, temperature):
    sampling = replace(WARM, temperature=temperature, top_k=20)
    groups = generate(engine, policy, sampling, num_generations=3, seed=5)
    assert len({one.token_ids for group in groups for one in group}) > len(groups)
    for conversation, group in zip(conversations(policy), groups, strict=True):
        for completion in group:
            expected = plain_logps(policy, conversation, completion, temperature)
            torch.testing.assert_close(torch.tensor(completion.logps), expected, rtol=0, atol=1e-4)
            assert completion.is_truncated == (completion.token_ids[-1] not in policy.end_token_ids)
    assert tokens(generate(engine, policy, sampling, num_generations=3, seed=5)) == tokens(groups)
    assert tokens(generate(engine, policy, sampling, num_generations=3, seed=6)) != tokens(groups)


@pytest.mark.parametrize("part", ["visual", "embed_tokens", "layers"])
def test_new_weights_arrive_whatever_part_was_trained(engine, policy, part):
    before = generate(engine, policy)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if part in name and parameter.ndim > 1:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                parameter += 0.3 * parameter.std() * noise
    changed = sum(part in name and one.ndim > 1 for name, one in policy.model.named_parameters())
    with engine.serving(policy) as sampler:
        assert sampler.pushed.num_tensors == changed
    with engine.serving(policy) as sampler:
        assert sampler.pushed.num_tensors == 0
    expected = by_transformers(policy)
    after = generate(engine, policy)  # of images that the server has seen
    assert largest_difference(after, expected) < 1e-4
    assert largest_difference(generate(engine, policy), expected) < 1e-4  # it still remembers its prompts
    first = [(one.logps[0], other.logps[0]) for [one], [other] in zip(before, after, strict=True)]
    assert max(abs(one - other) for one, other in first) > 1e-3
    assert not list(Path("/dev/shm").glob("visual_r1_*"))


def test_an_adapter_is_served_merged(engine):
    lora = Adapter(rank=4, alpha=8, dropout=0.0, target_modules=r".*language_model.*\.(q_proj|v_proj)")
    policy = load_policy(SOURCE, adapter=lora)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator(parameter.device).manual_seed(0))
    assert largest_difference(generate(engine, policy), by_transformers(policy)) < 1e-4


def test_answers_by_another_runs_weights_are_refused(engine, url, policy):
    with engine.serving(policy) as sampler:
        with new_engine(url).serving(load_policy(SOURCE)):
            pass
        with pytest.raises(EngineError, match="has been given other weights meanwhile"):
            sampler.generate(conversations(policy), num_generations=1, sampling=GREEDY, seed=0)


def test_a_prompt_that_the_server_sees_otherwise_is_refused(engine, policy):
    # As if the run's tokenizer knew the prompt otherwise than the server's: its images are counted too long.
    policy.limits.__dict__["num_tokens"] = lambda width, height: width * height // policy.limits.factor**2 + 1
    engine._is_compared = True
    with pytest.raises(EngineError, match=r"saw a prompt of \d+ tokens, the trainer has \d+"):
        generate(engine, policy, examples=EXAMPLES[:1])


def test_what_does_not_fit_is_named_before_a_model_is_loaded(engine, url, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(SOURCE.path, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))
    nobody = f"http://127.0.0.1:{free_port()}"
    for one, source, message in (
        (engine, replace(SOURCE, path=str(folder)), r"serves visual-r1-\w+, this run needs visual-r1-\w+"),
        (new_engine(url, bf16=True), SOURCE, r"runs with dtype=float32, this run needs bfloat16"),
        (new_engine(nobody), SOURCE, r"no vLLM server answers at .*: start it with `visual-r1 rollout-server`"),
        (new_engine(url, weights_dir=str(tmp_path / "none")), SOURCE, r"weights_dir=.*none: no such folder"),
    ):
        with pytest.raises((ValueError, EngineError), match=message) as refused:
            one.check(source)
        assert "\n" not in str(refused.value)


def test_a_port_that_is_taken_is_named(url):
    command = [sys.executable, "-m", "visual_r1.cli", "rollout-server", *SMALL, f"rollout.engine.url={url}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "cannot be bound (Address already in use)" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_run_whose_server_is_killed_resumes_when_it_is_back(tmp_path):
    address = f"http://127.0.0.1:{free_port()}"
    log, steps = tmp_path / "log.txt", 6
    overrides = [
        *(*SMALL, f"rollout.engine.url={address}", f"runs_dir={tmp_path}", "tracker=none", "name=killed"),
        *(f"scale.max_steps={steps}", "scale.prompts_per_step=4", "scale.num_generations=4", "scale.num_threads=1"),
        *("scale.micro_batch_size=16", "scale.max_completion_length=64", "scale.save_every_steps=1"),
        *("scale.probe_size=4", "scale.probe_every_steps=100", "scale.benchmark_size=4"),
    ]
    command = [sys.executable, "run.py", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    metrics = tmp_path / "killed" / "seed0" / "metrics.jsonl"

    def last_step():
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        return json.loads(lines[-1])["step"] if lines else -1

    with server(address, log) as process:
        run = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        while last_step() < 2:
            assert run.poll() is None, run.communicate()[1][-3000:]
            time.sleep(0.05)
        kill(process)
        _, errors = run.communicate(timeout=600)
    reached = last_step()
    [said] = [line for line in errors.splitlines() if line.startswith("error:")]
    assert "no vLLM server answers at" in said and "the same command resumes the run" in said
    assert "Traceback" not in errors
    assert run.returncode != 0 and 2 <= reached < steps
    with server(address, log):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(steps + 1))
    assert all(row["parity/logp_difference/max"] < 1e-4 for row in rows[1:])
    assert all(row["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-3) for row in rows[1:])
    assert json.loads((tmp_path / "killed" / "seed0" / "summary.json").read_text())["steps"] == steps
