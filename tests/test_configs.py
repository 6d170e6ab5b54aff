"""Every choice of conf/ composes and can be built; what cannot is refused by name, at once and without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml
from omegaconf import OmegaConf

from visual_r1.config import (
    CONF,
    ConfigError,
    build,
    check_targets,
    compose_config,
    expand_model_path,
    resolve,
    run_name,
)

ROOT = CONF.parent
GROUPS = sorted(
    str(file.relative_to(CONF).with_suffix(""))
    for file in CONF.rglob("*.yaml")
    # How a sweep runs is no part of a run, and needs extras: tests/engines/test_sweeps_launchers.py.
    if file.name != "config.yaml" and file.parent.name not in ("launcher", "search")
)
METHODS = sorted(file.stem for file in (CONF / "method").glob("*.yaml"))


def override_of(choice):
    """How a choice is made on the command line; a reward's term and a metric join the others."""
    group, _, option = choice.rpartition("/")
    joins = {"reward/term": "reward.terms.added", "metric": "metrics.added"}
    return f"+{group}@{joins[group]}={option}" if group in joins else f"{group}={option}"


def complete(choice):
    """The settings that a choice leaves to the user."""
    return {
        "model/checkpoint": ["model.path=somewhere"],
        "reward/term/trl_function": ["reward.terms.added.function.path=json.dumps"],
    }.get(choice, [])


def test_the_choices_are_found():
    assert {"scale/laptop", "method/grpo", "reward/accuracy_format", "reward/term/hard", "keywords/default"} <= set(
        GROUPS
    )
    assert len(GROUPS) > 30 and len(METHODS) >= 9


@pytest.mark.parametrize("choice", GROUPS)
def test_every_choice_composes_and_its_classes_take_its_arguments(choice):
    config = resolve(compose_config([override_of(choice), *complete(choice)]))
    group, _, option = choice.rpartition("/")
    if group not in ("reward/term", "metric", "experiment"):
        assert config[group]["name"] == option  # the run's name and its record say what was chosen


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_its_own_arguments(method):
    build(compose_config([f"method={method}"]).method).check()


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("grpo", {"loss_type": "grpo", "scale_rewards": "group", "beta": 0.04, "num_iterations": 1}),
        ("dr_grpo", {"loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.0}),
        ("dapo", {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28, "mask_truncated_completions": True}),
        ("gspo", {"importance_sampling_level": "sequence", "num_iterations": 2, "beta": 0.0}),
        ("gpg", {"scale_rewards": "none", "beta": 0.0}),
        ("rloo", {"scale_rewards": "none", "beta": 0.0}),
    ],
)
def test_a_recipe_is_what_its_paper_says(method, values):
    trl = compose_config([f"method={method}"]).method.trl
    assert {name: trl[name] for name in values} == values


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("method.trl.betta=0.1", "betta"),
        ("scale.max_stepss=3", "max_stepss"),
        ("zzz=1", "zzz"),
        ("method=gpro", "gpro"),
        ("model=bsae", "bsae"),
        ("keywords=defualt", "defualt"),
        ("reward=accuracy_fromat", "accuracy_fromat"),
        ("+reward/term@reward.terms.x=hrad", "hrad"),
        ("scale.max_steps=many", "many"),
        ("scale.bf16=maybe", "maybe"),
        ("seed=zero", "zero"),
        ("freeze.parts=vision", "vision"),
        ("reward.terms.accuracy.wait=2", "wait"),
        ("reward.terms.accuracy.weight=heavy", "heavy"),
    ],
)
def test_a_mistyped_key_option_or_value_is_named(override, named):
    with pytest.raises(ConfigError) as refused:
        resolve(compose_config([override]))
    assert named in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["rollout.engine.batch=3"], "batch"),
        (["+rollout.engine.batchsize=3"], "batchsize"),
        (["+dataset.train.sise=3"], "sise"),
        (["model=checkpoint"], "model.path"),
        (["rollout.engine._target_=os.system"], "os.system: a config may only name classes of visual_r1"),
        (["rollout.engine._target_=visual_r1.rollout.Nothing"], "visual_r1.rollout.Nothing: no such class"),
        (["dataset.train._target_=visual_r1x.Spatial"], "may only name classes of visual_r1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_built_is_named(overrides, named):
    with pytest.raises(ConfigError) as refused:
        resolve(compose_config(overrides))
    assert named in str(refused.value) and "\n" not in str(refused.value)


_FOREIGN = "may only name classes of visual_r1"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        *((target, _FOREIGN) for target in ("os.system", "builtins.eval", "subprocess.run", "torch.load")),
        ("visual_r1.config", "no such class"),
    ],
)
def test_nothing_but_our_classes_is_run(target, reason):
    node = OmegaConf.create({"part": {"_target_": target, "_args_": ["exit 3"]}})
    with pytest.raises(ConfigError, match=reason):
        build(node)


def test_a_nested_class_is_checked_too():
    node = OmegaConf.create({"list": [{"_target_": "os.getcwd"}]})
    with pytest.raises(ConfigError, match=r"os\.getcwd"):
        check_targets(node)


def test_an_argument_out_of_range_keeps_its_own_message():
    with pytest.raises(ConfigError, match=r"rollout\.engine\.batch_size=0: expected at least 1"):
        build(compose_config(["rollout.engine.batch_size=0"]).rollout.engine)


class TestModelPath:
    def test_a_path_is_spelled_out(self, tmp_path):
        assert expand_model_path([f"model={tmp_path}", "seed=1"]) == [
            "model=checkpoint",
            f"model.path={tmp_path}",
            "seed=1",
        ]
        config = compose_config(["model=Qwen/Qwen2-VL-2B", "model.style=base"])
        assert (config.model.name, config.model.path) == ("checkpoint", "Qwen/Qwen2-VL-2B")

    @pytest.mark.parametrize(
        "argument", ["model=base", "model=base,instruct", "model=checkpoint", "model.path=x/y", "-m"]
    )
    def test_what_is_no_path_stays(self, argument):
        assert expand_model_path([argument]) == [argument]

    @pytest.mark.parametrize(
        ("argument", "message"),
        [("model=bsae", "neither one of"), ("model=base,runs/x/model", "mixes names and paths")],
    )
    def test_what_is_neither_is_refused(self, argument, message):
        with pytest.raises(ConfigError, match=message) as refused:
            expand_model_path([argument])
        assert argument in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "base-grpo"),
        (["seed=3", "scale.max_steps=2", "tracker=none"], "base-grpo"),
        (["model=instruct", "method=sft"], "instruct-sft"),
        (["reward=hard", "freeze=vision", "adapter=lora"], "base-grpo-hard-vision-lora"),
        (["name=mine/here"], "mine/here"),
        (["model=runs/base-grpo/seed0/model", "method=eval"], "base-grpo-seed0-model-eval"),
        (["model=Qwen/Qwen2-VL-2B", "method=eval"], "Qwen-Qwen2-VL-2B-eval"),
        (["model=/nano", "method=eval"], "nano-eval"),
        (["model=/tmp/nano", "method=eval"], "tmp-nano-eval"),
        (["model=../nano", "method=eval"], "nano-eval"),
    ],
    ids=",".join,
)
def test_a_run_is_named_after_its_choices(overrides, name):
    assert run_name(compose_config(overrides)) == name


@pytest.mark.parametrize("name", ["../out", "/abs", "a/../../b", "' '", "."])
def test_a_name_cannot_leave_the_runs_folder(name):
    with pytest.raises(ConfigError, match="name="):
        run_name(compose_config([f"name={name}"]))


def test_keyword_lists_differ():
    lists = {file.stem: yaml.safe_load(file.read_text())["phrases"] for file in (CONF / "keywords").glob("*.yaml")}
    assert len(lists) == len({tuple(phrases) for phrases in lists.values()}) >= 6


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--help", ["dapo", "length_bonus", "sft_then_grpo", "method.trl"]),
        ("--cfg=job", ["prompts_per_step", "beta: 0.04"]),
    ],
)
def test_help_and_configuration_need_no_torch(argument, expected):
    code = f"""
import runpy, sys
sys.argv = ["run.py", {argument!r}]
try:
    runpy.run_path("run.py", run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {{"torch", "transformers", "trl", "datasets", "wandb", "matplotlib", "pyarrow"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    for text in expected:
        assert text in done.stdout
