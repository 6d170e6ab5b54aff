"""What we save, vLLM loads by itself, without this package, and comes to the same tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.architectures.conftest import example, load_adapted, load_narrow, narrow  # noqa: F401 (fixtures)
from tests.engines.vllm_reference import by_transformers
from visual_r1.models import save_policy
from visual_r1.rollout.engine import Sampling

GREEDY = Sampling(max_completion_length=8, temperature=0.0)

VLLM = """
import json, sys
sys.modules["visual_r1"] = None
argument = json.loads(sys.argv[1])
from PIL import Image
from vllm import LLM, SamplingParams
llm = LLM(
    argument["folder"], dtype="float32", enforce_eager=True, max_model_len=1024, max_num_seqs=2, seed=0,
    limit_mm_per_prompt={"image": 1, "video": 0}, kv_cache_memory_bytes=64 * 2**20, disable_log_stats=True,
)
sampling = SamplingParams(
    temperature=0, max_tokens=argument["tokens"], logprobs=0, ignore_eos=True,
    logit_bias={token: -100.0 for token in argument["banned"]},
)
prompt = {"prompt": argument["prompt"], "multi_modal_data": {"image": Image.open(argument["image"])}}
[output] = llm.generate([prompt], sampling, use_tqdm=False)
logps = [step[token].logprob for step, token in zip(output.outputs[0].logprobs, output.outputs[0].token_ids)]
result = {"prompt_ids": output.prompt_token_ids, "token_ids": list(output.outputs[0].token_ids), "logps": logps}
open(argument["out"], "w").write(json.dumps(result))
"""


@pytest.mark.parametrize("name", ["qwen2_vl_2b", "qwen2_5_vl_3b_instruct", "qwen3_vl_2b_instruct"])
def test_vllm_loads_it(load_adapted, example, tmp_path, name):  # noqa: F811
    policy = load_adapted(name)
    question = policy.fitted(example((300, 200)))
    question.images[0].save(tmp_path / "image.png")
    prompt = policy.processor.apply_chat_template(
        policy.style.messages(question), add_generation_prompt=True, tokenize=False
    )
    [[expected]] = by_transformers(policy, GREEDY, examples=[question])
    save_policy(policy, tmp_path / "model", num_steps=3)
    argument = {
        "folder": str(tmp_path / "model"),
        "image": str(tmp_path / "image.png"),
        "prompt": prompt,
        "out": str(tmp_path / "out.json"),
        "tokens": len(expected.token_ids),
        "banned": list(policy.image_token_ids),
    }
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = [sys.executable, "-c", VLLM, json.dumps(argument)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["prompt_ids"] == list(expected.prompt_ids)  # it expands and resizes by itself
    assert result["token_ids"] == list(expected.token_ids)
    assert result["logps"] == pytest.approx(expected.logps, abs=1e-3)
