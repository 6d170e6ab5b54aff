"""How far the update's shortcuts are from trl's own passes, on any model: two groups, each computed both ways.

What is compared is what an update uses: log-probabilities, entropies, and the gradient of a loss that weighs each
completion otherwise, as advantages do. How far trl's passes are from themselves with one row at a time is measured
beside it: rounding alone, which in bfloat16 is a thousand times what it is in float32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import pad

from visual_r1.examples import Example
from visual_r1.methods.shared_prefix import core_of, unshared
from visual_r1.methods.shared_prefix_trainer import PromptImages, SharedPrefixTrainer, Shortcuts, encode_images
from visual_r1.methods.training import on_one_gpu, training_rows
from visual_r1.models import Policy, device_of
from visual_r1.rollout.transformers import encode_prompts

LENGTHS = ((19, 5, 12), (3, 24, 9))
"""Tokens of the completions of each of the two prompts."""
_EXACT = 1e-4
"""What float32 stays below by a factor of about a hundred, and another formula does not."""
_SPREAD = 10
"""How many times trl's own distance from itself is still rounding: where its batches happen to use the same kernels, it
has hardly any."""
_GRADIENT_VALUES = 2**27
"""At most so many values of the gradient are compared: half a gigabyte a side."""
_SMALL = 1e-3
"""A parameter whose gradient is a smaller part of the whole is rounding: its error is taken relative to this part."""


_Scored: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Log-probabilities and entropies of the completions' tokens, row after row, [tokens]."""


class CannotCompareError(ValueError):
    """The model's prompts cannot be shared, so that an update computes as trl does; says why."""


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """How far one way to compute is from another."""

    logps: float
    """The largest difference of a token's log-probability."""
    mean_logps: float
    entropies: float
    """The largest difference of a token's entropy."""
    gradient: float
    """Of the gradients as one vector: the norm of the difference over the norm."""
    worst_gradient: float
    """Of the parameter where that is largest."""
    worst_parameter: str

    @property
    def numbers(self) -> dict[str, float]:
        """What is judged."""
        return {name: value for name, value in vars(self).items() if isinstance(value, float)}


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Our passes beside trl's, and trl's beside themselves."""

    ours: Deviation
    """Our passes from trl's."""
    stock: Deviation
    """trl's with each row in a batch of its own from trl's with all rows in one."""
    num_parameters: int
    """Whose gradients were compared."""
    num_trained: int
    """Parameters that are trained."""

    @property
    def excess(self) -> dict[str, tuple[float, float]]:
        """By name what is further than rounding explains, beside what is allowed; a value that is no number is."""
        allowed = {name: max(_EXACT, _SPREAD * value) for name, value in self.stock.numbers.items()}
        return {name: (value, allowed[name]) for name, value in self.ours.numbers.items() if not value <= allowed[name]}


def two_prompts(policy: Policy, examples: Sequence[Example]) -> list[Example]:
    """The first two examples, fitted; the second with narrower images and a longer question, for other lengths."""
    first, second = examples[0], examples[min(1, len(examples) - 1)]
    images = tuple(image.resize((max(1, image.width // 2), image.height)) for image in second.images)
    second = replace(second, images=images, question=f"{second.question} Look twice before you answer.")
    return [policy.fitted(first), policy.fitted(second)]


def compare(
    policy: Policy,
    examples: Sequence[Example],
    *,
    shortcuts: Shortcuts,
    bf16: bool = False,
    gradient_checkpointing: bool = False,
) -> Parity:
    """Compares the passes of an update over two groups of random completions; the weights stay as they are.

    Args:
        policy: not wrapped for training.
        examples: two, as of `two_prompts`.
        shortcuts: those of the update.
        bf16: computes under autocast, as a run with ``scale.bf16`` does.
        gradient_checkpointing: as in a run.

    Raises:
        CannotCompareError: the model's prompts cannot be shared.
    """
    if (reason := unshared(policy.model)) is not None:
        raise CannotCompareError(reason)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _Trainer(policy, examples, shortcuts, _config(folder, bf16, gradient_checkpointing))
        trainer.model.train()
        return _compared(trainer, _rows(policy, examples))


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A completion behind its prompt."""

    prompt: int
    """The number of its prompt."""
    prompt_ids: torch.Tensor
    completion_ids: torch.Tensor
    images: PromptImages
    advantage: float


def _rows(policy: Policy, examples: Sequence[Example]) -> list[_Row]:
    """Random completions of the examples' prompts, without the placeholders of images."""
    draw = torch.Generator().manual_seed(0)
    device = device_of(policy.model)
    tokens = torch.tensor([one for one in range(len(policy.tokenizer)) if one not in policy.image_token_ids])
    images = encode_images(policy, examples, device)
    rows = []
    for number, (example, lengths) in enumerate(zip(examples, LENGTHS, strict=True)):
        prompt_ids = encode_prompts(policy, [policy.style.messages(example)])["input_ids"][0].to(device)
        for length in lengths:
            completion_ids = tokens[torch.randint(len(tokens), (length,), generator=draw)].to(device)
            advantage = torch.randn((), generator=draw).item()
            rows.append(
                _Row(
                    prompt=number,
                    prompt_ids=prompt_ids,
                    completion_ids=completion_ids,
                    images=images[number],
                    advantage=advantage,
                )
            )
    return rows


def _batch(rows: Sequence[_Row], image_token_id: int) -> dict[str, Any]:
    """The arguments of trl's pass over some of the rows, padded to the longest of them."""
    prompts, completions = [row.prompt_ids for row in rows], [row.completion_ids for row in rows]
    ids = torch.cat([pad(prompts, padding_side="left"), pad(completions)], dim=1)
    mask = torch.cat([pad(list(map(torch.ones_like, prompts)), padding_side="left"), _mask(rows)], dim=1)
    num_completion = max(map(len, completions))
    arguments = {"input_ids": ids, "attention_mask": mask, "logits_to_keep": num_completion}
    with_images = [row.images for row in rows if len(row.images.image_grid_thw)]
    if with_images:
        of_image = (ids == image_token_id).int()
        of_image[:, -num_completion:] = 0
        arguments |= {
            "pixel_values": torch.cat([one.pixel_values for one in with_images]),
            "image_grid_thw": torch.cat([one.image_grid_thw for one in with_images]),
            "num_images": [len(row.images.image_grid_thw) for row in rows],
            "mm_token_type_ids": of_image,
        }
    return arguments


def _mask(rows: Sequence[_Row]) -> torch.Tensor:
    """[N, C], 1 where a completion has a token."""
    return pad([torch.ones_like(row.completion_ids) for row in rows])


@dataclass(frozen=True, kw_only=True)
class _Computed:
    """What one way to compute gave."""

    logps: torch.Tensor
    entropies: torch.Tensor
    gradients: list[torch.Tensor]
    """On the host, in float32."""


class _Trainer(SharedPrefixTrainer):
    """A trainer that is asked for its passes alone."""

    def __init__(self, policy: Policy, examples: Sequence[Example], shortcuts: Shortcuts, config: GRPOConfig) -> None:
        self._policy, self._shortcuts = policy, shortcuts
        super().__init__(
            model=policy.model,
            args=config,
            reward_funcs=[lambda **columns: [0.0] * len(columns["prompts"])],
            train_dataset=training_rows(policy, examples, lambda example: {"prompt": example.question}),
            processing_class=policy.processor,
        )
        self._images = encode_images(policy, examples, self.accelerator.device)

    def by_us(self, rows: Sequence[_Row]) -> _Scored:
        """Our pass."""
        self._prompt_of = torch.tensor([row.prompt for row in rows], device=self.accelerator.device)
        return _scored(
            self._get_per_token_logps_and_entropies(self.model, compute_entropy=True, **self._batch(rows)), rows
        )

    def by_trl(self, rows: Sequence[_Row]) -> _Scored:
        """Trl's pass, with nothing of ours in it."""
        passed = GRPOTrainer._get_per_token_logps_and_entropies
        return _scored(passed(self, self.model, compute_entropy=True, **self._batch(rows)), rows)

    def by_trl_one_by_one(self, rows: Sequence[_Row]) -> _Scored:
        """Trl's passes over each row in a batch of its own, which holds no padding."""
        logps, entropies = zip(*(self.by_trl([row]) for row in rows), strict=True)
        return torch.cat(logps), torch.cat(entropies)

    def _batch(self, rows: Sequence[_Row]) -> dict[str, Any]:
        return _batch(rows, core_of(self.model).config.image_token_id)


def _scored(result: Any, rows: Sequence[_Row]) -> _Scored:
    mask = _mask(rows).bool()
    return result[0][mask], result[1][mask]


def _config(folder: str, bf16: bool, gradient_checkpointing: bool) -> GRPOConfig:
    size = len(LENGTHS) * len(LENGTHS[0])
    return on_one_gpu(
        GRPOConfig(
            output_dir=folder,
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
            bf16=bf16,
            gradient_checkpointing=gradient_checkpointing,
            per_device_train_batch_size=size,
            num_generations=size // len(LENGTHS),
            remove_unused_columns=False,
            beta=0.0,
        )
    )


def _compared(trainer: _Trainer, rows: Sequence[_Row]) -> Parity:
    trained = [(name, one) for name, one in trainer.model.named_parameters() if one.requires_grad]
    chosen = dict(_within(trained, _GRADIENT_VALUES))
    if trainer.args.gradient_checkpointing:
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})

    advantages = torch.cat([row.advantage * torch.ones_like(row.completion_ids) for row in rows])

    def computed(scores: Callable[[Sequence[_Row]], _Scored]) -> _Computed:
        logps, entropies = scores(rows)
        gradients = torch.autograd.grad(
            (logps * advantages).mean(), list(chosen.values()), allow_unused=True, materialize_grads=True
        )
        return _Computed(
            logps=logps.detach().float(),
            entropies=entropies.detach().float(),
            gradients=[one.float().cpu() for one in gradients],
        )

    stock, names = computed(trainer.by_trl), list(chosen)
    return Parity(
        ours=_deviation(computed(trainer.by_us), stock, names),
        stock=_deviation(computed(trainer.by_trl_one_by_one), stock, names),
        num_parameters=len(chosen),
        num_trained=len(trained),
    )


def _within(
    parameters: Sequence[tuple[str, torch.nn.Parameter]], num_values: int
) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The smallest, as many as have so many values together, and one at least: they stand in every layer."""
    taken = 0
    for number, (name, parameter) in enumerate(sorted(parameters, key=lambda one: one[1].numel())):
        taken += parameter.numel()
        if taken > num_values and number:
            return
        yield name, parameter


def _deviation(one: _Computed, other: _Computed, names: Sequence[str]) -> Deviation:
    logps = (one.logps - other.logps).abs()
    errors = [(mine - its).norm().item() for mine, its in zip(one.gradients, other.gradients, strict=True)]
    norms = [its.norm().item() for its in other.gradients]
    whole = torch.tensor(norms).norm().item()
    relative = [error / max(norm, _SMALL * whole) for error, norm in zip(errors, norms, strict=True)]
    worst = max(range(len(names)), key=relative.__getitem__)
    return Deviation(
        logps=logps.max().item(),
        mean_logps=logps.mean().item(),
        entropies=(one.entropies - other.entropies).abs().max().item(),
        gradient=torch.tensor(errors).norm().item() / whole,
        worst_gradient=relative[worst],
        worst_parameter=names[worst],
    )
