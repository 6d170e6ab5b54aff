"""What vLLM is compared with: the trainer's own engine, and a plain forward of prompt and completion."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from visual_r1.examples import Example
from visual_r1.models import Policy
from visual_r1.rollout.engine import Completion, Sampling
from visual_r1.rollout.transformers import TransformersEngine, encode_prompts

GREEDY = Sampling(max_completion_length=12, temperature=0.0)


def example_with(*sizes: tuple[int, int], shade: int = 0) -> Example:
    """A question about images of these sizes, each a gradient: equal patches would hide a wrong order."""
    gradient = Image.linear_gradient("L")
    images = tuple(
        gradient.point(lambda level, by=shade + 50 * number: (level + by) % 256).resize(size).convert("RGB")
        for number, size in enumerate(sizes)
    )
    question = f"Which of the {len(sizes)} is darker? (A) first (B) second"
    return Example(
        id=str(sizes), images=images, question=question, choices=("first", "second"), solution="A", category="Count"
    )


EXAMPLES = (
    example_with((112, 56)),
    example_with((56, 84), (140, 70)),
    example_with((28, 140), (84, 84), (56, 56)),
    example_with((168, 84)),
)
"""One, two, three and one images, of mixed sizes."""


def conversations(policy: Policy, examples: Any = EXAMPLES) -> list[Any]:
    """The examples as the policy is asked."""
    return [policy.style.messages(policy.fitted(example)) for example in examples]


def generate(engine: Any, policy: Policy, sampling: Sampling = GREEDY, **arguments: Any) -> list[list[Completion]]:
    """Completions of the examples by an engine."""
    arguments = {"num_generations": 1, "seed": 0, **arguments}
    examples = arguments.pop("examples", EXAMPLES)
    with engine.serving(policy) as sampler:
        return sampler.generate(conversations(policy, examples), sampling=sampling, **arguments)


def by_transformers(policy: Policy, sampling: Sampling = GREEDY, **arguments: Any) -> list[list[Completion]]:
    """The same by the trainer's engine."""
    return generate(TransformersEngine(batch_size=64), policy, sampling, **arguments)


def tokens(groups: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    """The drawn tokens alone."""
    return [[completion.token_ids for completion in group] for group in groups]


def largest_difference(groups: list[list[Completion]], others: list[list[Completion]]) -> float:
    """Between the log-probabilities of the same tokens."""
    assert tokens(groups) == tokens(others)
    return max(
        abs(one - other)
        for group, others_of in zip(groups, others, strict=True)
        for completion, twin in zip(group, others_of, strict=True)
        for one, other in zip(completion.logps, twin.logps, strict=True)
    )


@torch.no_grad()
def plain_logps(policy: Policy, conversation: Any, completion: Completion, temperature: float = 1.0) -> torch.Tensor:
    """Each token's log-probability by one forward over prompt and completion, without cache or padding."""
    inputs = encode_prompts(policy, [conversation])
    assert inputs["input_ids"][0].tolist() == list(completion.prompt_ids)
    ids = torch.tensor([completion.token_ids])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(ids)], dim=1)
    inputs = inputs.to(policy.model.device)
    was_training = policy.model.training
    policy.model.eval()
    logits = policy.model(**inputs).logits[0, -ids.shape[1] - 1 : -1].float().cpu()
    policy.model.train(was_training)
    return torch.log_softmax(logits / temperature, dim=-1).gather(-1, ids[0][:, None])[:, 0]


@torch.no_grad()
def first_token_probabilities(policy: Policy, conversation: Any, sampling: Sampling) -> torch.Tensor:
    """[V]: how likely each first token is drawn, by transformers' logits and the definition of each cut."""
    inputs = encode_prompts(policy, [conversation]).to(policy.model.device)
    logits = policy.model(**inputs).logits[0, -1].double().cpu() / sampling.temperature
    logits[list(policy.image_token_ids)] = -torch.inf
    if sampling.top_k:
        logits[logits < logits.topk(sampling.top_k).values[-1]] = -torch.inf
    probabilities = logits.softmax(dim=-1)
    ordered, order = probabilities.sort(descending=True)
    probabilities[order[ordered.cumsum(dim=-1) - ordered >= sampling.top_p]] = 0
    return probabilities / probabilities.sum()


def fits(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """The p-value of a chi-square test; tokens expected fewer than 5 times count as one."""
    from scipy.stats import chisquare

    expected = probabilities * counts.sum()
    is_frequent = expected >= 5
    observed = [*counts[is_frequent].tolist(), counts[~is_frequent].sum().item()]
    wanted = [*expected[is_frequent].tolist(), expected[~is_frequent].sum().item()]
    assert len(observed) > 3
    if wanted[-1] < 1e-9:
        assert observed[-1] == 0  # what is cut off is never drawn
        observed, wanted = observed[:-1], wanted[:-1]
    return float(chisquare(observed, wanted, sum_check=False).pvalue)


@torch.no_grad()
def ban_worthy(policy: Policy) -> None:
    """Makes the image's placeholder the likeliest token by far, wherever a token is drawn after the first example."""
    inputs = encode_prompts(policy, conversations(policy)[:1]).to(policy.model.device)
    hidden = policy.model.model(**inputs).last_hidden_state[0, -1]
    policy.model.get_input_embeddings().weight[policy.model.config.image_token_id] = 60 * hidden / hidden.norm()
