"""Training on completions that are given: runs in one and in several processes can be compared number by number.

As a program it trains one experiment after another; under ``torchrun`` all of them in several processes:

    python -m torch.distributed.run --standalone --nproc_per_node=2 -m tests.replaying experiments.json

The file holds a list of experiments, each a list of overrides.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from visual_r1 import distributed
from visual_r1.config import compose_config
from visual_r1.experiment import prepare, train
from visual_r1.methods.chain import last_kept_step
from visual_r1.models import ModelSource, Policy
from visual_r1.rollout.engine import Completion, Conversation, Sampler, Sampling
from visual_r1.rollout.transformers import TransformersEngine, encode_prompts
from visual_r1.run_folder import RunFolder
from visual_r1.tracking import FanOut, JsonlTracker

SECONDS_LATE = 0.2
"""How much longer rank 1 takes for its rollouts."""


@dataclass(frozen=True)
class Replay:
    """Completions that depend on the prompt and on the place in its group alone; whatever the policy, the same.

    A single completion, as the probe asks for, is the policy's own.
    """

    batch_size: int = 1
    needs_correction: bool = False
    warn_logp_difference: float | None = None

    def check(self, source: ModelSource) -> None:
        """Nothing can be missing."""

    @contextmanager
    def serving(self, policy: Policy) -> Generator[ReplaySampler]:
        """See `RolloutEngine.serving`."""
        with TransformersEngine(batch_size=self.batch_size).serving(policy) as sampler:
            yield ReplaySampler(policy=policy, sampler=sampler)


@dataclass(frozen=True, kw_only=True)
class ReplaySampler:
    """Says the same to each prompt."""

    policy: Policy
    sampler: Sampler

    def generate(
        self,
        conversations: Sequence[Conversation],
        *,
        num_generations: int,
        sampling: Sampling,
        seed: int,
    ) -> list[list[Completion]]:
        """See `Sampler.generate`; of a group that has been split, each part has other completions."""
        if num_generations == 1:
            return self.sampler.generate(conversations, num_generations=1, sampling=sampling, seed=seed)
        time.sleep(SECONDS_LATE * distributed.rank())
        groups = []
        for conversation in conversations:
            text = json.dumps([part.get("text") for message in conversation for part in message["content"]])
            inputs = encode_prompts(self.policy, [conversation])
            whole = num_generations == 4
            group = [
                self._completion(sampling, random.Random(f"{text} {place} {'' if whole else seed}"))
                for place in range(num_generations)
            ]
            groups.append([replace(one, prompt_ids=tuple(inputs["input_ids"][0].tolist())) for one in group])
        return groups

    def _completion(self, sampling: Sampling, chance: random.Random) -> Completion:
        length = chance.randint(1, sampling.max_completion_length)
        words = self.policy.tokenizer("left right above below wait so the answer is")["input_ids"]
        ids = [chance.choice(words) for _ in range(length - 1)] + [self.policy.end_token_ids[0]]
        logps = tuple(-5 * chance.random() for _ in ids)
        return Completion(prompt_ids=(), token_ids=tuple(ids), logps=logps, is_truncated=False)


def main(experiments: Sequence[Sequence[str]]) -> None:
    """Trains each experiment as a run does, in this process or in all that were started with it.

    One that is there already is set aside as ``whole``, cut back to its first checkpoint, and trained on from there.
    The next time it loses its model alone, as if it had been killed between the last checkpoint and the saving.
    """
    for overrides in experiments:
        prepared = distributed.together(lambda overrides=overrides: prepare(compose_config(overrides)))
        experiment = replace(prepared, engine=Replay())
        with ExitStack() as stack:
            trackers = []
            if distributed.is_main():
                if experiment.folder.is_begun:
                    _cut(experiment.folder)
                stack.enter_context(experiment.folder.open(experiment.config, {}))
                trackers = [JsonlTracker(experiment.folder)]
            distributed.meet()
            train(experiment, stack.enter_context(FanOut(trackers)))
        distributed.meet()


def _cut(folder: RunFolder) -> None:
    whole = folder.path.parent.with_name("whole") / folder.path.name
    if whole.exists():
        shutil.rmtree(folder.model)
        return
    shutil.copytree(folder.path, whole)
    shutil.rmtree(folder.model)
    _, *later = sorted(folder.checkpoints.iterdir())
    for checkpoint in later:
        shutil.rmtree(checkpoint)
    folder.truncate_metrics(last_kept_step(folder))


def _allow_fsdp_without_a_gpu() -> None:
    """Has accelerate 1.15, which takes FSDP for a matter of GPUs and NPUs alone, use it on a CPU, too.

    torch's FSDP runs there, so that all of it but the device is real.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    begin = PartialState.__init__

    def init(self: PartialState, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_NPU

    PartialState.__init__ = init


if __name__ == "__main__":
    distributed.keep_quiet()
    if "=fsdp" in Path(sys.argv[1]).read_text():
        _allow_fsdp_without_a_gpu()
    distributed.join(deepspeed="=zero" in Path(sys.argv[1]).read_text())
    main(json.loads(Path(sys.argv[1]).read_text()))
    distributed.leave()
