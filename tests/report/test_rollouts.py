"""The rollout browser's data: nothing lost of a text, nothing twice of an image, and a bound on both."""

from __future__ import annotations

import base64
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.finished_runs import write_run
from visual_r1.config import build, recorded
from visual_r1.datasets.table import Table
from visual_r1.metrics.reflection import Reflection
from visual_r1.report import rollouts
from visual_r1.report.rollouts import Sampled, browse, pieces, read_sampled, thumbnail
from visual_r1.report.runs import read_runs

REFLECTION = Reflection(phrases=("wait", "let me check"))


def browsed(tmp_path, examples_of=lambda node: build(recorded(node))):
    runs = read_runs([tmp_path]).runs
    return browse([(run, read_sampled(run)[0]) for run in runs], examples_of=examples_of)


def test_thought_answer_tags_and_phrases_are_told_apart():
    text = "It is 2. Wait, let me check.</think>\n<answer>2</answer>"
    assert pieces(text, opens_think=True, reflection=REFLECTION) == [
        *(["t", "It is 2. "], ["tr", "Wait"], ["t", ", "], ["tr", "let me check"], ["t", "."]),
        *(["g", "</think>"], ["o", "\n"], ["g", "<answer>"], ["a", "2"], ["g", "</answer>"]),
    ]


@pytest.mark.parametrize(
    "text", ["", "<answer>", "</think></think>wait<think>", "a <answer>b <think>wait", "<b>\U0001f914 wait"]
)
def test_pieces_put_together_are_the_completion(text):
    for opens_think in (True, False):
        found = pieces(text, opens_think=opens_think, reflection=REFLECTION)
        assert "".join(piece for _, piece in found) == text


def test_an_example_and_its_image_are_there_once_for_all_runs_and_steps(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / "a" / f"seed{seed}", seed=seed, is_finished=False)
    found = browsed(tmp_path)
    assert not found.left_out
    probe = [example for example in found.examples if example["id"].startswith("spatial/probe")]
    assert len(probe) == 16 and len({example["id"] for example in found.examples}) == len(found.examples)
    assert len(found.images) == sum(len(example["images"]) for example in found.examples) == len(found.examples)
    rows = [row for run in found.runs for step in run["steps"] for row in step["rows"] if row["s"] == "p"]
    assert len(rows) == 2 * 3 * 16 and {row["e"] for row in rows} == {found.examples.index(one) for one in probe}


def test_an_answer_that_changed_is_marked(tmp_path):
    write_run(tmp_path / "a" / "seed0", is_finished=False)
    (run,) = browsed(tmp_path).runs
    letters = [[row["c"] for row in step["rows"] if row["s"] == "p"] for step in run["steps"]]
    marks = [[row.get("ch", 0) for row in step["rows"] if row["s"] == "p"] for step in run["steps"]]
    assert marks[0] == [0] * 16 and any(marks[1])
    assert marks[1] == [int(one != other) for one, other in zip(letters[0], letters[1], strict=True)]


def test_a_data_set_that_is_not_here_costs_the_images_and_says_so(tmp_path):
    write_run(tmp_path / "a" / "seed0", is_finished=False)

    def missing(node):
        raise FileNotFoundError("no such table")

    found = browsed(tmp_path, missing)
    assert found.examples and not found.images
    assert {"no such table" in left.why for left in found.left_out} == {True}


@pytest.mark.parametrize(
    ("column", "values", "why"),
    [
        ("completion", pa.nulls(16, pa.string()), "16 of its 16 rows have no completion"),
        ("completion", pa.nulls(16), "16 of its 16 rows have no completion"),
        ("num_tokens", pa.array(["x"] * 16), "its column num_tokens holds string"),
        ("advantage", pa.array(["x"] * 16), "its column advantage holds string"),
        ("score/accuracy", pa.array([""] * 16), "its column score/accuracy holds string"),
        ("correct", None, "an older version wrote it, without correct"),
    ],
)
def test_a_step_whose_rollouts_are_damaged_is_left_out_and_named(tmp_path, column, values, why):
    run = write_run(tmp_path / "a" / "seed0")
    table = pq.read_table(run.completions_at(5)).slice(0, 16)
    table = table.drop_columns([column] if column in table.column_names else [])
    pq.write_table(table if values is None else table.append_column(column, values), run.completions_at(5))
    found, left_out = read_sampled(read_runs([tmp_path]).runs[0])
    assert [one.step for one in found] == [0, 10]
    assert [(one.what, one.why) for one in left_out] == [("completions/step_00005.parquet", why)]


def test_a_data_set_of_a_damaged_configuration_costs_the_images_and_says_so(tmp_path):
    node = {"_target_": "visual_r1.datasets.spatial.Spatial", "split": "probe", "size": 15.5}
    write_run(tmp_path / "a" / "seed0", is_finished=False, config={"dataset": {"name": "spatial", "probe": node}})
    found = browsed(tmp_path)
    assert found.examples and not found.images and "images of 16 examples" in {left.what for left in found.left_out}


def rows_of(ids):
    row = {"source": "probe", "completion": "", "correct": False, "num_tokens": 1}
    return [Sampled(step=0, rows=[{**row, "example_id": one} for one in ids])]


@pytest.mark.parametrize("has_ids", [True, False])
def test_images_are_found_by_id_where_it_is_no_place(tmp_path, has_ids):
    for number in range(6):
        Image.new("RGB", (28, 28), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
    names = [{"id": f"scene-{10 - number}"} if has_ids else {} for number in range(6)]
    row = {"question": "Is it red?", "choices": ["yes", "no"], "solution": "A"}
    lines = [json.dumps({**name, **row, "image": f"{number}.png"}) for number, name in enumerate(names)]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    table = Table(path=str(tmp_path / "own.jsonl"), part="train", probe_rows=3)
    write_run(tmp_path / "a" / "seed0", is_finished=False)
    (run,) = read_runs([tmp_path / "a"]).runs
    ids = [example.id for example in table]
    found = browse([(run, rows_of([*ids, "own/else"]))], examples_of=lambda node: table)
    assert [example["images"] for example in found.examples] == [[0], [1], [2], []]
    assert found.images == [thumbnail(image) for example in table for image in example.images]
    (left,) = found.left_out
    assert left.what == "images of 1 example" and "own/else" in left.why


def test_what_is_too_much_is_thinned_evenly_and_said(tmp_path, monkeypatch):
    write_run(tmp_path / "a" / "seed0", is_finished=False, steps=tuple(range(0, 40, 2)))
    monkeypatch.setattr(rollouts, "MAX_COMPLETIONS", 100)
    monkeypatch.setattr(rollouts, "MAX_IMAGE_BYTES", 5_000)
    found = browsed(tmp_path)
    (run,) = found.runs
    assert len(run["steps"]) == rollouts.MAX_STEPS and run["steps"][0]["step"] == 0 and run["steps"][-1]["step"] == 38
    assert sum(len(step["rows"]) for step in run["steps"]) <= 120
    assert sum(map(len, found.images)) < 8_000
    assert {left.what for left in found.left_out} == {
        *("rollouts of 4 steps", "probe examples and training groups", "further images")
    }


def test_a_thumbnail_is_small_and_a_drawing_stays_sharp():
    drawing = Image.new("RGB", (112, 112), "white")
    drawing.paste("red", (20, 20, 61, 61))
    kind, _, data = thumbnail(drawing).partition(";base64,")
    assert kind == "data:image/webp" and Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == drawing.tobytes()
    photo = Image.effect_noise((1600, 800), 80)
    kind, _, data = thumbnail(photo).partition(";base64,")
    assert kind == "data:image/webp" and Image.open(io.BytesIO(base64.b64decode(data))).size == (320, 160)
