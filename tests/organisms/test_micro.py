"""The second organism: what its world keeps back, what its processor makes of a picture, and its first steps."""

from __future__ import annotations

import pytest

from visual_r1.datasets.spatial import Spatial
from visual_r1.organisms.build import MICRO, build, build_trunk
from visual_r1.organisms.camera import Camera
from visual_r1.organisms.model import build_model, build_processor
from visual_r1.organisms.pretraining import Recipe
from visual_r1.organisms.tokenizer import END_OF_TEXT, build_tokenizer


@pytest.fixture(scope="module")
def processor():
    return build_processor(build_tokenizer(eos_token=END_OF_TEXT, world=MICRO.world))


def test_a_level_camera_projects_by_similar_triangles():
    camera = Camera(height=2.0, pitch=0.0, focal=100.0, side=224)
    assert camera.project(1.0, 0.0, 4.0) == pytest.approx((112 + 25, 112 + 50))
    assert camera.project(1.0, 0.0, 8.0) == pytest.approx((112 + 12.5, 112 + 25))


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
    tiny = Recipe(vision_steps=1, coordinate_steps=1, exercise_steps=1, dialogue_steps=1, vision_scenes=2, scenes=2)
    trunk = build_trunk(tmp_path, recipe=tiny, organism=MICRO)
    assert trunk.name == "micro-trunk"
    with pytest.raises(ValueError, match="a trunk of micro, asked for is nano"):
        build(tmp_path, recipe=tiny, trunk=trunk)
