"""The GPU check's stages of vLLM and DeepSpeed, rehearsed on a CPU: real engines, a narrow model."""

from __future__ import annotations

import pytest

from tests.rehearsing import make_narrow, rehearse


def test_the_rehearsal_rolls_out_by_vllm_and_steps_by_deepspeed(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    make_narrow(monkeypatch)
    code, report = rehearse(tmp_path)
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert code == 0 and report["passed"], [stage.get("traceback") for stage in report["stages"]]
    by_vllm = stages["vllm_colocate"]
    assert by_vllm["tokens"] > 0 and by_vllm["push_seconds"] > 0
    assert by_vllm["logp_difference_after_push"] < by_vllm["logp_difference_had_it_kept_its_weights"] / 2
    for name in ("zero2_step", "zero3_step"):
        assert stages[name]["moved_tensors"] > 0 and stages[name]["kl"] == pytest.approx(0, abs=1e-3)
        assert stages[name]["parity/logp_difference/max"] < 0.1
