"""trl's GRPO trainer without the work that it does more than once: what is computed stays the same.

Each shortcut can be taken alone; with none of them the forward passes, their batches and their padding are trl's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from trl import GRPOTrainer
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from visual_r1.examples import Example
from visual_r1.methods.shared_prefix import Prompts, core_of, pack, unknown, unpack, unshared
from visual_r1.models import Policy
from visual_r1.rollout.gathering import is_split

_logger = logging.getLogger(__name__)

_Scores: TypeAlias = tuple[torch.Tensor, torch.Tensor | None]
"""Log-probabilities [N, C] and, where they are asked for, entropies [N, C] of completions' tokens."""


@dataclass(frozen=True, kw_only=True)
class Shortcuts:
    """What a step leaves out because it has been computed already, or makes no difference."""

    shared_prefix: bool
    """A group's prompt and images go through the model once a pass, and not once for each completion."""
    encode_once: bool
    """An image is preprocessed, and its pixel values are held, once for its group."""
    keep_groups: bool
    """A group's completions stay together in micro-batches; trl scatters them over the step's."""
    trim_padding: bool
    """A micro-batch is as wide as its own longest prompt and completion, not as the step's."""
    skip_zero_advantage: bool
    """Groups without any advantage get no backward pass where it could only give zeros: without a KL term."""


@dataclass(frozen=True, kw_only=True)
class PromptImages:
    """The images of one prompt as the vision tower takes them."""

    pixel_values: torch.Tensor
    """[patches, values]."""
    image_grid_thw: torch.Tensor
    """[images, 3], patches in time, height and width."""


class SharedPrefixTrainer(GRPOTrainer):
    """A trainer that takes `Shortcuts`; it knows which completions have one prompt."""

    _shortcuts: Shortcuts
    _policy: Policy

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._prompt_of = torch.zeros(0, dtype=torch.long)
        # By group, of the step's rollouts; None where a row brings its own.
        self._images: Sequence[PromptImages] | None = None
        self._advantages: torch.Tensor | None = None
        super().__init__(*args, **kwargs)
        if self._shortcuts.shared_prefix and self._unshared is not None and self.accelerator.is_main_process:
            _logger.warning(
                "method.shared_prefix: %s; prompts and images are computed for each completion, as trl does",
                self._unshared,
            )

    @cached_property
    def _unknown(self) -> str | None:
        """Why the passes are trl's own."""
        return unknown(self.accelerator.unwrap_model(self.model))

    @cached_property
    def _unshared(self) -> str | None:
        """Why a prompt goes through the model for each completion."""
        return unshared(self.accelerator.unwrap_model(self.model))

    @cached_property
    def _may_skip(self) -> bool:
        """Whether a group without advantage has no gradient at all, and a pass more or less disturbs nobody."""
        is_zero = self.beta == 0 and not self._entropy_bonus_enabled and not self.aux_loss_enabled
        is_possible = self._unknown is None and not is_split(self.model)
        return self._shortcuts.skip_zero_advantage and is_zero and is_possible

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        examples = [row["example"] for row in inputs]
        self._prompt_of = torch.tensor(group_numbers(examples), device=self.accelerator.device)
        self._images = None
        if self._shortcuts.encode_once and self._unknown is None:
            of_prompt = dict(zip(self._prompt_of.tolist(), examples, strict=True))
            self._images = encode_images(self._policy, list(of_prompt.values()), self.accelerator.device)
            # trl would preprocess a row's images for each completion. `_calculate_rewards` puts them back.
            inputs = [{name: value for name, value in row.items() if name != "images"} for row in inputs]
        return super()._generate_and_score_completions(inputs) | {"prompt_of": self._prompt_of}

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        if not self._shortcuts.keep_groups or not self.model.training:
            return super()._prepare_inputs(generation_batch)
        # trl's own, but for the shuffling.
        if self._step % (self.args.steps_per_generation * self.num_iterations) == 0 or self._buffered_inputs is None:
            whole = split_pixel_values_by_grid(self._generate_and_score_completions(generation_batch))
            parts = split_tensor_dict(whole, self.args.steps_per_generation)
            self._buffered_inputs = [unsplit_pixel_values_by_grid(part) for part in parts]
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._prompt_of = inputs["prompt_of"]
        self._advantages = inputs["advantages"] if self._may_skip else None
        if self._may_skip and torch.is_grad_enabled():
            share = without_advantage(inputs["advantages"], inputs["prompt_of"]).float().mean()
            self._metrics["train"]["groups/skipped"].append(self.accelerator.gather(share).mean().item())
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._advantages = None

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
        if compute_aux_loss or self._unknown is not None:
            return super()._get_per_token_logps_and_entropies(
                *(model, input_ids, attention_mask, logits_to_keep),
                **{"batch_size": batch_size, "compute_entropy": compute_entropy, "compute_aux_loss": compute_aux_loss},
                **of_images,
            )
        batch = _Batch(
            input_ids=input_ids,
            mask=attention_mask,
            num_prompt_tokens=input_ids.shape[1] - logits_to_keep,
            prompt_of=self._prompt_of,
            images=self._images_by_row(len(input_ids), **of_images),
        )
        rows = torch.arange(len(input_ids), device=input_ids.device)
        parts = rows.split(batch_size or len(rows))
        return *_joined([self._scored(model, batch.select(part), compute_entropy) for part in parts]), None

    def _images_by_row(
        self,
        num_rows: int,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        num_images: list[int] | None = None,
        **_of_other_models: Any,
    ) -> Sequence[PromptImages | None]:
        """The images of each row, from where they are held."""
        if self._images is not None:
            return [self._images[number] for number in self._prompt_of.tolist()]
        if pixel_values is None or image_grid_thw is None or num_images is None:
            return [None] * num_rows
        return split_images(pixel_values, image_grid_thw, num_images)

    def _scored(self, model: Any, batch: _Batch, compute_entropy: bool) -> _Scores:
        """The scores of a batch's completions; without a gradient where none is needed."""
        if self._advantages is None or not torch.is_grad_enabled():
            return self._forward(model, batch, compute_entropy)
        idle = without_advantage(self._advantages, batch.prompt_of)
        if bool(idle.all()):  # a backward pass needs something to go through
            idle = batch.prompt_of != batch.prompt_of[0]
        if not bool(idle.any()):
            return self._forward(model, batch, compute_entropy)
        without, others = idle.nonzero()[:, 0], (~idle).nonzero()[:, 0]
        with torch.no_grad():  # not through a wrapper that waits for the other processes
            scores = self._forward(self.accelerator.unwrap_model(model), batch.select(without), compute_entropy)
        parts = [scores, self._forward(model, batch.select(others), compute_entropy)]
        logps, entropies = _joined(parts)
        order = torch.cat([without, others]).argsort()
        return logps[order], None if entropies is None else entropies[order]

    def _forward(self, model: Any, batch: _Batch, compute_entropy: bool) -> _Scores:
        core = core_of(self.accelerator.unwrap_model(model))
        if not self._shares(batch.input_ids[:, batch.num_prompt_tokens - 1]):
            return self._forward_rows(model, batch, compute_entropy, core.config.image_token_id)
        first, prompt_of = _first_of_each(batch.prompt_of)
        prompts = batch.select(first)
        pixel_values, image_grid_thw = prompts.all_images()
        arguments = pack(
            core,
            Prompts(
                input_ids=prompts.input_ids[:, : batch.num_prompt_tokens],
                mask=prompts.mask[:, : batch.num_prompt_tokens],
                pixel_values=pixel_values,
                image_grid_thw=image_grid_thw,
            ),
            batch.input_ids[:, batch.num_prompt_tokens :],
            batch.mask[:, batch.num_prompt_tokens :],
            prompt_of,
        )
        with self.accelerator.autocast():
            outputs = model(**arguments, fused_lm_head=True)
        labels, scored = arguments["labels"], batch.mask[:, batch.num_prompt_tokens :]
        entropies = unpack(outputs.entropy, labels, scored) if compute_entropy else None
        return unpack(outputs.log_probs, labels, scored), entropies

    def _shares(self, last_tokens: torch.Tensor) -> bool:
        """Whether prompts go through the model once, of which these are the last tokens: an image's cannot."""
        if not self._shortcuts.shared_prefix or self._unshared is not None:
            return False
        core = core_of(self.accelerator.unwrap_model(self.model))
        return not bool((last_tokens == core.config.image_token_id).any())

    def _forward_rows(self, model: Any, batch: _Batch, compute_entropy: bool, image_token_id: int) -> _Scores:
        """By trl: a row of the batch for each completion."""
        width = batch.input_ids.shape[1] - batch.num_prompt_tokens
        if self._shortcuts.trim_padding:
            batch = batch.trimmed()
        pixel_values, image_grid_thw = batch.all_images()
        of_images: dict[str, Any] = {}
        if pixel_values is not None:
            in_prompt = torch.arange(batch.input_ids.shape[1], device=batch.mask.device) < batch.num_prompt_tokens
            of_images = {
                "pixel_values": pixel_values,
                "image_grid_thw": image_grid_thw,
                "num_images": [0 if one is None else len(one.image_grid_thw) for one in batch.images],
                "mm_token_type_ids": ((batch.input_ids == image_token_id) & in_prompt).int(),
            }
        logps, entropies, _ = super()._get_per_token_logps_and_entropies(
            model,
            batch.input_ids,
            batch.mask,
            batch.input_ids.shape[1] - batch.num_prompt_tokens,
            compute_entropy=compute_entropy,
            **of_images,
        )
        padding = (0, width - logps.shape[1])
        entropies = None if entropies is None else torch.nn.functional.pad(entropies, padding)
        return torch.nn.functional.pad(logps, padding), entropies


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Completions behind their prompts, as trl lines them up."""

    input_ids: torch.Tensor
    """[N, P + C], prompts padded on the left and completions on the right."""
    mask: torch.Tensor
    """[N, P + C]."""
    num_prompt_tokens: int
    """P."""
    prompt_of: torch.Tensor
    """[N], equal for the completions of one prompt."""
    images: Sequence[PromptImages | None]
    """Of each row."""

    def select(self, rows: torch.Tensor) -> _Batch:
        """Some of the rows, in the order given."""
        return _Batch(
            input_ids=self.input_ids[rows],
            mask=self.mask[rows],
            num_prompt_tokens=self.num_prompt_tokens,
            prompt_of=self.prompt_of[rows],
            images=[self.images[row] for row in rows.tolist()],
        )

    def trimmed(self) -> _Batch:
        """Without the columns that are padding in every row, but for one of the completions'."""
        used = self.mask.bool().any(dim=0)
        first = int(used.int().argmax())
        last = max(self.num_prompt_tokens + 1, int(used.nonzero().max()) + 1)
        return _Batch(
            input_ids=self.input_ids[:, first:last],
            mask=self.mask[:, first:last],
            num_prompt_tokens=self.num_prompt_tokens - first,
            prompt_of=self.prompt_of,
            images=self.images,
        )

    def all_images(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Pixel values and grids, row after row; None where there is no image."""
        images = [one for one in self.images if one is not None and len(one.image_grid_thw)]
        if not images:
            return None, None
        return torch.cat([one.pixel_values for one in images]), torch.cat([one.image_grid_thw for one in images])


def _joined(parts: Sequence[_Scores]) -> _Scores:
    entropies = [part[1] for part in parts if part[1] is not None]
    return torch.cat([part[0] for part in parts]), torch.cat(entropies) if entropies else None


def group_numbers(examples: Sequence[Example]) -> list[int]:
    """The number of its group for each rollout, in the order of the batch: 0, 0, ..., 1, 1, ..."""
    numbers: list[int] = []
    for index, example in enumerate(examples):
        is_new = not index or example.id != examples[index - 1].id
        numbers.append((numbers[-1] if numbers else -1) + is_new)
    return numbers


def without_advantage(advantages: torch.Tensor, prompt_of: torch.Tensor) -> torch.Tensor:
    """Which completions, [N], have no advantage in their whole group, as far as it is there.

    A group with some is computed whole: its prompt goes through the model anyway.
    """
    return ~torch.isin(prompt_of, prompt_of[advantages != 0])


def encode_images(policy: Policy, examples: Sequence[Example], device: torch.device) -> list[PromptImages]:
    """What the vision tower is given of each example: the pixel values that the processor makes of its images.

    Args:
        policy: whose processor; of a model that `shared_prefix.unknown` has nothing against.
        examples: with fitted images.
        device: of the values.
    """
    images = [image for example in examples for image in example.images]
    if not images:
        nothing = PromptImages(pixel_values=torch.empty(0, 0), image_grid_thw=torch.empty(0, 3, dtype=torch.long))
        return [nothing] * len(examples)
    encoded = policy.processor.image_processor(images=images, return_tensors="pt").to(device)
    return split_images(encoded["pixel_values"], encoded["image_grid_thw"], [len(one.images) for one in examples])


def split_images(
    pixel_values: torch.Tensor, image_grid_thw: torch.Tensor, num_images: Sequence[int]
) -> list[PromptImages]:
    """The images of each row, of those that stand one after another: [patches, values] and [images, 3]."""
    grids = image_grid_thw.split(list(num_images))
    patches = pixel_values.split([int(grid.prod(dim=-1).sum()) for grid in grids])
    return [PromptImages(pixel_values=own, image_grid_thw=grid) for own, grid in zip(patches, grids, strict=True)]


def _first_of_each(numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first row of each number, and for each row which of them is its own."""
    known, own = numbers.unique(return_inverse=True)
    rows = torch.arange(len(numbers), device=numbers.device)
    first = rows.new_full((len(known),), len(numbers)).scatter_reduce(0, own, rows, "amin")
    return first, own
