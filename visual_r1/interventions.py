"""What a policy answers when its thought is cut, continued, or thought over another image.

Every condition ends alike: a thought, then ``</think>`` and ``<answer>`` put after it, then the answer, greedily. So a
condition is a thought and an image, and two of them differ in nothing else: not in the luck of a drawn answer, nor in
whether the policy finds its way to one. All conditions of one comparison meet the same items.

Sources: forcing an answer early, VAPO-Thinker (arXiv 2509.25848); taking the image away midway, Take-along Visual
Conditioning (arXiv 2503.13360), where here the image becomes grey, of the same size, so that no token moves;
perturbing a step of a thought, "Can Aha Moments Be Fake?" (arXiv 2510.24941).
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from visual_r1.evaluation import with_blank_images
from visual_r1.metrics.reflection_effect import thought_span
from visual_r1.parsing import parse_choice
from visual_r1.rollout.continuing import Start, continued, tokens_before
from visual_r1.rollout.engine import RolloutEngine, Sampling, check_context, to_rollout

if TYPE_CHECKING:
    from visual_r1.examples import Example, Rollout
    from visual_r1.metrics.reflection import Reflection
    from visual_r1.models import Policy
    from visual_r1.rollout.engine import Sampler

WHOLE = "whole thought"
CUT = "cut before the first reflection"
WHOLE_REFLECTING = "whole thought that reflects"
WHOLE_UNREFLECTING = "whole thought that does not reflect"
FORCED = "reflection put in at its end"
EMPTY = "empty reflection put in at its end"
BLANK = "blank image"
SHUFFLED = "image of another item"
_MIN_ANSWER_LENGTH = 32
"""Tokens that a forced answer may take at least."""
_ANSWER_ROOM = 12
"""Tokens that it may take besides the longest choice's words: its letter, and what closes it."""
_CLOSE_THINK, _OPEN_ANSWER = "</think>\n", "<answer>"


def after(fraction: float) -> str:
    """The condition in which the answer is forced after a part of the thought."""
    return f"after {100 * fraction:.0f} % of the thought"


def removed(fraction: float) -> str:
    """The condition in which the image turns grey after a part of the thought."""
    return f"image removed after {100 * fraction:.0f} % of the thought"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is done to the thoughts.

    Raises:
        ValueError: a value out of its range.
    """

    sampling: Sampling
    """How thoughts are drawn; its length limits a whole completion."""
    num_generations: int
    """Completions of each item, in which one that reflects and one that does not are looked for."""
    fractions: tuple[float, ...]
    """Of a thought's tokens; in [0, 1], ascending, from 0 to 1."""
    phrase: str
    """Words of doubt that are put in."""
    empty_phrase: str
    """Words of doubt that look at nothing and confirm."""
    seed: int

    def __post_init__(self) -> None:
        if self.num_generations < 1:
            raise ValueError(f"--generations {self.num_generations}: expected at least 1")
        if list(self.fractions) != sorted({0.0, 1.0, *self.fractions}) or self.fractions[-1] > 1:
            raise ValueError(f"fractions {list(self.fractions)}: expected ascending numbers from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """An item under a condition: a row of ``reflection.parquet``."""

    condition: str
    example_id: str
    category: str
    question: str
    choices: tuple[str, ...]
    solution: str
    generation: int | None
    """Which of the item's completions it began as; None where it was written for the condition."""
    thought: str
    """What was answered about: from the completion's first token to the end of the thought, with what was put in."""
    num_thought_tokens: int
    answer: str | None
    """What followed ``<answer>``, up to its end; None where the length limit came first."""
    choice: str | None
    """The letter that it names."""
    correct: bool
    reflects: bool
    """A phrase of the run's list stands in the thought."""


@dataclass(frozen=True, kw_only=True)
class Completed:
    """A completion as the policy wrote it, undisturbed."""

    rollout: Rollout
    item: int
    generation: int
    token_ids: tuple[int, ...]
    """Without the end token."""
    begin: int
    """Tokens before the thought."""
    end: int
    """Tokens to the end of the thought."""
    marker: int | None
    """Tokens before the thought's first reflection; None without one."""
    is_open: bool
    """The thought was opened, so that it has to be closed before an answer."""

    @property
    def thought_ids(self) -> tuple[int, ...]:
        """All tokens to the end of the thought."""
        return self.token_ids[: self.end]

    def part(self, fraction: float) -> tuple[int, ...]:
        """All tokens to the end of a part of the thought."""
        return self.token_ids[: self.begin + round(fraction * (self.end - self.begin))]


@dataclass(frozen=True, kw_only=True)
class Probed:
    """All that one policy did."""

    completed: tuple[Completed, ...]
    trials: tuple[Trial, ...]
    num_without_partner: int
    """Items for which no other item of the same category has other images of the same sizes."""


def intervene(
    policy: Policy,
    engine: RolloutEngine,
    examples: Sequence[Example],
    *,
    settings: Settings,
    reflection: Reflection,
    progress: Callable[[int], object] = lambda count: None,
    remembering: Callable[[Sampler], Sampler] = lambda sampler: sampler,
) -> Probed:
    """Asks every question, and once more under each condition.

    Args:
        policy: who is asked.
        engine: what samples; it must take prefixes.
        examples: the items.
        settings: what is done.
        reflection: the phrases that a thought is cut before.
        progress: told now and then how many more completions are done, of about `num_requests`.
        remembering: puts something between the questions and the sampler that answers them, such as a `Journal`.

    Raises:
        ValueError: the engine takes no prefixes, or a prompt with the longest thought and answer does not fit the
            model; nothing has been sampled then.
    """
    check_engine(engine)
    fitted = [policy.fitted(example) for example in examples]
    answer_length = _answer_length(policy, fitted)
    added = max(num_tokens(policy, text) for text in (settings.phrase, settings.empty_phrase))
    closed = num_tokens(policy, _CLOSE_THINK + _OPEN_ANSWER)
    longest = settings.sampling.max_completion_length + added + closed + answer_length
    check_context(policy, fitted, max_completion_length=longest)
    with engine.serving(policy) as sampler:
        probe = _Probe(
            *(policy, remembering(sampler), engine.batch_size, fitted, settings, reflection, progress, answer_length)
        )
        return probe.run()


def check_phrases(settings: Settings, examples: Iterable[Example]) -> None:
    """Refuses words to put in that name a choice: "it is right" is an answer where the choices are left and right.

    Raises:
        ValueError: with the first such item's id.
    """
    for example in examples:
        for option, phrase in (("--phrase", settings.phrase), ("--empty-phrase", settings.empty_phrase)):
            for choice in example.choices:
                words = r"\s+".join(map(re.escape, choice.strip().removesuffix(".").split()))
                if words and re.search(rf"(?<!\w){words}(?!\w)", phrase, re.IGNORECASE):
                    raise ValueError(
                        f"{option} {phrase!r} names a choice of {example.id}, {choice!r}, and would put an answer into "
                        "the thought: choose other words"
                    )


def num_tokens(policy: Policy, text: str) -> int:
    """Of a text that is put in."""
    return len(policy.tokenizer(text, add_special_tokens=False)["input_ids"])


def _answer_length(policy: Policy, examples: Iterable[Example]) -> int:
    """Tokens that a forced answer may take: a limit that cut a choice's own words would count them as no answer."""
    choices = {choice for example in examples for choice in example.choices}
    longest = max((num_tokens(policy, choice) for choice in choices), default=0)
    return max(_MIN_ANSWER_LENGTH, longest + _ANSWER_ROOM)


def check_engine(engine: RolloutEngine) -> None:
    """Refuses an engine that cannot go on from a partly written completion.

    Raises:
        ValueError: it cannot.
    """
    if not engine.takes_prefixes:
        raise ValueError(
            f"{type(engine).__name__} cannot go on from a partly written completion: use --rollout transformers or "
            "--rollout vllm_colocate"
        )


def num_requests(num_examples: int, settings: Settings) -> int:
    """How many completions `intervene` asks for at most, answers included."""
    parts = len(settings.fractions) - 2
    thoughts = settings.num_generations + 2 + 1 + parts
    answers = (parts + 2) + (parts + 1) + 2 + 2 + 3
    return num_examples * (thoughts + answers)


@dataclass
class _Probe:
    """One policy on its way through the conditions."""

    policy: Policy
    sampler: Sampler
    batch_size: int
    examples: Sequence[Example]
    settings: Settings
    reflection: Reflection
    progress: Callable[[int], object]
    answer_length: int
    _asked: list[_Asked] = field(default_factory=list)
    _calls: int = 0

    def run(self) -> Probed:
        """All conditions: first every thought, then every answer, so that few batches hold many."""
        completed = self._complete()
        first = [one for one in completed if one.generation == 0]
        self._early(first)
        self._reflecting(completed)
        self._unreflecting(completed)
        num_without_partner = self._images(first)
        return Probed(
            completed=tuple(completed), trials=tuple(self._answers()), num_without_partner=num_without_partner
        )

    def _complete(self) -> list[Completed]:
        """Every item's completions, undisturbed."""
        size = max(1, self.batch_size // self.settings.num_generations)
        completed = []
        for start in range(0, len(self.examples), size):
            batch = self.examples[start : start + size]
            check_context(self.policy, batch, max_completion_length=self.settings.sampling.max_completion_length)
            groups = self.sampler.generate(
                [self.policy.style.messages(example) for example in batch],
                num_generations=self.settings.num_generations,
                sampling=self.settings.sampling,
                seed=self._seed(start),
            )
            for item, group in enumerate(groups, start=start):
                completed += [
                    self._read(self.examples[item], item, number, one.token_ids, is_truncated=one.is_truncated)
                    for number, one in enumerate(group)
                ]
            self.progress(len(batch) * self.settings.num_generations)
        self._calls += 1
        return completed

    def _read(
        self, example: Example, item: int, generation: int, token_ids: Sequence[int], *, is_truncated: bool
    ) -> Completed:
        """Where a completion's thought lies, and its first reflection, in whole tokens."""
        policy = self.policy
        rollout = to_rollout(policy, example, token_ids, is_truncated=is_truncated)
        ends = set(policy.end_token_ids)
        body = tuple(token for token in token_ids if token not in ends)
        text = rollout.completion
        begin, end = thought_span(text)
        place = self.reflection.place(text[begin:end])
        return Completed(
            rollout=rollout,
            item=item,
            generation=generation,
            token_ids=body,
            begin=tokens_before(policy, body, text, begin),
            end=tokens_before(policy, body, text, end),
            marker=None if place is None else tokens_before(policy, body, text, begin + place),
            is_open=policy.style.opens_think or begin > 0,
        )

    def _early(self, first: Sequence[Completed]) -> None:
        for fraction in self.settings.fractions[:-1]:
            self._ask(after(fraction), ((one, one.part(fraction)) for one in first))
        self._ask(WHOLE, ((one, one.thought_ids) for one in first))

    def _reflecting(self, completed: Sequence[Completed]) -> None:
        """Of each item the first completion that reflects."""
        chosen = _one_an_item(one for one in completed if one.marker is not None)
        self._ask(WHOLE_REFLECTING, ((one, one.thought_ids) for one in chosen))
        self._ask(CUT, ((one, one.token_ids[: one.marker]) for one in chosen))

    def _unreflecting(self, completed: Sequence[Completed]) -> None:
        """Of each item the first completion that does not reflect, unless the length limit has cut its thought."""
        chosen = _one_an_item(one for one in completed if one.marker is None and not _is_cut_off(one))
        self._ask(WHOLE_UNREFLECTING, ((one, one.thought_ids) for one in chosen))
        empty = self._ids(self.settings.empty_phrase)
        self._ask(EMPTY, ((one, one.thought_ids + empty) for one in chosen))
        doubt = self._ids(self.settings.phrase)
        starts = [Start(example=self.examples[one.item], prefix=one.thought_ids + doubt) for one in chosen]
        self._ask(FORCED, zip(chosen, self._thoughts(chosen, starts), strict=True))

    def _images(self, first: Sequence[Completed]) -> int:
        blank = {one.item: with_blank_images(self.examples[one.item]) for one in first}
        shuffled = _with_images_of_others(self.examples)
        for condition, changed in ((BLANK, blank), (SHUFFLED, shuffled)):
            starts = [Start(example=example, prefix=()) for example in changed.values()]
            written = [
                self._read(start.example, item, 0, one.token_ids, is_truncated=one.is_truncated)
                for item, start, one in zip(changed, starts, self._continued(starts), strict=True)
            ]
            self._ask(condition, ((one, one.thought_ids) for one in written), images=changed, is_own=False)
        for fraction in self.settings.fractions[1:-1]:
            starts = [Start(example=blank[one.item], prefix=one.part(fraction)) for one in first]
            self._ask(removed(fraction), zip(first, self._thoughts(first, starts), strict=True), images=blank)
        self._ask(removed(1), ((one, one.thought_ids) for one in first), images=blank)
        return len(self.examples) - len(shuffled)

    def _thoughts(self, begun: Sequence[Completed], starts: Sequence[Start]) -> list[tuple[int, ...]]:
        """The tokens of each thought to its end, after it went on from its start."""
        found = []
        for one, start, completion in zip(begun, starts, self._continued(starts), strict=True):
            ids = (*start.prefix, *completion.token_ids)
            read = self._read(start.example, one.item, one.generation, ids, is_truncated=completion.is_truncated)
            found.append(read.thought_ids)
        return found

    def _continued(self, starts: Sequence[Start]) -> list[Any]:
        sampling = self.settings.sampling
        return self._write(starts, sampling, whole_length=sampling.max_completion_length)

    def _write(self, starts: Sequence[Start], sampling: Sampling, *, whole_length: int | None = None) -> list[Any]:
        self._calls += 1
        return continued(
            self.sampler,
            self.policy,
            starts,
            sampling=sampling,
            seed=self._seed(0),
            batch_size=self.batch_size,
            whole_length=whole_length,
            progress=self.progress,
        )

    def _seed(self, start: int) -> int:
        """Another for each round of sampling and each batch in it."""
        return self.settings.seed + 1_000_003 * self._calls + start

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.policy.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _ask(
        self,
        condition: str,
        thoughts: Iterable[tuple[Completed, Sequence[int]]],
        *,
        images: Mapping[int, Example] | None = None,
        is_own: bool = True,
    ) -> None:
        """Notes what has to be answered; `images` holds the items over other images."""
        for one, ids in thoughts:
            example = self.examples[one.item] if images is None else images[one.item]
            self._asked.append(
                _Asked(
                    condition=condition,
                    example=example,
                    generation=one.generation if is_own else None,
                    thought_ids=tuple(ids),
                    begin=one.begin,
                    closing=_CLOSE_THINK + _OPEN_ANSWER if one.is_open else _OPEN_ANSWER,
                )
            )

    def _answers(self) -> list[Trial]:
        """All that was asked, answered greedily."""
        closing = {text: self._ids(text) for text in {one.closing for one in self._asked}}
        starts = [Start(example=one.example, prefix=one.thought_ids + closing[one.closing]) for one in self._asked]
        sampling = Sampling(max_completion_length=self.answer_length, temperature=0.0)
        return [
            self._trial(asked, completion)
            for asked, completion in zip(self._asked, self._write(starts, sampling), strict=True)
        ]

    def _trial(self, asked: _Asked, completion: Any) -> Trial:
        rollout = to_rollout(self.policy, asked.example, completion.token_ids, is_truncated=completion.is_truncated)
        thought = self.policy.tokenizer.decode(asked.thought_ids, skip_special_tokens=True)
        answer = forced_answer(rollout.completion, is_truncated=rollout.is_truncated)
        example = asked.example
        choice = None if answer is None else parse_choice(answer, example.choices)
        return Trial(
            condition=asked.condition,
            example_id=example.id,
            category=example.category,
            question=example.question,
            choices=example.choices,
            solution=example.solution,
            generation=asked.generation,
            thought=thought,
            num_thought_tokens=len(asked.thought_ids) - asked.begin,
            answer=answer,
            choice=choice,
            correct=choice == example.solution,
            reflects=bool(self.reflection.find(thought)),
        )


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A thought that waits for its answer."""

    condition: str
    example: Example
    generation: int | None
    thought_ids: tuple[int, ...]
    begin: int
    closing: str


def forced_answer(text: str, *, is_truncated: bool) -> str | None:
    """What was answered after an ``<answer>`` that was put in.

    It ends at the first ``</answer>``, without one at the first line end after a word, else where the policy ended;
    None where the length limit came before any of them.
    """
    before, closed, _ = text.partition("</answer>")
    if closed:
        return before.strip()
    line, ended, _ = text.lstrip().partition("\n")
    return None if is_truncated and not ended else line.strip()


def _is_cut_off(one: Completed) -> bool:
    """Whether the length limit came within the thought, so that nothing can be put in after it."""
    return one.rollout.is_truncated and one.end == len(one.token_ids)


def _one_an_item(completed: Iterable[Completed]) -> list[Completed]:
    chosen: dict[int, Completed] = {}
    for one in completed:
        chosen.setdefault(one.item, one)
    return list(chosen.values())


def _with_images_of_others(examples: Sequence[Example]) -> dict[int, Example]:
    """Items over the images of the next item of their category with other images of the same sizes, by number.

    Where there is no such item, it is left out. Benchmarks ask several questions about one image.
    """
    alike: dict[Any, list[int]] = defaultdict(list)
    for number, example in enumerate(examples):
        alike[example.category, tuple(image.size for image in example.images)].append(number)
    found = {}
    for numbers in alike.values():
        pixels = {
            number: [hashlib.sha256(image.tobytes()).digest() for image in examples[number].images]
            for number in numbers
        }
        for place, number in enumerate(numbers):
            following = numbers[place + 1 :] + numbers[:place]
            other = next((other for other in following if pixels[other] != pixels[number]), None)
            if other is not None:
                found[number] = replace(examples[number], images=examples[other].images)
    return found
