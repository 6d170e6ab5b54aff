"""GRPO and its relatives: trl's trainer on our prompts, our rollouts and our rewards.

The paper's equation is DeepSeekMath's (arXiv 2402.03300, eq. 3); which variant runs is a matter of trl's arguments, so
a method of this family is one YAML file.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from trl import GRPOConfig
from trl.data_utils import prepare_multimodal_messages
from trl.trainer.utils import is_async_callable

from visual_r1 import distributed
from visual_r1.examples import Example, Rollout
from visual_r1.methods.arguments import check_arguments, check_values
from visual_r1.methods.checkpoints import CheckpointingTrainer
from visual_r1.methods.importance import ImportanceTrainer
from visual_r1.methods.resampling import Resampling
from visual_r1.methods.schedule import HorizonTrainer, check_schedule
from visual_r1.methods.shared_prefix_trainer import Shortcuts, group_numbers
from visual_r1.methods.token_budget import TokenBudgetTrainer
from visual_r1.methods.training import (
    RESERVED,
    TrainingContext,
    check_batches,
    load_weights,
    micro_batches,
    on_one_gpu,
    rollout_row,
    train_from_last_checkpoint,
    trainer_arguments,
    training_rows,
    watch,
)
from visual_r1.metrics.measure import measure
from visual_r1.models import Policy
from visual_r1.rewards.trl_function import TrlFunction
from visual_r1.rewards.weighted import WeightedReward
from visual_r1.rollout.engine import Completion, Sampling, check_context, to_rollout
from visual_r1.rollout.gathering import is_split
from visual_r1.tracking import RolloutRow

if TYPE_CHECKING:
    from collections.abc import Callable

# trl finds a wrong one of these at the first loss only.
_KNOWN_VALUES = {
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "vespo", "luspo", "sapo"),
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
}


@dataclass(frozen=True, kw_only=True)
class Grpo:
    """Trains a policy on its own rollouts, each judged against the others of its group.

    Raises:
        ValueError: the groups of a step do not divide among the processes and into micro-batches, or a group is too
            small to compare.
    """

    prompts_per_step: int
    """Prompts an optimizer step sees, over all processes."""
    micro_batch_size: int
    """Completions in one forward and backward pass of one process."""
    trl: Mapping[str, Any]
    """Arguments of ``trl.GRPOConfig`` under trl's names."""
    schedule_steps: int | None = None
    """Optimizer steps over which the learning rate's schedule is laid out; None: those of the training."""
    resampling: Resampling | None = None
    """When a step samples further prompts, for groups that can teach something; None: never."""
    shared_prefix: bool = False
    """See `Shortcuts`, as for the four below; without any of them the update is trl's to the last pass."""
    encode_once: bool = False
    keep_groups: bool = False
    trim_padding: bool = False
    skip_zero_advantage: bool = False
    tokens_per_micro_batch: int | None = None
    """Tokens of one forward and backward pass at most, in which a process runs its micro-batches; None: no limit."""
    skip_old_logps: bool = False
    """See `ImportanceTrainer`."""

    def __post_init__(self) -> None:
        check_arguments(GRPOConfig, self.trl, reserved=RESERVED)
        for name in ("num_generations", "max_completion_length", "temperature", "top_k", "top_p"):
            if name not in self.trl:
                raise ValueError(f"method.trl.{name}: missing; a recipe states every value that its claim depends on")
        check_schedule(self.schedule_steps, self.trl.get("max_steps", 1))
        if self.tokens_per_micro_batch is not None and self.tokens_per_micro_batch < 1:
            raise ValueError(
                f"method.tokens_per_micro_batch={self.tokens_per_micro_batch}: expected at least 1, or null: no limit"
            )
        if self.prompts_per_step < 1:
            raise ValueError(f"method.prompts_per_step={self.prompts_per_step}: expected at least 1")
        if self.trl["temperature"] <= 0:
            raise ValueError(
                f"method.trl.temperature={self.trl['temperature']}: groups need samples that differ; above 0"
            )
        _ = self.sampling  # refuses values out of range
        if self.resampling is not None and self.trl.get("beta", 0.0):
            raise ValueError(
                f"method.resampling with method.trl.beta={self.trl['beta']}: groups that teach nothing would still be "
                "drawn to the reference policy; set method.trl.beta=0 or method.resampling=null"
            )
        group_size = self.trl["num_generations"]
        if group_size < 2:
            raise ValueError(
                f"method.trl.num_generations={group_size}: a group needs at least 2 completions to compare"
            )
        completions = f"{self.prompts_per_step} prompts x {group_size} completions"
        check_batches(
            self.completions_per_step,
            self.micro_batch_size,
            whole=f"method.trl.num_generations={group_size}: {completions}",
            fix="method.prompts_per_step",
        )

    @property
    def completions_per_step(self) -> int:
        """Completions an optimizer step learns from."""
        return self.prompts_per_step * self.trl["num_generations"]

    @property
    def shortcuts(self) -> Shortcuts:
        """What the update does not compute twice."""
        return Shortcuts(
            shared_prefix=self.shared_prefix,
            encode_once=self.encode_once,
            keep_groups=self.keep_groups,
            trim_padding=self.trim_padding or self.tokens_per_micro_batch is not None,  # which counts no padding
            skip_zero_advantage=self.skip_zero_advantage,
        )

    @property
    def sampling(self) -> Sampling:
        """How training rollouts are drawn."""
        return Sampling(
            max_completion_length=self.trl["max_completion_length"],
            temperature=self.trl["temperature"],
            top_k=self.trl["top_k"],
            top_p=self.trl["top_p"],
        )

    def check(self) -> None:
        """Refuses wrong arguments of trl before a model is loaded."""
        for name, known in _KNOWN_VALUES.items():
            if name in self.trl and self.trl[name] not in known:
                raise ValueError(f"method.trl.{name}={self.trl[name]}: unknown, expected one of {list(known)}")
        for name in self.trl:
            if name.startswith("vllm_") and not name.startswith("vllm_importance_sampling_"):
                raise ValueError(f"method.trl.{name}: trl's own vLLM is not used; the group rollout decides this")
        mode = self.trl.get("vllm_importance_sampling_mode", "sequence_mask")
        if self.trl.get("loss_type") == "vespo" and mode.startswith("sequence"):
            raise ValueError(
                f"method.trl.vllm_importance_sampling_mode={mode}: loss_type=vespo needs token_truncate or token_mask"
            )
        for name, alone in (("top_entropy_quantile", 1.0), ("use_adaptive_entropy", False)):
            if self.tokens_per_micro_batch is not None and self.trl.get(name, alone) != alone:
                raise ValueError(
                    f"method.trl.{name}={self.trl[name]}: it looks at all tokens of a micro-batch at once, which "
                    f"method.tokens_per_micro_batch={self.tokens_per_micro_batch} computes in parts; set that to null"
                )
        check_values(GRPOConfig, {**self._batch_arguments(), **self.trl})
        for name, only in (("min_p", None), ("repetition_penalty", 1.0), ("generation_kwargs", None)):
            if self.trl.get(name, only) not in (only, 0, 0.0):
                raise ValueError(
                    f"method.trl.{name}: our rollout engines do not use it; use temperature, top_k or top_p"
                )

    def train(self, policy: Policy, context: TrainingContext) -> tuple[Policy, int]:
        """Runs GRPO from the policy, or from the run's last checkpoint."""
        from visual_r1.methods.resampling_trainer import ResamplingTrainer  # which extends the trainer below

        trainer_class = RolloutGrpoTrainer if self.resampling is None else ResamplingTrainer
        trainer = trainer_class(policy=policy, context=context, method=self)
        num_steps = train_from_last_checkpoint(trainer, context)
        return trainer.current_policy(), num_steps

    def config(self, context: TrainingContext) -> GRPOConfig:
        """Trl's configuration of this run."""
        config = GRPOConfig(
            **trainer_arguments(context, save_multiple=self.trl.get("num_iterations", 1)),
            **self._batch_arguments(),
            reward_weights=[reward.weight for reward in context.rewards],
            remove_unused_columns=False,
            log_completions=False,
            **self.trl,
        )
        return on_one_gpu(config)

    def _batch_arguments(self) -> dict[str, int]:
        return {
            "per_device_train_batch_size": self.micro_batch_size,
            "gradient_accumulation_steps": micro_batches(self.completions_per_step, self.micro_batch_size),
        }


def trl_reward(reward: WeightedReward) -> Callable[..., Any]:
    """A reward as trl calls it: on a batch given as columns, one of which is our rollouts.

    A user's function, written for trl, sees trl's columns and nothing of ours.
    """
    function = reward.function

    def of_batch(*, rollout: Sequence[Rollout], example: Any, **columns: Any) -> Any:
        if isinstance(function, TrlFunction):
            return function.function(**columns)
        return [function(one) for one in rollout]

    async def awaited(**columns: Any) -> Any:
        return await of_batch(**columns)

    # trl awaits what is declared asynchronous, and nothing else.
    is_async = isinstance(function, TrlFunction) and is_async_callable(function.function)
    scores = awaited if is_async else of_batch
    scores.__name__ = reward.name  # trl logs rewards/<__name__>/mean: config name = chart name
    return scores


class RolloutGrpoTrainer(HorizonTrainer, CheckpointingTrainer, ImportanceTrainer, TokenBudgetTrainer):
    """trl's trainer with our engine's rollouts; it measures and shows what was rolled out.

    The loss, the advantages, the sampler and the importance sampling of another engine's tokens are trl's own.
    """

    def __init__(self, *, policy: Policy, context: TrainingContext, method: Grpo) -> None:
        self._policy = policy
        self._context = context
        self._shortcuts = method.shortcuts
        self._sampling = method.sampling
        self._config = method.config(context)
        self.schedule_steps = method.schedule_steps
        self.skip_old_logps = method.skip_old_logps
        self.tokens_per_micro_batch = method.tokens_per_micro_batch
        self._examples: list[Example] = []
        self._rollouts: list[Rollout] = []
        self._scores: torch.Tensor | None = None
        self._logps: torch.Tensor | None = None
        self._generations_of_step = (-1, 0)
        self._rollout_seconds = 0.0
        self._making_seconds = 0.0
        self._update_seconds = 0.0
        self._has_warned = False
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is marked experimental; trl is pinned
        super().__init__(
            model=policy.model,
            args=self._config,
            reward_funcs=[trl_reward(reward) for reward in context.rewards],
            train_dataset=training_rows(policy, context.examples, self._row),
            processing_class=policy.processor,
            rollout_func=self._roll_out,
        )
        if context.engine.needs_correction:
            self._correct_for_engine()
        watch(self, self.current_policy(), context, description="GRPO")

    def current_policy(self) -> Policy:
        """The policy around the weights that are being trained."""
        return replace(self._policy, model=self.accelerator.unwrap_model(self.model))

    def _correct_for_engine(self) -> None:
        """Has trl weigh each token by the trainer's probability over the engine's, by ``vllm_importance_sampling_*``.

        trl 1.16 does so under ``use_vllm`` alone, which would also start an engine of its own: said after it was built,
        with a rollout function in place, it means the correction, and a call for new weights before a rollout.
        """
        self.use_vllm = True
        self.vllm_generation = _AlreadyServed()
        self._last_loaded_step = -1

    def create_accelerator_and_postprocess(self) -> None:
        """Says, before trl 1.16 loads the reference policy, that it may not lie on every GPU that this process sees.

        Said in trl's configuration from the start, trl would warn that it does not heed it, as is true of the policy.
        """
        super().create_accelerator_and_postprocess()
        self.args.model_init_kwargs = {"device_map": None}

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes none: what a checkpoint is stands in the run's own record."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        model = self.model if model is None else model
        if is_split(model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # of FSDP, by the names in memory
        else:
            load_weights(model, resume_from_checkpoint)

    def _row(self, example: Example) -> dict[str, Any]:
        text = self._policy.style.text(example)
        return {
            "prompt": [{"role": "user", "content": text}],
            "images": list(example.images),
            "example": example,
            "id": example.id,
            "question": example.question,
            "choices": example.choices,
            "solution": example.solution,
            "category": example.category,
        }

    def _roll_out(self, prompts: list[Any], _trainer: Any) -> dict[str, Any]:
        """Trl's ``rollout_func``: the completions of this process's prompts, each prompt repeated for its group."""
        completions = self._completions()
        return {
            "prompt_ids": [list(completion.prompt_ids) for completion in completions],
            "completion_ids": [list(completion.token_ids) for completion in completions],
            "logprobs": [list(completion.logps) for completion in completions],
        }

    def _completions(self) -> list[Completion]:
        """This process's completions of the step's prompts."""
        return self._sample(self._examples)

    def _sample(self, examples: Sequence[Example]) -> list[Completion]:
        """A completion of each example; those of one group stand together."""
        started = time.perf_counter()
        groups = Counter(group_numbers(examples)).values()
        unique = {example.id: example for example in examples}.values()
        check_context(self._policy, unique, max_completion_length=self._sampling.max_completion_length)
        size = math.gcd(*groups)  # num_generations, or less where a group straddles two processes
        with self._context.engine.serving(self.current_policy()) as sampler:
            # Where one process's engine has died, all say so.
            completions = distributed.together(
                lambda: sampler.generate(
                    [self._policy.style.messages(example) for example in examples[::size]],
                    num_generations=size,
                    sampling=self._sampling,
                    seed=self._generation_seed(),
                )
            )
        self._rollout_seconds += time.perf_counter() - started
        return [completion for group in completions for completion in group]

    def _generation_seed(self) -> int:
        """A seed that depends on the run and the step alone, so that a resumed run draws what it would have drawn."""
        step, count = self._generations_of_step
        count = count + 1 if step == self.state.global_step else 0
        self._generations_of_step = (self.state.global_step, count)
        return mixed_seed(self.args.seed, self.state.global_step, count, self.accelerator.process_index)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch; what is not rollout, scoring or log-probs is the update."""
        started, before = time.perf_counter(), self._making_seconds
        loss = super().training_step(*args, **kwargs)
        self._update_seconds += time.perf_counter() - started - (self._making_seconds - before)
        if self._step % self.current_gradient_accumulation_steps == 0:
            self._metrics["train"]["time/update"].append(self._update_seconds)
            self._update_seconds = 0.0
        return loss

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        started, self._rollout_seconds = time.perf_counter(), 0.0
        inputs = self._chosen(inputs)
        self._examples = [row["example"] for row in inputs]
        output = super()._generate_and_score_completions(inputs)
        # trl drops every image of the batch, silently, when one row's placeholders do not match its features.
        if self._images is None and "pixel_values" not in output and any(one.images for one in self._examples):
            raise RuntimeError("images and placeholder tokens of this batch do not match; training would be blind")
        seconds = time.perf_counter() - started
        self._making_seconds += seconds
        self._metrics["train"]["time/rollout"].append(self._rollout_seconds)
        # What is not rollout is scoring and, where the method needs them, the old and the reference policy's log-probs.
        self._metrics["train"]["time/score_and_logps"].append(seconds - self._rollout_seconds)
        step = self.state.global_step + 1  # of the update that learns from these rollouts: where trl puts their numbers
        if step == 1 or step % self._context.rollouts_every_steps == 0:
            advantages = gather_object(output["advantages"].tolist())
            self._show_rollouts(advantages, step=self._context.first_step + step)
        return output

    def _chosen(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows that this process learns from in a step: those that it is given."""
        return inputs

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: Any, completions: Any, completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        self._rollouts, self._scores = self._judged(inputs, prompts, completions, completion_ids_list)
        for name, value in measure(self._context.metrics, self._rollouts).items():
            self._log_metric(name, value)
        return self._scores

    def _judged(
        self, inputs: list[dict[str, Any]], prompts: Any, completions: Any, completion_ids_list: list[list[int]]
    ) -> tuple[list[Rollout], torch.Tensor]:
        """The rollouts of all processes, in the order of the batch, and their scores [B, rewards], not yet weighted."""
        if "images" not in inputs[0]:  # kept from trl, not from a user's function
            images = [list(row["example"].images) for row in inputs]
            inputs = [{**row, "images": own} for row, own in zip(inputs, images, strict=True)]
            if any(images):
                prompts = [
                    prepare_multimodal_messages(one, images=own) for one, own in zip(prompts, images, strict=True)
                ]
        policy, ends = self._policy, set(self._policy.end_token_ids)
        rollouts = [
            to_rollout(policy, row["example"], ids, is_truncated=ids[-1] not in ends)
            for row, ids in zip(inputs, completion_ids_list, strict=True)
        ]
        inputs = [{**row, "rollout": rollout} for row, rollout in zip(inputs, rollouts, strict=True)]
        scores = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        # Those of all processes: a mean over processes of a rate is not the rate.
        return gather_object(rollouts), scores

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._logps = result[0].detach()
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the numbers of the step; times are means over the processes, so that they still add up to the step's."""
        times = {name: values for name, values in self._metrics["train"].items() if name.startswith("time/")}
        for name, values in times.items():
            every = gather_object([values])
            self._metrics["train"][name] = [fmean(one) for one in zip(*every, strict=True)]
        super().log(logs, start_time)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss of a micro-batch; measures how far engine and trainer are apart."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        # Before the first update on these rollouts, engine and trainer hold the same weights and must agree.
        is_first_pass = self._step % ((self._config.steps_per_generation or 1) * self.num_iterations) < (
            self.args.gradient_accumulation_steps
        )
        if is_first_pass and self._logps is not None:
            mask = inputs["completion_mask"].bool()
            local = (self._logps - inputs["sampling_per_token_logps"]).abs()[mask]
            difference = torch.cat(gather_object([local.cpu()]))
            if difference.numel():
                self._metrics["train"]["parity/logp_difference/mean"].append(difference.mean().item())
                self._metrics["train"]["parity/logp_difference/max"].append(difference.max().item())
                self._warn_of(difference.mean().item())
        return loss

    def _warn_of(self, difference: float) -> None:
        """Says once that engine and trainer are further apart than rounding explains."""
        threshold = self._context.engine.warn_logp_difference
        if self._has_warned or threshold is None or difference <= threshold or not self.accelerator.is_main_process:
            return
        self._has_warned = True
        tqdm.write(
            f"warning: step {self.state.global_step + 1}: log-probs of rollout and training differ by {difference:.3g} "
            f"a token (rollout.engine.warn_logp_difference={threshold}); likely causes: the engine computes in another "
            "precision than the trainer, merged adapters are rounded to bfloat16, or the engine sees other images or "
            "weights. Watch parity/logp_difference and sampling/importance_sampling_ratio",
            file=sys.stderr,
        )

    def _show_rollouts(self, advantages: list[float], *, step: int) -> None:
        if not self.accelerator.is_main_process or self._scores is None:
            return
        names = [reward.name for reward in self._context.rewards]
        scores = self._scores.tolist()
        groups = group_numbers([rollout.example for rollout in self._rollouts])
        rows: list[RolloutRow] = [
            {
                **rollout_row(rollout, self._context.keyword_hits),
                "scores": dict(zip(names, values, strict=True)),
                "advantage": advantage,
                "group": group,
            }
            for rollout, values, advantage, group in zip(self._rollouts, scores, advantages, groups, strict=True)
        ]
        self._context.tracker.log_rollouts(rows, step=step, name="train")


class _AlreadyServed:
    """Stands where trl keeps its own vLLM; `RolloutEngine.serving` has brought the weights."""

    def sync_weights(self) -> None:
        """Nothing is left to do."""


def mixed_seed(*parts: int) -> int:
    """One seed out of several numbers."""
    seed = 0
    for part in parts:
        seed = (seed * 1_000_003 + part + 1) % 2**62
    return seed
