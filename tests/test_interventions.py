"""The conditions of a probe: what is cut, put in and taken away, by the shipped nano itself."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from visual_r1 import interventions
from visual_r1.cli import _parse
from visual_r1.datasets.spatial import Spatial
from visual_r1.interventions import Settings, check_phrases, forced_answer, intervene, num_requests
from visual_r1.metrics.reflection import Reflection
from visual_r1.models import ModelSource, load_policy
from visual_r1.parsing import named_letter
from visual_r1.rollout.engine import Completion, Sampling
from visual_r1.rollout.transformers import TransformersEngine

MODELS = Path(__file__).parents[1] / "models" / "seed0"
EXAMPLES = Spatial(split="test", size=12)[:]
REFLECTION = Reflection(phrases=("wait", "let me double-check", "recheck"))
SETTINGS = Settings(
    sampling=Sampling(max_completion_length=80),
    num_generations=4,
    fractions=(0.0, 0.5, 1.0),
    phrase=" Wait, let me check again.",
    empty_phrase=" Wait, let me check again. I see the same thing.",
    seed=0,
)


@dataclass
class Watched:
    """An engine whose requests are kept: the image's colour where it is one, the prefix, and how it was sampled."""

    engine: TransformersEngine
    takes_prefixes: bool = True
    requests: list[dict[str, Any]] = field(default_factory=list)
    sampler: Any = None

    def __getattr__(self, name):
        return getattr(self.engine, name)

    @contextmanager
    def serving(self, policy):
        with self.engine.serving(policy) as self.sampler:
            yield self

    def generate(self, conversations, *, sampling, prefixes=None, **arguments):
        for number, conversation in enumerate(conversations):
            image = conversation[0]["content"][0]["image"]
            self.requests.append(
                {"image": image, "prefix": prefixes and tuple(prefixes[number]), "temperature": sampling.temperature}
            )
        return self.sampler.generate(conversations, sampling=sampling, prefixes=prefixes, **arguments)


class Scripted:
    """An engine that writes one text as a thought, and keeps what it is to answer."""

    batch_size = 8
    needs_correction = False
    takes_prefixes = True
    warn_logp_difference = None

    def __init__(self, said):
        self.said, self.answered = said, []

    def check(self, source):
        pass

    @contextmanager
    def serving(self, policy):
        self.tokenizer = policy.tokenizer
        yield self

    def generate(self, conversations, *, num_generations, sampling, seed, prefixes=None):
        text = self.said
        if sampling.temperature == 0:
            self.answered += prefixes or []
            text = "(A)</answer>"
        ids = (*self.tokenizer(text)["input_ids"], self.tokenizer.eos_token_id)
        one = Completion(prompt_ids=(), token_ids=ids, logps=(0.0,) * len(ids), is_truncated=False)
        return [[one] * num_generations for _ in conversations]


@pytest.fixture(scope="module", params=["base", "instruct"])
def policy(request):
    return load_policy(ModelSource(name="nano", path=str(MODELS / f"nano-{request.param}"), style=request.param))


@pytest.fixture(scope="module")
def watched():
    return Watched(TransformersEngine(batch_size=32))


@pytest.fixture(scope="module")
def base():
    return load_policy(ModelSource(name="nano", path=str(MODELS / "nano-base"), style="base"))


@pytest.fixture(scope="module")
def probed(base, watched):
    """What the base model does."""
    return intervene(base, watched, EXAMPLES, settings=SETTINGS, reflection=REFLECTION)


def by_condition(probed):
    found: dict[str, dict[str, Any]] = {}
    for trial in probed.trials:
        assert trial.example_id not in found.setdefault(trial.condition, {})
        found[trial.condition][trial.example_id] = trial
    return found


def test_every_condition_meets_the_items_that_it_concerns(probed):
    items = {example.id for example in EXAMPLES}
    trials = by_condition(probed)
    reflecting = {one.rollout.example.id for one in probed.completed if one.marker is not None}
    others = {one.rollout.example.id for one in probed.completed if one.marker is None}
    assert len(probed.completed) == 4 * len(EXAMPLES) and reflecting and others and reflecting != items
    for condition, found in trials.items():
        expected = items
        if condition in (interventions.CUT, interventions.WHOLE_REFLECTING):
            expected = reflecting
        elif condition in (interventions.FORCED, interventions.EMPTY, interventions.WHOLE_UNREFLECTING):
            expected = others
        assert set(found) == expected, condition
    assert set(trials) == {
        *(interventions.WHOLE, interventions.CUT, interventions.WHOLE_REFLECTING, interventions.WHOLE_UNREFLECTING),
        *(interventions.FORCED, interventions.EMPTY, interventions.BLANK, interventions.SHUFFLED),
        *(interventions.after(0.0), interventions.after(0.5), interventions.removed(0.5), interventions.removed(1.0)),
    }


def test_a_thought_is_cut_where_its_first_reflection_begins(probed):
    trials = by_condition(probed)
    for item, cut in trials[interventions.CUT].items():
        whole = trials[interventions.WHOLE_REFLECTING][item]
        place = REFLECTION.place(whole.thought)
        assert place is not None and cut.thought.rstrip() == whole.thought[:place].rstrip()
        assert (cut.reflects, whole.reflects) == (False, True)
        assert cut.num_thought_tokens < whole.num_thought_tokens
        assert "</think>" not in whole.thought and "<answer>" not in whole.thought


def test_a_part_of_a_thought_is_its_beginning(probed):
    trials = by_condition(probed)
    for item, whole in trials[interventions.WHOLE].items():
        assert trials[interventions.after(0.0)][item].thought == ""
        half = trials[interventions.after(0.5)][item]
        assert whole.thought.startswith(half.thought)
        assert half.num_thought_tokens == round(whole.num_thought_tokens / 2)
        assert trials[interventions.removed(0.5)][item].thought.startswith(half.thought)
        assert trials[interventions.removed(1.0)][item].thought == whole.thought


def test_words_of_doubt_stand_where_the_thought_ended(probed):
    trials = by_condition(probed)
    rests = []
    for item, whole in trials[interventions.WHOLE_UNREFLECTING].items():
        assert trials[interventions.EMPTY][item].thought == whole.thought + SETTINGS.empty_phrase
        forced = trials[interventions.FORCED][item].thought
        assert forced.startswith(whole.thought + SETTINGS.phrase)
        rests.append(forced.removeprefix(whole.thought + SETTINGS.phrase))
    assert any(rests)  # the model goes on


def test_a_thought_answered_greedily_gives_the_answer_of_greedy_decoding(policy):
    """What a greedy completion answered by itself is what it answers when the same tokens are put before it."""
    greedy = replace(SETTINGS, sampling=Sampling(max_completion_length=80, temperature=0.0), num_generations=1)
    engine = TransformersEngine(batch_size=64)
    probed = intervene(policy, engine, EXAMPLES, settings=greedy, reflection=REFLECTION)
    whole = by_condition(probed)[interventions.WHOLE]
    compared = 0
    for one in probed.completed:
        letter = named_letter(one.rollout)
        if letter is not None and "</think>\n<answer>" in one.rollout.completion:
            assert whole[one.rollout.example.id].choice == letter
            compared += 1
    assert compared > len(EXAMPLES) / 2
    assert all(trial.correct == (trial.choice == trial.solution) for trial in probed.trials)


def test_an_image_that_is_taken_away_is_grey_and_of_the_same_size(probed, watched):
    own = {example.images[0].tobytes() for example in EXAMPLES}
    is_grey = [len(request["image"].getcolors(maxcolors=1_000_000)) == 1 for request in watched.requests]
    assert {request["image"].size for request in watched.requests} == {EXAMPLES[0].images[0].size}
    assert all(
        grey or request["image"].tobytes() in own for grey, request in zip(is_grey, watched.requests, strict=True)
    )
    kinds = Counter(
        (grey, bool(request["prefix"]), request["temperature"] > 0)
        for grey, request in zip(is_grey, watched.requests, strict=True)
    )
    num_items = len(EXAMPLES)
    # Thoughts over grey: from the start, and from the middle. Answers over grey: these two, and the whole thought's.
    assert kinds[True, False, True] == num_items and kinds[True, True, True] == num_items
    assert kinds[True, True, False] == 3 * num_items
    assert probed.num_without_partner == 0


def test_an_image_of_another_item_is_of_the_same_category_and_never_its_own():
    found = interventions._with_images_of_others(EXAMPLES)
    assert len(found) == len(EXAMPLES)
    for number, changed in found.items():
        assert (changed.id, changed.question) == (EXAMPLES[number].id, EXAMPLES[number].question)
        [origin] = [one for one in EXAMPLES if one.images == changed.images]
        assert origin.id != changed.id and origin.category == changed.category
    assert interventions._with_images_of_others(EXAMPLES[:4]) == {}  # one of each category
    smaller = replace(EXAMPLES[0], images=(EXAMPLES[0].images[0].resize((56, 56)),))
    assert set(interventions._with_images_of_others([smaller, *EXAMPLES[1:8]])) == {1, 2, 3, 5, 6, 7}  # 4 has only 0


def test_of_several_questions_about_one_image_none_gets_its_own_again():
    first, second = EXAMPLES[0], EXAMPLES[4]  # of one category
    again = replace(first, id="again", images=(first.images[0].copy(),))
    found = interventions._with_images_of_others([first, again, second])
    assert {number: changed.images for number, changed in found.items()} == {
        **{0: second.images, 1: second.images, 2: first.images}
    }
    assert interventions._with_images_of_others([first, again]) == {}


def test_an_answer_in_many_words_is_not_cut(base):
    words = "the one that stands " + "a little further to the left " * 20
    example = replace(EXAMPLES[0], choices=("left", words.strip()))
    engine = Scripted("It is left.")
    asked = []
    generate = engine.generate
    engine.generate = lambda *given, sampling, **more: (
        asked.append(sampling),
        generate(*given, sampling=sampling, **more),
    )[1]
    intervene(base, engine, [example], settings=SETTINGS, reflection=REFLECTION)
    [length] = {sampling.max_completion_length for sampling in asked if sampling.temperature == 0}
    assert length > len(base.tokenizer(f"(B) {words}</answer>")["input_ids"]) > 100


def test_what_cannot_fit_with_its_answer_is_refused_before_anything_is_sampled(base, monkeypatch):
    room = max(base.prompt_length(example) for example in EXAMPLES) + SETTINGS.sampling.max_completion_length
    monkeypatch.setattr(type(base), "context_length", room + 20)
    engine: Any = Watched(TransformersEngine(batch_size=4))
    with pytest.raises(ValueError, match="exceed the model's context"):
        intervene(base, engine, EXAMPLES, settings=SETTINGS, reflection=REFLECTION)
    assert not engine.requests


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"empty_phrase": " Wait. Yes, it is right."}, "--empty-phrase .* names a choice of .*, 'right'"),
        ({"phrase": " Is it not  LEFT?"}, "--phrase .* names a choice of .*, 'Left.'"),
    ],
)
def test_words_that_are_an_answer_are_not_put_in(settings, message):
    example = replace(EXAMPLES[0], choices=("Left.", "right"))
    with pytest.raises(ValueError, match=message):
        check_phrases(replace(SETTINGS, **settings), [EXAMPLES[0], example])


def test_the_words_put_in_by_default_are_no_answer_to_anything_usual():
    given = _parse(["probe", "runs/x/seed0"])
    settings = replace(SETTINGS, phrase=given.phrase, empty_phrase=given.empty_phrase)
    usual = ("yes", "no", "true", "false", "left", "right", "above", "below", "correct", "wrong", "equal", "1")
    check_phrases(settings, [replace(EXAMPLES[0], choices=usual), *EXAMPLES])
    with pytest.raises(ValueError, match="names a choice"):
        check_phrases(settings, [replace(EXAMPLES[0], choices=("again", "let"))])


def test_the_same_seed_gives_the_same_trials_and_another_does_not(base, probed):
    engine = TransformersEngine(batch_size=32)
    again = intervene(base, engine, EXAMPLES, settings=SETTINGS, reflection=REFLECTION)
    assert again.trials == probed.trials
    other = intervene(base, engine, EXAMPLES, settings=replace(SETTINGS, seed=1), reflection=REFLECTION)
    assert [trial.thought for trial in other.trials] != [trial.thought for trial in probed.trials]


def test_an_answer_is_asked_for_after_a_thought_that_is_closed_once(base, probed, watched):
    asked = [request["prefix"] for request in watched.requests if request["temperature"] == 0]
    assert len(asked) == len(probed.trials)
    for prefix in asked:
        text = base.tokenizer.decode(prefix)
        assert text.endswith("</think>\n<answer>") and text.count("</think>") == text.count("<answer>") == 1


def test_a_thought_that_was_never_opened_is_not_closed():
    instruct = load_policy(ModelSource(name="nano", path=str(MODELS / "nano-instruct"), style="instruct"))
    for said, is_open in (("<think>It is left.", True), ("<answer>(A)</answer>", False), ("It is left.", False)):
        engine = Scripted(said)
        probed = intervene(instruct, engine, EXAMPLES[:2], settings=SETTINGS, reflection=REFLECTION)
        closed = {"</think>" in instruct.tokenizer.decode(prefix) for prefix in engine.answered}
        assert closed == {is_open} and probed.completed[0].is_open == is_open


def test_no_more_is_asked_than_was_announced(probed, watched):
    assert len(probed.trials) < len(watched.requests) <= num_requests(len(EXAMPLES), SETTINGS)


def test_an_engine_without_prefixes_is_refused_at_once(base):
    engine: Any = Watched(TransformersEngine(batch_size=4), takes_prefixes=False)
    with pytest.raises(ValueError, match="cannot go on from a partly written completion: use --rollout transformers"):
        intervene(base, engine, EXAMPLES, settings=SETTINGS, reflection=REFLECTION)
    assert not engine.requests


@pytest.mark.parametrize(
    ("text", "is_truncated", "answer"),
    [
        ("(A)</answer>", False, "(A)"),
        ("\n(A)\n</answer> and on and on", True, "(A)"),
        ("(A)", False, "(A)"),
        ("\n (A)\nUser: next", True, "(A)"),
        ("(A) and on and on", True, None),
        ("", False, ""),
        ("</answer>(A)", False, ""),
    ],
)
def test_a_forced_answer_ends_somewhere(text, is_truncated, answer):
    assert forced_answer(text, is_truncated=is_truncated) == answer


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_generations", 0), ("fractions", (0.0, 0.5)), ("fractions", (0.5, 0.0, 1.0)), ("fractions", (0.0, 1.0, 2.0))],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match="generations|fractions"):
        replace(SETTINGS, **{name: value})
