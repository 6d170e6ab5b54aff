"""The recipes of the paper's scale, number by number: a YAML that says something else than its source fails here.

Sources: [T2] Table 2 of arXiv 2503.05132; [sh], [py], [sft] run_grpo_SAT.sh, grpo_trainer.py and run_sft_SAT.sh of
turningpoint-ai/VisualThinker-R1-Zero, commit cd71978; [trl] what they leave to trl 0.14.0 and [hf] to transformers
4.49.0; [gpg] run_grpo_SAT.sh and grpo_trainer.py of AMAP-ML/GPG, commit e096da8.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from visual_r1.config import build, compose_config, resolve
from visual_r1.methods.training import micro_batches

GRPO: dict[str, tuple[Any, str]] = {
    "model.path": ("Qwen/Qwen2-VL-2B", "[sh]"),
    "model.style": ("base", "the paper's title"),
    "model.dtype": ("bfloat16", "[sh] bf16"),
    "model.max_pixels": (401408, "[sh] max_pixels"),
    "dataset.path": ("array/SAT", "the abstract: SAT"),
    "dataset.train.split": ("static", "one image a question, as its filter leaves"),
    "dataset.train.size": (None, "every row"),
    "benchmark.path": ("nyu-visionx/CV-Bench", "the abstract: CVBench"),
    "benchmark.temperature": (0.0, "evaluate_Qwen2_VL_CVBench-base.py"),
    "benchmark.max_completion_length": (1024, "evaluate_Qwen2_VL_CVBench-base.py"),
    "distributed.num_processes": (4, "[sh] zero2.yaml"),
    "distributed.deepspeed.zero_optimization.stage": (2, "[sh] zero2.yaml"),
    "adapter.lora": (None, "[sh]"),
    "freeze.parts": ([], "[sh]"),
    "scale.save_every_steps": (100, "[sh] save_steps"),
    "method.name": ("grpo", "[T2]"),
    "method.prompts_per_step": (8, "[T2] 4 GPUs x 1 x 2"),
    "method.micro_batch_size": (8, "[T2] 1 prompt a GPU x 8 completions"),
    "method.schedule_steps": (3750, "[sh] 2 epochs of 15,000 rows, 8 a step"),
    "method.resampling": (None, "[py]"),
    "method.trl.max_steps": (1500, "[T2]"),
    "method.trl.learning_rate": (1e-6, "[T2]"),
    "method.trl.lr_scheduler_type": ("linear", "[hf]"),
    "method.trl.warmup_steps": (0, "[hf]"),
    "method.trl.optim": ("adamw_torch_fused", "[hf] adamw_torch, in one kernel"),
    "method.trl.adam_beta1": (0.9, "[hf]"),
    "method.trl.adam_beta2": (0.999, "[hf]"),
    "method.trl.adam_epsilon": (1e-8, "[hf]"),
    "method.trl.weight_decay": (0.0, "[hf]"),
    "method.trl.max_grad_norm": (1.0, "[hf]"),
    "method.trl.num_generations": (8, "[T2]"),
    "method.trl.max_completion_length": (700, "[T2]"),
    "method.trl.temperature": (1.0, "[T2]"),
    "method.trl.top_k": (50, "[hf] GenerationConfig"),
    "method.trl.top_p": (1.0, "[hf] GenerationConfig"),
    "method.trl.beta": (0.04, "[T2]"),
    "method.trl.use_bias_correction_kl": (False, "[py]"),
    "method.trl.loss_type": ("grpo", "[py]"),
    "method.trl.scale_rewards": ("group", "[py]"),
    "method.trl.multi_objective_aggregation": ("sum_then_normalize", "[py]"),
    "method.trl.importance_sampling_level": ("token", "[py]"),
    "method.trl.num_iterations": (1, "[py] one update on each batch"),
    "method.trl.epsilon": (0.2, "of no effect with one update"),
    "method.trl.mask_truncated_completions": (False, "[py]"),
    "method.trl.bf16": (True, "[sh]"),
    "method.trl.gradient_checkpointing": (True, "[sh]"),
    "reward.terms.accuracy.weight": (1.0, "grpo.py: the two are added"),
    "reward.terms.format.weight": (1.0, "grpo.py: the two are added"),
}
GPG = GRPO | {
    "method.name": ("gpg", "[gpg]"),
    "method.resampling.by": ("reward", "[gpg] std of the summed rewards"),
    "method.resampling.min_informative": (0.4, "[gpg] min_inverse_alpha"),
    "method.resampling.max_attempts": (20, "[gpg] max_resample_attempts"),
    "method.trl.scale_rewards": ("none", "[gpg] adjust_gd"),
    "method.trl.beta": (0.0, "[gpg] no KL in the loss"),
}
del GPG["method.resampling"]
SFT: dict[str, tuple[Any, str]] = {
    **{key: value for key, value in GRPO.items() if not key.startswith("method.")},
    "method.name": ("sft", ""),
    "method.examples_per_step": (8, "[sft] 4 GPUs x 1 x 2"),
    "method.micro_batch_size": (1, "[sft]"),
    "method.schedule_steps": (None, "[sft] the schedule ends with the training"),
    "method.loss_on": ("completion", "done right"),
    "method.prompt": (None, "done right: as RL is asked"),
    "method.trl.max_steps": (3750, "[sft] 2 epochs of 15,000 rows, 8 a step"),
    "method.trl.learning_rate": (2e-5, "[sft]"),
    "method.trl.lr_scheduler_type": ("linear", "[hf]"),
    **{
        key: GRPO[key]
        for key in GRPO
        if key.rpartition(".")[2].startswith(("adam_", "optim", "weight_decay", "max_grad_norm", "bf16", "gradient_"))
    },
}
SFT_REFERENCE = SFT | {
    "method.name": ("sft_reference", ""),
    "method.loss_on": ("text", "sft.py"),
    "method.prompt": ("sft_reference", "sft.py"),
}
ONE_GPU = {
    "distributed.num_processes": (1, "one GPU"),
    "distributed.deepspeed": (None, "one GPU"),
    "model.dtype": ("float32", "a step of 1e-6 is below bfloat16's rounding"),
}
GPU = {key: value for key, value in GRPO.items() if not key.startswith("distributed.")} | ONE_GPU
LORA = {key: value for key, value in GPU.items() if key != "adapter.lora"} | {"adapter.lora.rank": (16, "ours")}
RECIPES = {
    ("scale=paper", "model=base", "method=grpo"): GRPO,
    ("scale=paper", "model=instruct", "method=grpo"): GRPO
    | {"model.path": ("Qwen/Qwen2-VL-2B-Instruct", "Table 4"), "model.style": ("instruct", "Table 4")},
    ("scale=paper", "model=base", "method=gpg"): GPG,
    ("scale=paper", "model=base", "method=sft"): SFT,
    ("scale=paper", "model=base", "method=sft_reference"): SFT_REFERENCE,
    ("scale=gpu", "model=base", "method=grpo"): GPU,
    ("scale=gpu", "model=base", "method=grpo", "adapter=lora"): LORA,
}


@cache
def composed(*overrides):
    return compose_config(overrides)


def value(config, key):
    for part in key.split("."):
        config = config[part]
    return config


@pytest.mark.parametrize("overrides", RECIPES, ids=" ".join)
def test_the_recipe_is_that_of_its_sources(overrides):
    config = resolve(composed(*overrides))
    found = {key: (value(config, key), source) for key, (_, source) in RECIPES[overrides].items()}
    assert found == RECIPES[overrides]


def test_the_papers_run_to_the_letter_composes():
    letter = ("model.prompt=paper", "reward=paper", "dataset=sat_reference", "benchmark.max_pixels=null")
    config = resolve(composed("scale=paper", "model=base", "method=grpo", *letter))
    train = config["dataset"]["train"]
    assert (train["split"], train["first_rows"], train["max_images"]) == ("train", 15000, 1)  # process_dataset.py
    assert (config["model"]["prompt"], config["benchmark"]["max_pixels"]) == ("paper", None)
    weights = {name: term["weight"] for name, term in config["reward"]["terms"].items()}
    assert weights == {"paper_accuracy": 1.0, "paper_format": 1.0, "accuracy": 0.0, "format": 0.0}


@pytest.mark.parametrize(("method", "accumulation"), [("grpo", 2), ("gpg", 2), ("sft", 2), ("sft_reference", 2)])
def test_four_processes_make_the_papers_step(monkeypatch, method, accumulation):
    for name, number in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(number))
    node = composed("scale=paper", "model=base", f"method={method}").method
    built = build(node)  # refuses a step that cannot be shared out
    per_step = getattr(built, "completions_per_step", None) or built.examples_per_step
    assert micro_batches(per_step, built.micro_batch_size) == accumulation  # [T2] 2, [sft] 2


def test_the_learning_rate_where_the_paper_reads_its_run():
    method = composed("scale=paper", "model=base", "method=grpo").method
    done = method.trl.max_steps / method.schedule_steps
    assert method.trl.learning_rate * (1 - done) == pytest.approx(6.0e-7)


def test_trl_gets_what_the_recipe_says(make_context):
    overrides = ("scale=paper", "model=base", "method=grpo")
    arguments = build(composed(*overrides).method).config(make_context())
    for key, (expected, _) in GRPO.items():
        if key.startswith("method.trl."):
            found = getattr(arguments, key.rpartition(".")[2])
            assert getattr(found, "value", found) == expected, key
    # On one process here: 64 completions in micro-batches of 8.
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (8, 8)
    # What would change the update and has no place in the recipe.
    neutral = {
        **{"delta": None, "epsilon_high": None, "top_entropy_quantile": 1.0, "entropy_coef": 0.0},
        **{"off_policy_mask_threshold": None, "sync_ref_model": False, "label_smoothing_factor": 0.0},
        **{"neftune_noise_alpha": None, "lr_scheduler_kwargs": None, "optim_args": None},
    }
    assert {name: getattr(arguments, name) for name in neutral} == neutral
