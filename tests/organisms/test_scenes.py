"""The drawn world and CV-Bench's wording."""

from __future__ import annotations

import random

import pytest

from visual_r1.organisms.questions import CATEGORIES, ask, cells_apart
from visual_r1.organisms.scenes import NANO, WORLDS, Scene, SceneObject, draw_scene

SCENE = Scene(
    (
        SceneObject("red", "circle", x=21.0, y=35.0, radius=5.0),  # column 1, row 2
        SceneObject("blue", "square", x=63.0, y=49.0, radius=5.0),  # column 4, row 3
        SceneObject("green", "circle", x=21.0, y=91.0, radius=5.0),  # column 1, row 6
    )
)


def test_cells_and_image_tokens_by_hand():
    red, blue, green = SCENE.objects
    assert (red.column, red.row, red.image_token) == (1, 2, 4)
    assert (blue.column, blue.row, blue.image_token) == (4, 3, 6)
    assert (green.column, green.row, green.image_token) == (1, 6, 12)
    assert cells_apart(red, blue) == 4


def test_no_two_objects_share_a_colour_or_an_image_token():
    rng = random.Random(0)
    for _ in range(200):
        things = draw_scene(rng).objects
        assert 3 <= len(things) <= 6
        assert len({thing.color for thing in things}) == len({thing.image_token for thing in things}) == len(things)


def test_a_picture_shows_each_object_in_its_colour():
    picture = SCENE.render()
    assert picture.size == (112, 112)
    for thing in SCENE.objects:
        assert picture.getpixel((int(thing.x), int(thing.y))) == NANO.colors[thing.color]


def test_the_bucket_ignores_jitter_and_order_but_not_cells():
    red, blue, green = SCENE.objects
    jittered = SceneObject("red", "circle", x=22.5, y=34.0, radius=5.2)
    moved = SceneObject("red", "circle", x=35.0, y=35.0, radius=5.0)
    assert Scene((green, jittered, blue)).bucket == SCENE.bucket
    assert Scene((moved, blue, green)).bucket != SCENE.bucket


def _first(category: str, wanted: str, position: int = 0) -> str:
    """The question of this category that begins with the wanted words, drawn until it comes."""
    for seed in range(500):
        question = ask(random.Random(seed), SCENE, category, position=position)
        if question is not None and wanted in question.text:
            return question.text
    raise AssertionError(f"no {category} question with {wanted!r}")


def test_the_wording_is_cv_benchs():
    assert _first("Relation", "(A) left") == (
        "Considering the relative positions of the red circle and the blue square in the image provided, where is the "
        "red circle located with respect to the blue square? Select from the following choices.\n(A) left\n(B) right"
    )
    assert "(A) above\n(B) below" in _first("Relation", "(A) above")
    assert _first("Depth", "the blue square or the red circle") == (
        "Which object is closer to the camera taking this photo, the blue square or the red circle? "
        "Select from the following choices.\n(A) blue square\n(B) red circle"
    )
    # From blue it is 44.3 pixels to red and 59.4 to green; from red or green the two others are too evenly far to ask.
    assert _first("Distance", "Which object") == (
        "Estimate the real-world distances between objects in this image. Which object is closer to the blue square, "
        "the red circle or the green circle? Select from the following choices.\n(A) red circle\n(B) green circle"
    )
    assert _first("Count", "circles", position=2).startswith(
        "How many circles are in the image? Select from the following choices.\n(A) "
    )
    assert "\n(C) 2\n" in _first("Count", "circles", position=2)


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("category", CATEGORIES)
def test_the_right_choice_stands_where_it_was_asked_to(category, world):
    rng, num_asked = random.Random(0), 0
    for _ in range(100 if world.camera is None else 30):
        scene = draw_scene(rng, world)
        question = ask(rng, scene, category, position=1)
        if question is None:
            continue
        num_asked += 1
        assert question.answer == 1
        named = {thing.name: thing for thing in scene.objects}
        right, wrong = question.choices[1], question.choices[0]
        if category == "Count":
            assert int(right) == sum(thing.shape == question.shape for thing in scene.objects)
        elif category == "Relation":
            first, second = question.objects
            truth = {"left": first.x < second.x, "right": first.x > second.x}
            truth |= {"above": first.y < second.y, "below": first.y > second.y}
            assert truth[right] and not truth[wrong]
        elif category == "Depth":
            if world.camera is None:
                assert named[right].y > named[wrong].y
            else:
                assert world.camera.distance(named[right].spot) < world.camera.distance(named[wrong].spot)
        else:
            anchor = question.objects[0]
            assert cells_apart(anchor, named[right]) < cells_apart(anchor, named[wrong])
            assert anchor.apart(named[right]) < anchor.apart(named[wrong])
    assert num_asked > 10


def test_an_unknown_category_is_refused():
    with pytest.raises(ValueError, match="Color"):
        ask(random.Random(0), SCENE, "Color", position=0)
