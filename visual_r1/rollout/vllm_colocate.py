"""Rollouts by a vLLM engine in the training process: one an own, on its own GPU, given new weights at each rollout."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from visual_r1 import distributed
from visual_r1.errors import first_line
from visual_r1.models import ModelSource, Policy
from visual_r1.rollout.engine import Completion, Conversation, EngineError, Sampling
from visual_r1.rollout.prompt_tokens import check_lengths, check_seen, compare_with_processor, prompt_tokens
from visual_r1.rollout.pushes import Push, Pushes
from visual_r1.rollout.seeds import prompt_seeds
from visual_r1.rollout.undisturbed import undisturbed
from visual_r1.rollout.vllm_setup import (
    GPU_SHARE,
    TOKENS_AT_ONCE,
    architecture,
    check_installed,
    check_model,
    environment,
    kv_cache_bytes,
)

if TYPE_CHECKING:
    from vllm import LLM

_ENGINE = "vLLM"
_RESUME = "the same command resumes the run"


@dataclass(kw_only=True)
class VllmColocateEngine:
    """Samples with vLLM in this process; several processes have an engine each, and none waits for another's.

    The engine starts at the first rollout, from the policy's checkpoint, and stays; a policy of the same architecture
    is only given its weights, one of another starts it anew.

    Raises:
        ValueError: a value out of its range.
    """

    batch_size: int
    """Completions sampled at once."""
    max_model_length: int
    """Tokens of prompt and completion together; at most the model's own context."""
    kv_cache_gib: float | None
    """Memory for keys and values; None: room for `batch_size` sequences of `max_model_length`."""
    bf16: bool
    """Computes in bfloat16, as the trainer does; otherwise in float32."""
    cuda_graphs: bool
    """On a GPU: faster decoding for a start that takes a minute longer. Without one it has no effect."""
    sleep: bool
    """On a GPU: gives the memory of weights, keys and values back between rollouts. Without one it has no effect."""
    push_changed_only: bool
    """Only weights that may have changed since the last rollout are given to the engine; otherwise, and where it has
    slept, all are."""
    warn_logp_difference: float | None = None
    """See `RolloutEngine.warn_logp_difference`."""
    _running: _Running | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"rollout.engine.batch_size={self.batch_size}: expected at least 1")
        if self.max_model_length < 1:
            raise ValueError(f"rollout.engine.max_model_length={self.max_model_length}: expected at least 1")
        if self.kv_cache_gib is not None and self.kv_cache_gib <= 0:
            raise ValueError(f"rollout.engine.kv_cache_gib={self.kv_cache_gib}: expected more than 0, or null")

    @property
    def needs_correction(self) -> bool:
        """Yes: its kernels round otherwise than the trainer's."""
        return True

    @property
    def takes_prefixes(self) -> bool:
        """Yes: to vLLM they are a part of the prompt."""
        return True

    def check(self, source: ModelSource) -> None:
        """See `RolloutEngine.check`."""
        check_installed()
        check_model(source)

    @contextmanager
    def serving(self, policy: Policy) -> Generator[VllmSampler]:
        """See `RolloutEngine.serving`."""
        running = self._started(policy)
        with undisturbed(), _dying():
            pushed = running.wake(policy)
        yield VllmSampler(policy=policy, running=running, pushed=pushed)
        # Not where the block has failed: a dead engine would fail again, and hide what it has died of.
        with undisturbed(), _dying():
            running.rest()

    def close(self) -> None:
        """Ends the engine and frees its memory; the next rollout starts another."""
        if self._running is None:
            return
        with undisturbed():
            client = self._running.llm.llm_engine.engine_core
            client._finalizer.detach()  # not its own shutdown: see `_llm`
            client.engine_core.model_executor.shutdown()
            client.engine_core.scheduler.shutdown()
            del client
            self._running = None
            gc.unfreeze()  # vLLM has hidden what it holds from the collector
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _started(self, policy: Policy) -> _Running:
        dtype = "bfloat16" if self.bf16 else "float32"
        kind = (architecture(policy.model.config), dtype)
        if self._running is not None and self._running.kind != kind:
            self.close()
        if self._running is None:
            try:
                with undisturbed(), _dying(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # what it leans on will change in torch
                    llm = self._llm(policy, dtype)
            except EngineError as error:
                if distributed.is_joined():  # while vLLM starts, each process waits for all others
                    distributed.end_unheard(str(error))
                raise
            sleeps = self.sleep and torch.cuda.is_available()  # and loses its weights each time
            pushes = Pushes(changed_only=self.push_changed_only and not sleeps)
            self._running = _Running(llm=llm, kind=kind, sleeps=sleeps, pushes=pushes)
        return self._running

    def _llm(self, policy: Policy, dtype: str) -> LLM:
        os.environ |= environment()
        logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # warns that a CPU has no Triton
        from vllm import LLM

        from visual_r1.rollout.vllm_worker import WORKER

        on_gpu = torch.cuda.is_available()
        length = min(self.max_model_length, policy.context_length)
        if self.kv_cache_gib is None:
            size = kv_cache_bytes(
                policy.model.config,
                num_sequences=self.batch_size,
                max_length=length,
                bytes_per_value=2 if dtype == "bfloat16" else 4,
            )
        else:
            size = int(self.kv_cache_gib * 2**30)
        is_joined = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        llm = LLM(
            policy.source.path,
            trust_remote_code=policy.source.trust_remote_code,
            dtype=dtype,
            max_model_len=length,
            max_num_seqs=self.batch_size,
            enable_chunked_prefill=False,
            max_num_batched_tokens=max(TOKENS_AT_ONCE, length),
            kv_cache_memory_bytes=size,
            gpu_memory_utilization=GPU_SHARE,
            enforce_eager=not (on_gpu and self.cuda_graphs),
            enable_sleep_mode=on_gpu and self.sleep,
            # Each process an engine of its own, on the GPU that it trains on.
            distributed_executor_backend="external_launcher" if is_joined else None,
            limit_mm_per_prompt={"video": 0},
            skip_mm_profiling=True,  # it would try images far larger than any that is fitted to the limits
            mm_processor_cache_gb=0,
            generation_config="vllm",  # a checkpoint's own would penalise repetition
            logprobs_mode="raw_logprobs",
            worker_extension_cls=WORKER,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            seed=0,
        )
        if is_joined:
            # Its own shutdown, at the latest at the process's exit, would end torch's process group: the training's.
            llm.llm_engine.engine_core._finalizer.detach()
        return llm


@dataclass(kw_only=True)
class _Running:
    """An engine that has been started."""

    llm: LLM
    kind: tuple[str, str]
    sleeps: bool
    pushes: Pushes
    is_compared: bool = False
    """Its first prompts were held to the processor's own tokens."""

    def wake(self, policy: Policy) -> Push:
        """Gives it the policy's weights."""
        is_asleep = self.sleeps and self.llm.llm_engine.is_sleeping()
        if is_asleep:
            self.llm.wake_up(tags=["weights"])
        with self.pushes.next(policy) as push:
            if not push.is_empty:
                self.llm.collective_rpc("take_weights", args=(push.weights(), push.is_whole))
        if is_asleep:  # now that nothing else needs room
            self.llm.wake_up(tags=["kv_cache"])
        return push

    def rest(self) -> None:
        """Frees what it holds between rollouts. At level 2 the weights go as well: `wake` brings all of them then."""
        if self.sleeps:
            self.llm.sleep(level=2)

    def forget(self) -> None:
        """Empties its caches: of prompts, and of images that the vision tower has encoded."""
        if not self.llm.reset_prefix_cache():
            raise EngineError(f"vLLM still holds prompts that other weights have computed; {_RESUME}")
        self.llm.llm_engine.reset_encoder_cache()


@dataclass(frozen=True, kw_only=True)
class VllmSampler:
    """A started engine with a policy's weights."""

    policy: Policy
    running: _Running
    pushed: Push
    """What the engine was given for this."""

    def generate(
        self,
        conversations: Sequence[Conversation],
        *,
        num_generations: int,
        sampling: Sampling,
        seed: int,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Completion]]:
        """See `Sampler.generate`."""
        prefixes = [()] * len(conversations) if prefixes is None else prefixes
        policy, llm = self.policy, self.running.llm
        prompts = [prompt_tokens(policy, conversation) for conversation in conversations]
        if not self.running.is_compared:
            compare_with_processor(policy, conversations, [prompt.expanded for prompt in prompts])
            self.running.is_compared = True
        limit = llm.model_config.max_model_len
        given = [(*prompt.expanded, *prefix) for prompt, prefix in zip(prompts, prefixes, strict=True)]
        check_lengths([len(tokens) for tokens in given], sampling=sampling, limit=limit)
        requests: list[Any] = [
            {"prompt_token_ids": [*prompt.collapsed, *prefix]}
            | ({"multi_modal_data": {"image": list(prompt.images)}} if prompt.images else {})
            for prompt, prefix in zip(prompts, prefixes, strict=True)
        ]
        # Greedy completions of a group are one: vLLM refuses to make more.
        num_drawn = num_generations if sampling.temperature > 0 else 1
        parameters = [
            self._parameters(sampling, num_drawn=num_drawn, seed=one) for one in prompt_seeds(seed, len(prompts))
        ]
        with undisturbed(), _dying():
            # What other weights have computed is wrong now; and where a prompt is already known, it is computed
            # otherwise, so that equal inputs would round differently.
            self.running.forget()
            outputs = llm.generate(requests, parameters, use_tqdm=False)
        groups: list[list[Completion]] = []
        for prompt, tokens, output in zip(prompts, given, outputs, strict=True):
            check_seen(output.prompt_token_ids or (), tokens, engine=_ENGINE)
            group = [self._completion(prompt.expanded, one) for one in output.outputs]
            groups.append(group * (num_generations // num_drawn))
        return groups

    def _parameters(self, sampling: Sampling, *, num_drawn: int, seed: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            n=num_drawn,
            seed=seed,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            max_tokens=sampling.max_completion_length,
            stop_token_ids=list(self.policy.end_token_ids),
            ignore_eos=True,  # the policy's end tokens, and no other
            logit_bias=dict.fromkeys(self.policy.image_token_ids, float("-inf")),
            logprobs=0,  # of the drawn token alone
            detokenize=False,
        )

    def _completion(self, prompt_ids: tuple[int, ...], output: Any) -> Completion:
        tokens = tuple(output.token_ids)
        return Completion(
            prompt_ids=prompt_ids,
            token_ids=tokens,
            logps=tuple(step[token].logprob for step, token in zip(output.logprobs, tokens, strict=True)),
            is_truncated=tokens[-1] not in self.policy.end_token_ids,
        )


@contextmanager
def _dying() -> Generator[None]:
    """Says in one line that the engine is gone or has no room."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EngineError(
            f"vLLM has run out of memory ({first_line(error)}): lower rollout.engine.kv_cache_gib, and {_RESUME}"
        ) from error
    except Exception as error:
        # Both have no common base that could be imported before vLLM is.
        if type(error).__name__ == "EngineDeadError":
            raise EngineError(f"vLLM has died ({first_line(error)}); {_RESUME}") from error
        if isinstance(error, ValueError) and "memory" in str(error):
            raise EngineError(f"vLLM finds too little memory: {first_line(error)}; {_RESUME}") from error
        raise
