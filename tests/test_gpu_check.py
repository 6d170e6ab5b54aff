"""The GPU check, rehearsed on a CPU with a narrow model: every stage runs, and a failing one stops no other."""

from __future__ import annotations

import pytest
import torch

from tests.rehearsing import SHALLOW, make_narrow, rehearse
from visual_r1 import gpu_check, gpu_stages
from visual_r1.architectures import tokenizer

STAGES = [
    *("build", "tokenize", "rollout", "grpo_step", "save", "load_again", "lora_step"),
    "shared_prefix",
    *("budget", "vllm_colocate", "zero2_step", "zero3_step"),
]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def narrow(monkeypatch):
    make_narrow(monkeypatch)


def test_the_rehearsal_passes_every_stage(tmp_path, narrow, capsys):
    code, report = rehearse(tmp_path)
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert code == 0 and report["passed"], [stage.get("traceback") for stage in report["stages"]]
    assert list(stages) == STAGES
    assert all(stage["passed"] and stage["seconds"] >= 0 for stage in report["stages"])
    # 224 x 112 pixels are 8 x 4 tokens; every second question has two images.
    assert stages["tokenize"]["image_size"] == [224, 112] and stages["tokenize"]["image_tokens"] == [32, 64]
    assert stages["rollout"]["completions"] == 4
    for name in ("grpo_step", "lora_step"):
        assert stages[name]["moved_tensors"] > 0 and stages[name]["grad_norm"] > 0
        assert stages[name]["parity/logp_difference/max"] < 0.1
    assert stages["grpo_step"]["kl"] == 0  # before the first update the policy is its own reference
    assert stages["load_again"]["first_logp_difference"] < 0.1
    shared = stages["shared_prefix"]
    assert shared["prompt_tokens"] > 30  # of the image alone
    # Of the rehearsal's 4 tokens two sevenths, then all.
    assert (shared["1_tokens/completion_tokens"], shared["4_tokens/completion_tokens"]) == (2, 2 + 4)
    for longest in (1, 4):
        numbers = {key.partition("/")[2]: value for key, value in shared.items() if key.startswith(f"{longest}_")}
        assert min(numbers["stock_seconds"], numbers["shared_seconds"]) > 0
        assert numbers["logp_difference"] <= numbers["logp_difference_max"] < 0.02
        assert numbers["logp_difference_of_a_blank_image"] > 0.05  # so that the other difference means something
    budget = stages["budget"]
    assert budget["standing_bytes"] == budget["standing_predicted_bytes"] > 10**8
    assert budget["vllm_room_tokens"] > budget["vllm_wanted_tokens"] == 4 * 2048
    for name in ("vllm_colocate", "zero2_step", "zero3_step"):
        assert "skipped" in stages[name] or stages[name]["seconds"] > 0
    assert (report["architecture"], report["text_layers"], report["vision_depth"]) == ("qwen2_vl_2b", 2, 2)
    recipe = report["record"]["config"]
    assert recipe["method"]["trl"]["learning_rate"] == 1e-6 and recipe["scale"]["name"] == "gpu"
    shown = capsys.readouterr().out
    assert all(f"\n{name}" in shown for name in STAGES) and "passed; written to" in shown


def test_a_stage_that_fails_stops_no_other(tmp_path, narrow, monkeypatch, capsys):
    def fail():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate more")

    stages = {"first": fail, "second": lambda: {"tokens": 3}}
    monkeypatch.setattr(gpu_stages.Check, "stages", property(lambda check: stages))
    code, report = rehearse(tmp_path)
    assert code == 1 and not report["passed"]
    first, second = report["stages"]
    assert not first["passed"] and first["error"] == "OutOfMemoryError: CUDA out of memory."
    assert "in fail" in first["traceback"]
    assert second["passed"] and second["tokens"] == 3 and second["peak_host_bytes_so_far"] > 10**8
    shown = capsys.readouterr().out
    assert "FAILED" in shown and "in fail" not in shown


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "run", lambda *_arguments, **_keywords: pytest.fail("it went on"))
    assert gpu_check.main(["--out", str(tmp_path / "out")]) != 0
    shown = capsys.readouterr().err
    assert "no CUDA device" in shown and "--device cpu" in shown and shown.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text-layers", "29"), "text_layers=29: expected 1 to 28"),
        (("scale.max_pixel=1",), "max_pixel"),
        (("scale.num_generations=1",), "num_generations=1: a group needs at least 2"),
        (("--workspace", "no/such/folder"), "no/such/folder"),
    ],
    ids=["depth", "unknown-key", "recipe", "workspace"],
)
def test_a_mistake_is_one_line(tmp_path, narrow, capsys, arguments, message):
    code = gpu_check.main([*SHALLOW, "--out", str(tmp_path / "out"), *arguments])
    shown = capsys.readouterr().err
    assert code == gpu_check.USER_ERROR and message in shown and shown.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_missing_vocabulary_is_one_line(tmp_path, narrow, monkeypatch, capsys):
    monkeypatch.setattr(tokenizer, "_TABLE", "not/there")
    assert gpu_check.main([*SHALLOW, "--out", str(tmp_path / "out")]) == gpu_check.USER_ERROR
    shown = capsys.readouterr().err
    assert "pip install --no-deps dashscope" in shown and shown.count("\n") == 1


def test_a_full_disk_is_named_at_once(tmp_path, narrow, monkeypatch, capsys):
    usage = gpu_check.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(gpu_check.shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    assert gpu_check.main([*SHALLOW, "--workspace", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "GB are needed and 0 free; name another --workspace" in capsys.readouterr().err


def test_equal_tokens_are_counted_until_the_first_that_differs():
    assert gpu_stages._equal((1, 2, 3), (1, 2, 4)) == 2
    assert gpu_stages._equal((1, 2, 3), (1, 2, 3)) == 3
    assert gpu_stages._equal((5,), (1, 2)) == 0
