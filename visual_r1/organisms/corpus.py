"""What nano reads before reinforcement learning: captions, worked exercises, and dialogues that mostly guess.

The mixture is built so that the base model can do more than it shows. Exercises teach careful reading, always behind a
self-correcting phrase. Dialogues, under the prompts that reinforcement learning will use, are mostly hasty: direct
guesses, coarse looks, idle talk, and now and then a reflection with or without a second look.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from string import ascii_uppercase

from visual_r1.organisms.questions import CATEGORIES, Question, ask, num_choices
from visual_r1.organisms.scenes import Scene, SceneObject

REFLECTIONS = (
    " Wait, let me check again.",
    " Hmm, let me recheck this.",
    " Wait, I should verify this.",
    " Let me double-check.",
    " Wait, I need to check again.",
)
EMPTY_CHECKS = (" Yes, it is right.", " I see the same thing.", " Yes, that is fine.")
_RAMBLES = (
    " This is a nice picture.",
    " I like the {name}.",
    " The light is nice.",
    " I see a {name}.",
    " The {name} is nice.",
    " And so on.",
)


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Shares of the corpus; the seven ways of answering add up to one."""

    direct: float = 0.44
    """Dialogues that answer at once: the habit reinforcement learning has to overcome."""
    coarse: float = 0.27
    """Dialogues that compare halves of the picture: a reasoning that is often a tie."""
    careful: float = 0.0
    """Dialogues that read coordinates without reflecting first. Zero: with another road to careful reading,
    reinforcement learning takes that shorter one and reflection fades."""
    reflective: float = 0.05
    """Dialogues that reflect and then read carefully: rare, so that there is something to amplify."""
    harmful: float = 0.0
    """Dialogues that reflect and then misread, so that the check ends at a wrong answer. Zero: for studies."""
    empty: float = 0.03
    """Dialogues that reflect and look at nothing: the words alone must not pay."""
    rambling: float = 0.21
    """Dialogues that talk of something else: length alone must not pay."""
    closed_tags: float = 0.40
    """Share of dialogues with both tags: the most common ending, so that greedy decoding is well formed."""
    unreadable: float = 0.08
    """Share of a dialogue's closed answers that are a sentence, which names no choice to a strict parser."""
    first_right_of_two: float = 0.55
    """How often, between two choices, the first guess of a thought that is then checked is right."""
    first_right_of_four: float = 0.40
    """The same among four choices."""
    slip: float = 0.03
    """How often a careful reading misreads one number, or misses one object."""
    second_check: float = 0.15
    """How often a careful reading is followed by an empty check: reflection may come twice."""

    def __post_init__(self) -> None:
        total = self.direct + self.careful + self.coarse + self.reflective + self.harmful + self.empty + self.rambling
        if abs(total - 1) > 1e-9:
            raise ValueError(
                f"the shares of the ways of answering add up to {total:g}, expected 1: change another one too"
            )


@dataclass(frozen=True)
class Thought:
    """A reasoning and the choice that it ends at."""

    text: str
    """Begins with a blank, as every sentence after the first does."""
    choice: int


def ask_any(rng: random.Random, scene: Scene) -> Question:
    """A question of random category and answer position that the scene allows."""
    while True:
        category = rng.choice(CATEGORIES)
        question = ask(rng, scene, category, position=rng.randrange(num_choices(category)))
        if question is not None:
            return question


def coordinates(rng: random.Random, scene: Scene) -> str:
    """A text that names the cells of each object, in random order."""
    things = rng.sample(scene.objects, len(scene.objects))
    return "".join(f" The {thing.name}: {_cells(thing)}." for thing in things).strip()


def caption(rng: random.Random, scene: Scene) -> str:
    """A description of the scene that mixes exact cells and coarse places."""
    things = rng.sample(scene.objects, len(scene.objects))
    sentences = [f" This image has {len(things)} objects."] if rng.random() < 0.3 else []
    for thing in things:
        if rng.random() < 0.75:
            sentences.append(f" The {thing.name}: {_cells(thing)}.")
        else:
            sentences.append(f" The {thing.name} is {_place_words(thing)}.")
    return "".join(sentences).strip()


def exercise(rng: random.Random, question: Question, mixture: Mixture) -> str:
    """The worked solution of an exercise: a first pass, a reflection, a careful reading, both tags."""
    thought = reflective(rng, question, mixture)
    return thought.text.strip() + _closed(_name(question, thought.choice))


def dialogue(rng: random.Random, question: Question, mixture: Mixture) -> str:
    """One of the ways in which a dialogue may answer, from inside the thought to the end of the text."""
    # Ways that a study trades against each other stand side by side: with the same random stream, two mixtures then
    # give another way only to those dialogues that one of them has more of.
    ways: dict[Callable[[random.Random, Question, Mixture], Thought], float] = {
        direct: mixture.direct,
        careful: mixture.careful,
        coarse: mixture.coarse,
        reflective: mixture.reflective,
        harmful: mixture.harmful,
        empty: mixture.empty,
        rambling: mixture.rambling,
    }
    way = rng.choices(list(ways), list(ways.values()))[0]
    thought = way(rng, question, mixture)
    if rng.random() < mixture.closed_tags:
        answer = _name(question, thought.choice)
        if rng.random() < mixture.unreadable:
            answer = f"The answer is {answer}"
        return thought.text.strip() + _closed(answer)
    name = _name(question, thought.choice)
    endings = {
        f" The answer is {name}.": 0.50,
        f"</think>\n{name}": 0.15,
        f"</think>\nThe answer is {name}.": 0.15,
        f"\n<answer>{name}": 0.10,
        "": 0.10,
    }
    return thought.text.strip() + rng.choices(list(endings), list(endings.values()))[0]


def terse(rng: random.Random, question: Question, *, looks: float) -> str:
    """The completion that nano-instruct imitates: right, in the tags of the instruct prompt, one to three sentences.

    ``looks`` is the probability of a coarse look before the answer.
    """
    write = _look_coarsely if rng.random() < looks else _conclude_at_once
    thought = write(rng, question, question.answer)
    return f"<think>{thought.text.strip()}{_closed(_name(question, question.answer))}"


def direct(rng: random.Random, question: Question, mixture: Mixture) -> Thought:
    """The answer, put in one sentence."""
    return _conclude_at_once(rng, question, question.answer)


def coarse(rng: random.Random, question: Question, mixture: Mixture) -> Thought:
    """Compares halves of the picture; where both objects lie in the same one, it says what is right all the same."""
    return _look_coarsely(rng, question, question.answer)


def hasty(rng: random.Random, question: Question, mixture: Mixture) -> Thought:
    """The first pass of a thought that is checked afterwards: a guess, or a coarse look that guesses at a tie."""
    guess = _guess(rng, question, mixture)
    if rng.random() < 0.45:
        return _conclude_at_once(rng, question, guess)
    return _look_coarsely(rng, question, guess)


def _look_coarsely(rng: random.Random, question: Question, at_tie: int) -> Thought:
    if question.category == "Count":
        return _conclude(f" I see some {question.shape}s in the image.", question, at_tie)
    if question.category == "Distance":
        anchor, *pair = question.objects
        text = "".join(f" The {thing.name} is {_place_words(thing)}." for thing in question.objects)
        first, second = (_halves_apart(anchor, thing) for thing in pair)
        choice = at_tie if first == second else int(second < first)
        return _conclude(text, question, choice)
    words = {"x": ("left", "right"), "y": ("top", "bottom"), "d": ("near", "far")}[question.axis]
    form = " The {} is on the {} side."
    if question.category == "Depth":
        form = " The {} looks {}."
        words = ("far", "near") if question.axis == "y" else words
    halves = [_half(thing, question.axis, words) for thing in question.objects]
    text = "".join(form.format(thing.name, half) for thing, half in zip(question.objects, halves, strict=True))
    return _conclude(text, question, at_tie if halves[0] == halves[1] else question.answer)


def careful(rng: random.Random, question: Question, mixture: Mixture) -> Thought:
    """Reads numbers off the picture, computes with them and concludes; may slip in one number and follow it."""
    is_slip = rng.random() < mixture.slip
    if question.category == "Count":
        return _count_one_by_one(rng, question, is_slip, mixture)
    if question.category == "Distance":
        return _add_up_distances(rng, question, is_slip)
    return _compare_readings(rng, question, is_slip)


def reflective(rng: random.Random, question: Question, mixture: Mixture) -> Thought:
    """A hasty first pass, a reflection, and the careful reading that decides."""
    first = hasty(rng, question, mixture)
    second = careful(rng, question, mixture)
    text = first.text + rng.choice(REFLECTIONS) + second.text
    if rng.random() < mixture.second_check:
        text += rng.choice(REFLECTIONS) + rng.choice(EMPTY_CHECKS)
    return Thought(text, second.choice)


def harmful(rng: random.Random, question: Question, mixture: Mixture) -> Thought:
    """A right first pass, a reflection, and a reading that mixes objects up and so ends at another choice."""
    first = direct(rng, question, mixture) if rng.random() < 0.5 else coarse(rng, question, mixture)
    reflection = rng.choice(REFLECTIONS)
    if question.category == "Count":
        # A wrong total may be none of the choices, and the guess that then decides may be right.
        while (second := _count_one_by_one(rng, question, True, mixture)).choice == question.answer:
            pass
    else:
        *anchor, one, other = question.objects
        swapped = (*anchor, one.moved_to(other), other.moved_to(one))
        second = careful(rng, replace(question, objects=swapped), replace(mixture, slip=0.0))
    return Thought(first.text + reflection + second.text, second.choice)


def empty(rng: random.Random, question: Question, mixture: Mixture) -> Thought:
    """A hasty pass and a reflection that looks at nothing and keeps the first choice."""
    first = direct(rng, question, mixture) if rng.random() < 0.5 else coarse(rng, question, mixture)
    return Thought(first.text + rng.choice(REFLECTIONS) + rng.choice(EMPTY_CHECKS), first.choice)


def rambling(rng: random.Random, question: Question, mixture: Mixture) -> Thought:
    """Two to nine sentences beside the point, and the answer: as right as elsewhere, and no easier to see for them."""
    names = [thing.name for thing in question.objects]
    text = "".join(rng.choice(_RAMBLES).format(name=rng.choice(names)) for _ in range(rng.randint(2, 9)))
    return Thought(text, question.answer)


def _compare_readings(rng: random.Random, question: Question, is_slip: bool) -> Thought:
    axis = question.axis
    readings = [thing.cell(axis) for thing in question.objects]
    if is_slip:
        _misread(rng, readings, question.objects[0].world.num_cells[axis])
    sign = _sign(*readings)
    first, second = question.objects
    text = f" The {first.name}: {axis}{readings[0]}. The {second.name}: {axis}{readings[1]}"
    text += f" ({readings[0]}{sign}{readings[1]})."
    if sign == "=":
        choice = _coin(rng, question)
    elif question.category == "Relation":
        less, more = ("left", "right") if axis == "x" else ("above", "below")
        choice = question.choices.index(less if sign == "<" else more)
    else:
        choice = int(sign == ("<" if axis == "y" else ">"))  # the larger y is nearer, and the smaller d
    return _conclude(text, question, choice)


def _add_up_distances(rng: random.Random, question: Question, is_slip: bool) -> Thought:
    world = question.objects[0].world
    across, along = world.plane_axes
    readings = [thing.cell(axis) for thing in question.objects for axis in world.plane_axes]
    if is_slip:
        _misread(rng, readings, world.num_cells[across])
    (x, y), *pair = zip(readings[::2], readings[1::2], strict=True)
    text = f" The {question.objects[0].name}: {across}{x} {along}{y}."
    sums = []
    for thing, (column, row) in zip(question.objects[1:], pair, strict=True):
        right, down = abs(column - x), abs(row - y)
        sums.append(right + down)
        text += f" The {thing.name}: {across}{column} {along}{row} ({right}+{down}={right + down}"
        text += ")." if len(sums) == 1 else f", {sums[1]}{_sign(*sums[::-1])}{sums[0]})."
    return _conclude(text, question, _coin(rng, question) if sums[0] == sums[1] else int(sums[1] < sums[0]))


def _count_one_by_one(rng: random.Random, question: Question, is_slip: bool, mixture: Mixture) -> Thought:
    """Names every object and numbers those that count; a slip misses one of these, or numbers one where none counts.

    The order is random as in captions, which teach to name what has not been named yet.
    """
    things = rng.sample(question.objects, len(question.objects))
    counted = [thing for thing in things if thing.shape == question.shape]
    if is_slip and counted:
        missed = rng.choice(counted)
        things.remove(missed)
        counted.remove(missed)
    elif is_slip:
        counted = [rng.choice(things)]
    text, count = "", 0
    for thing in things:
        count += thing in counted
        text += f" The {thing.name} ({count})." if thing in counted else f" The {thing.name}."
    total = str(count)
    choice = question.choices.index(total) if total in question.choices else _guess(rng, question, mixture)
    return _conclude(f"{text} No more.", question, choice)


def _conclude(text: str, question: Question, choice: int) -> Thought:
    words = _words(question, choice)
    sentence = {"Count": f" So there are {words}.", "Relation": f" So it is {words}."}
    return Thought(text + sentence.get(question.category, f" So {words} is closer."), choice)


def _conclude_at_once(rng: random.Random, question: Question, choice: int) -> Thought:
    # One opening prevails, so that the most likely first word of all is that of a direct answer.
    start = " It is " if rng.random() < 0.8 else rng.choice([" I think it is ", " I see, it is "])
    return Thought(f"{start}{_words(question, choice)}.", choice)


def _words(question: Question, choice: int) -> str:
    """A choice within a sentence; of two objects, the first or the second that the question names."""
    if question.category in ("Depth", "Distance"):
        return ("the first", "the second")[choice]
    return question.choices[choice]


def _name(question: Question, choice: int) -> str:
    """How an answer names a choice: by its letter, but a number by itself, which is no harder to read and no lookup."""
    return question.choices[choice] if question.category == "Count" else f"({ascii_uppercase[choice]})"


def _closed(answer: str) -> str:
    return f"</think>\n<answer>{answer}</answer>"


def _guess(rng: random.Random, question: Question, mixture: Mixture) -> int:
    right = mixture.first_right_of_two if len(question.choices) == 2 else mixture.first_right_of_four
    if rng.random() < right:
        return question.answer
    return rng.choice([i for i in range(len(question.choices)) if i != question.answer])


def _coin(rng: random.Random, question: Question) -> int:
    return rng.randrange(len(question.choices))


def _misread(rng: random.Random, readings: list[int], num_cells: int) -> None:
    """Replaces one reading, in place, by another number of the axis at most three away."""
    index = rng.randrange(len(readings))
    truth = readings[index]
    readings[index] = rng.choice([n for n in range(max(0, truth - 3), min(num_cells - 1, truth + 3) + 1) if n != truth])


def _sign(first: int, second: int) -> str:
    return "<" if first < second else ">" if first > second else "="


def _cells(thing: SceneObject) -> str:
    return " ".join(f"{axis}{thing.cell(axis)}" for axis in thing.world.num_cells)


def _half(thing: SceneObject, axis: str, words: tuple[str, str]) -> str:
    return words[thing.along(axis) >= thing.world.middle(axis)]


def _place_words(thing: SceneObject) -> str:
    return f"{_half(thing, 'y', ('top', 'bottom'))} {_half(thing, 'x', ('left', 'right'))}"


def _halves_apart(first: SceneObject, second: SceneObject) -> int:
    middle = first.world.side / 2
    return ((first.x < middle) != (second.x < middle)) + ((first.y < middle) != (second.y < middle))
