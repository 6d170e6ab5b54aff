"""Micro-batches in passes of so many tokens at most: memory is bounded by tokens, not by the longest completion.

A pass is the forward and the backward of some of a micro-batch's completions. Only their log-probs and entropies bring
a gradient into trl's loss, and no two completions meet there but in a sum, whose divisor they do not change. So trl
computes its loss of the whole micro-batch after each pass, with constants in place of what other passes compute: what
flows back is exactly the pass's part of the gradient, whichever loss it is. In the last pass these constants are the
values that the other passes have found, and the loss and the curves are those of a single pass.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

from visual_r1.methods.shared_prefix_trainer import SharedPrefixTrainer, without_advantage
from visual_r1.rollout.gathering import is_split

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The completions of a micro-batch, by what each of them and its prompt bring into a pass."""

    prompt_of: Sequence[int]
    """The prompt of each row: equal numbers for equal ones."""
    prompt_tokens: Sequence[int]
    """At least 1 for each row; with the placeholders of images."""
    completion_tokens: Sequence[int]
    is_shared: bool
    """A pass holds each prompt once, its last token and nothing else of it again for each completion; otherwise each
    completion has its prompt before it, and all are padded to the longest."""

    def num_tokens(self, rows: Sequence[int]) -> int:
        """The tokens that these rows, one at least, send through the model."""
        if self.is_shared:
            prompts = {self.prompt_of[row]: self.prompt_tokens[row] - 1 for row in rows}
            return sum(prompts.values()) + sum(1 + self.completion_tokens[row] for row in rows)
        longest_completion = max(self.completion_tokens[row] for row in rows)
        return len(rows) * (max(self.prompt_tokens[row] for row in rows) + max(1, longest_completion))

    def passes(self, rows: Sequence[int], *, budget: int) -> list[list[int]]:
        """Which of these rows go through the model together, each once.

        A prompt's rows stay together where a pass can hold them all. No two passes that follow each other fit into one.

        Args:
            rows: in which order.
            budget: tokens of a pass at most; a row that alone has more is a pass of its own.
        """
        groups: dict[int, list[int]] = {}
        for row in rows:
            groups.setdefault(self.prompt_of[row], []).append(row)
        passes: list[list[int]] = []
        for group in groups.values():
            for part in [group] if self.num_tokens(group) <= budget else [[row] for row in group]:
                if passes and self.num_tokens(passes[-1] + part) <= budget:
                    passes[-1] += part
                else:
                    passes.append(list(part))
        return passes


class TokenBudgetTrainer(SharedPrefixTrainer):
    """A trainer that runs a micro-batch in passes of at most `tokens_per_micro_batch` tokens; None: in one pass.

    Raises:
        ValueError: a mixture of experts, whose balance is a matter of a whole micro-batch.
    """

    tokens_per_micro_batch: int | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._pass: torch.Tensor | None = None
        self._idle: list[torch.Tensor] = []
        self._known: list[torch.Tensor] = []
        self._has_warned_of_length = False
        super().__init__(*args, **kwargs)
        if self.tokens_per_micro_batch is not None and self.aux_loss_enabled:
            raise ValueError(
                f"method.tokens_per_micro_batch={self.tokens_per_micro_batch}: the experts of this model are balanced "
                "over whole micro-batches; set it to null, or method.trl.router_aux_loss_coef=0"
            )

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss of the micro-batch, with the gradient of its last pass; the others have gone backward."""
        if self.tokens_per_micro_batch is None or not torch.is_grad_enabled():
            return super().compute_loss(model, inputs, *args, **kwargs)
        masks = inputs["prompt_mask"], inputs["completion_mask"]
        rows = self._lengths(inputs["prompt_ids"], *masks, inputs["prompt_of"])
        every = range(len(rows.prompt_of))
        idle = set(without_advantage(inputs["advantages"], inputs["prompt_of"]).nonzero()[:, 0].tolist())
        learning = [row for row in every if row not in idle or not self._may_skip] or [0]  # for backward to go through
        passes, missing = self._passes(rows, learning, agreed=True)
        self._idle, _ = self._passes(rows, [row for row in every if row not in learning])
        try:
            for number, self._pass in enumerate(passes[:-1]):
                with self._apart(model):
                    loss = super().compute_loss(model, inputs, *args, **kwargs)
                    self._backward(loss * float(number >= missing))
            self._pass = passes[-1]
            return super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            self._pass, self._idle, self._known = None, [], []

    def _passes(self, rows: Rows, chosen: Sequence[int], *, agreed: bool = False) -> tuple[list[torch.Tensor], int]:
        """The rows of each pass, and how many of the passes are there for the other processes alone, the first ones.

        Args:
            rows: of the micro-batch.
            chosen: those that are asked for.
            agreed: every process runs as many passes, as it must where they exchange something in each.
        """
        budget = self.tokens_per_micro_batch or 0
        passes = rows.passes(chosen, budget=budget)
        longest = max([rows.num_tokens(one) for one in passes], default=0)
        if longest > budget and not self._has_warned_of_length:
            self._has_warned_of_length = True
            _logger.warning(
                "method.tokens_per_micro_batch=%d: a prompt with one completion has %d tokens, a pass of its own",
                *(budget, longest),
            )
        missing = max(gather_object([len(passes)])) - len(passes) if agreed else 0
        passes = [list(chosen[:1])] * missing + passes
        return [torch.tensor(one, device=self.accelerator.device) for one in passes], missing

    @contextmanager
    def _apart(self, model: Any) -> Generator[None]:
        """Of what is computed here the gradient remains: no step follows, and the curves of a part are not kept."""
        metrics, is_last_micro_batch = self._metrics, self.accelerator.sync_gradients
        self._metrics = {mode: defaultdict(list) for mode in metrics}
        self.accelerator.sync_gradients = False
        # Gradients that are split over the processes are brought there at once, or each would hold all of them.
        waiting = nullcontext() if is_split(self.model) else self.accelerator.no_sync(model)
        try:
            with waiting:
                yield
        finally:
            self._metrics, self.accelerator.sync_gradients = metrics, is_last_micro_batch

    def _backward(self, loss: torch.Tensor) -> None:
        """As transformers does after `compute_loss`."""
        is_deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        self.accelerator.backward(loss, **({"scale_wrt_gas": False} if is_deepspeed else {}))

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **of_images: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        if self.tokens_per_micro_batch is None:
            return super()._get_per_token_logps_and_entropies(
                *(model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss),
                **of_images,
            )
        asked = {"logits_to_keep": logits_to_keep, "compute_entropy": compute_entropy}
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, **of_images}
        if self._pass is None:
            split = input_ids.shape[1] - logits_to_keep
            masks = attention_mask[:, :split], attention_mask[:, split:]
            rows = self._lengths(input_ids[:, :split], *masks, self._prompt_of)
            passes, _ = self._passes(rows, range(len(input_ids)), agreed=True)
            scores = self._filled((), passes, model, batch, asked)
        else:
            if not self._known:
                with torch.no_grad():  # not through a wrapper that waits for the other processes
                    core = self.accelerator.unwrap_model(model)
                    self._known = self._filled((), self._idle, core, batch, asked)
            scores = self._filled(self._known, [self._pass], model, batch, asked)
            self._known = [values.detach() for values in scores]
        return scores[0], scores[1] if compute_entropy else None, None

    def _filled(
        self,
        known: Sequence[torch.Tensor],
        parts: Sequence[torch.Tensor],
        model: Any,
        batch: Mapping[str, Any],
        asked: Mapping[str, Any],
    ) -> list[torch.Tensor]:
        """Log-probs and, where they are asked for, entropies [N, C], of which the rows of some parts are computed.

        Args:
            known: the same before; empty where there is nothing yet, which is 0 then.
            parts: the rows of each forward pass.
            model: wrapped or not.
            batch: what is there for each of N rows.
            asked: which scores.
        """
        prompt_of, advantages = self._prompt_of, self._advantages
        try:
            for part in parts:
                self._prompt_of = prompt_of[part]
                self._advantages = None if advantages is None else advantages[part]
                found = super()._get_per_token_logps_and_entropies(model, **_select(batch, part), **asked)
                scores = [values for values in found if values is not None]
                known = known or [values.new_zeros(len(prompt_of), values.shape[1]) for values in scores]
                known = [old.index_copy(0, part, new) for old, new in zip(known, scores, strict=True)]
        finally:
            self._prompt_of, self._advantages = prompt_of, advantages
        return list(known)

    def _lengths(
        self,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        completion_mask: torch.Tensor,
        prompt_of: torch.Tensor,
    ) -> Rows:
        """What each row brings, by the masks [N, P] and [N, C] of its tokens."""
        masks = [prompt_mask, completion_mask]
        if self._unknown is not None:  # trl's own passes, as wide as the padding
            masks = [torch.ones_like(mask) for mask in masks]
        prompt_tokens, completion_tokens = (mask.sum(dim=1).tolist() for mask in masks)
        return Rows(
            prompt_of=prompt_of.tolist(),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            is_shared=self._shares(prompt_ids[:, -1]),
        )


def _select(batch: Mapping[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    """What trl hands on for some of the rows, images among it."""
    given = {name: value for name, value in batch.items() if value is not None}
    num_rows = len(given["input_ids"])
    part: dict[str, Any] = {}
    for name, value in split_pixel_values_by_grid(given).items():
        if isinstance(value, torch.Tensor):
            part[name] = value[rows]
        elif isinstance(value, list) and len(value) == num_rows:
            part[name] = [value[row] for row in rows.tolist()]
        else:
            part[name] = value
    return unsplit_pixel_values_by_grid(part)
