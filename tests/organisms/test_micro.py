"""The second organism: what its world keeps back, what its processor makes of a picture, and its first steps."""

from __future__ import annotations

import random
from dataclasses import asdict, replace

import numpy as np
import pyarrow.parquet
import pytest

from visual_r1.cli import main
from visual_r1.config import compose_config
from visual_r1.datasets.spatial import Spatial
from visual_r1.experiment import prepare, run
from visual_r1.files import read_json
from visual_r1.organisms import pretraining
from visual_r1.organisms.build import MICRO, build, build_trunk, read_record
from visual_r1.organisms.camera import Camera, Spot
from visual_r1.organisms.model import build_model, build_processor
from visual_r1.organisms.pretraining import Recipe, document_loss, read_exercises
from visual_r1.organisms.scenes import Scene, SceneObject, draw_scene
from visual_r1.organisms.tokenizer import END_OF_TEXT, build_tokenizer
from visual_r1.run_folder import RunFolder

TINY = Recipe(
    vision_steps=1,
    coordinate_steps=1,
    exercise_steps=1,
    dialogue_steps=1,
    instruct_steps=1,
    vision_scenes=2,
    scenes=2,
)
STEP = (
    "scale.num_threads=1",
    "scale.max_steps=1",
    "scale.prompts_per_step=2",
    "scale.num_generations=2",
    "scale.micro_batch_size=4",
    "scale.max_completion_length=8",
    "scale.train_size=8",
    "scale.benchmark_size=8",
    "scale.probe_size=4",
)


@pytest.fixture(scope="module")
def processor():
    return build_processor(build_tokenizer(eos_token=END_OF_TEXT, world=MICRO.world))


def test_a_level_camera_projects_by_similar_triangles():
    camera = Camera(height=2.0, pitch=0.0, focal=100.0, side=224)
    assert camera.project(1.0, 0.0, 4.0) == pytest.approx((112 + 25, 112 + 50))
    assert camera.project(1.0, 0.0, 8.0) == pytest.approx((112 + 12.5, 112 + 25))


def test_a_camera_that_looks_down_sees_each_place_where_it_draws_it():
    camera = MICRO.world.camera
    assert camera is not None and camera.pitch > 0
    ground = camera.ground()
    for row, column in ((223, 0), (150, 40), (90, 200)):
        right, ahead = ground[row, column]
        # The middle of a pixel is half a pixel in.
        assert camera.project(right, 0.0, ahead) == pytest.approx((column + 0.5, row + 0.5))
    near, far = (camera.project(0.0, 0.0, ahead)[1] for ahead in (3.0, 6.0))
    assert near > far  # what is near stands lower in the picture


def test_the_same_solid_is_half_as_wide_at_twice_the_depth():
    camera = MICRO.world.camera
    assert camera is not None
    depths, widths = [], []
    for ahead in (2.5, 7.0):
        left, right = (camera.project(side, 0.0, ahead)[0] for side in (-0.3, 0.3))
        depths.append(camera.depth(0.0, ahead))
        widths.append(right - left)
    assert widths[0] / widths[1] == pytest.approx(depths[1] / depths[0])
    assert widths[0] > 1.5 * widths[1]


@pytest.fixture(scope="module")
def scenes():
    rng = random.Random(0)
    return [draw_scene(rng, MICRO.world) for _ in range(60)]


def test_things_cover_each_other_and_none_is_hidden(scenes):
    shares = [share for scene in scenes for share in scene.visible_shares()]
    assert min(shares) >= 0.4
    covered = [share for share in shares if share < 0.9]
    assert len(covered) > len(shares) / 20
    for scene in scenes:
        nearest = min(range(len(scene.objects)), key=lambda index: scene.objects[index].along("d"))
        assert scene.visible_shares()[nearest] == 1.0


def test_the_nearer_one_covers_the_farther_one():
    things = []
    for color, ahead in (("red", 3.0), ("blue", 3.8)):
        spot = Spot(right=0.0, ahead=ahead, width=0.7)
        camera = MICRO.world.camera
        assert camera is not None
        x, y = camera.project(0.0, 0.35, ahead)
        things.append(SceneObject(color, "cube", x, y, 1.0, spot, MICRO.world))
    near, far = things
    pictures = [Scene(order).render() for order in ((near, far), (far, near))]
    assert pictures[0].tobytes() == pictures[1].tobytes()  # whatever stands first in the list
    red, green, blue = np.asarray(pictures[0])[int(near.y), int(near.x)].tolist()
    assert red > 2 * blue and red > 2 * green
    shown = dict(zip(("red", "blue"), Scene((near, far)).visible_shares(), strict=True))
    assert shown["red"] == 1.0 and shown["blue"] < 1.0


@pytest.mark.parametrize("split", ["pretrain", "train", "probe", "test", "test_new"])
def test_combinations_kept_back_are_shown_by_their_own_split_alone(split):
    data = Spatial(split=split, size=12, world="micro")
    scenes = [data.draw(index)[0] for index in range(len(data))]
    kept_back = [(thing.color, thing.shape) in MICRO.world.new_pairs for scene in scenes for thing in scene.objects]
    assert all(kept_back) if split == "test_new" else not any(kept_back)


def test_a_picture_is_64_tokens_and_a_name_a_word_each(processor):
    picture = Spatial(split="probe", size=1, world="micro")[0].images[0]
    assert processor.image_processor(images=[picture])["image_grid_thw"].prod() // 4 == 64
    words = [f" {word}" for word in (*MICRO.world.colors, *MICRO.world.shapes)]
    assert [len(ids) for ids in processor.tokenizer(words)["input_ids"]] == [1] * len(words)


def test_it_has_between_10_and_30_million_parameters(processor):
    model = build_model(processor.tokenizer, seed=0, architecture=MICRO.architecture)
    assert 10e6 < model.num_parameters() < 30e6


def test_its_trunk_is_built_under_its_name_and_refused_to_nano(tmp_path):
    trunk = build_trunk(tmp_path, recipe=TINY, organism=MICRO)
    assert trunk.name == "micro-trunk"
    with pytest.raises(ValueError, match="a trunk of micro, asked for is nano"):
        build(tmp_path, recipe=TINY, trunk=trunk)


def test_it_learns_to_say_where_things_are(processor):
    model = build_model(processor.tokenizer, seed=0, architecture=MICRO.architecture)
    recipe = replace(TINY, coordinate_steps=12, exercise_steps=0, learning_rate=4e-3)
    losses = []

    def follow(forward, format, scenes, documents):
        loss = document_loss(forward, format, scenes, documents)
        losses.append(loss.item())
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "document_loss", follow)
        read_exercises(model, processor, recipe=recipe, seed=0, world=MICRO.world)
    assert losses[0] > 5 and sum(losses[-2:]) / 2 < 0.8 * losses[0]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A micro of a few steps, by the command that a user types."""
    out = tmp_path_factory.mktemp("models")
    steps = [f"{name}={value}" for name, value in asdict(TINY).items() if name != "mixture"]
    assert main(["organism", "build", str(out), "--organism", "micro", *steps]) == 0
    return out


def test_a_run_on_it_ends_with_its_numbers(built, tmp_path):
    assert read_record(built / "micro-base")["organism"] == "micro"
    typed = (f"model={built / 'micro-base'}", "model.style=base", "name=first", f"runs_dir={tmp_path}")
    run(prepare(compose_config([*typed, "dataset=spatial_micro", "benchmark=spatial_micro", *STEP])))
    folder = RunFolder(tmp_path / "first" / "seed0")
    assert folder.is_finished
    summary = read_json(folder.summary)
    assert (summary["benchmark"], summary["num_items"], summary["steps"]) == ("spatial_micro", 8, 1)
    rows = folder.read_metrics()
    assert [row["step"] for row in rows] == [0, 1] and "probe/accuracy" in rows[0]


def test_combinations_that_it_has_not_seen_are_a_benchmark_of_their_own(built, tmp_path):
    instruct = (f"model={built / 'micro-instruct'}", "model.style=instruct")
    typed = (*instruct, "name=new", f"runs_dir={tmp_path}", "method=eval")
    run(prepare(compose_config([*typed, "dataset=spatial_micro", "benchmark=spatial_micro_new", *STEP])))
    rows = pyarrow.parquet.read_table(RunFolder(tmp_path / "new" / "seed0").evaluation_items).to_pylist()
    asked = " ".join(f"{row['question']} {row['choices']}" for row in rows)
    assert any(f"{color} {shape}" in asked for color, shape in MICRO.world.new_pairs)
