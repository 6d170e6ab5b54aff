"""VSR: the fork's words, COCO's images by name, and one line that says which images are missing and where they are."""

from __future__ import annotations

import json

import pytest

from tests.tables import photograph
from visual_r1.config import build, compose_config
from visual_r1.datasets.vsr import CATEGORIES, Vsr

# The first rows of vsr_random's test split, then one that makes up the number.
CAPTIONS = (
    ("000000451431.jpg", "train2017", "The person is inside the refrigerator.", 1, "inside"),
    ("000000287427.jpg", "train2017", "The cake consists of the dog.", 1, "consists of"),
    ("000000050403.jpg", "val2017", "The teddy bear is far from the person.", 0, "far from"),
)


def rows():
    """As the hub has them: ``vote_*`` are texts there."""
    return [
        {
            "image": image,
            "image_link": f"http://images.cocodataset.org/{folder}/{image}",
            "caption": caption,
            "label": label,
            "relation": relation,
            "annotator_id": 29,
            "vote_true_validator_id": "[2, 9]",
            "vote_false_validator_id": "[3]",
            "reference_frame": None,
        }
        for image, folder, caption, label, relation in CAPTIONS
    ]


@pytest.fixture
def images(tmp_path):
    """COCO's folders with the three images."""
    for number, (name, folder, *_) in enumerate(CAPTIONS):
        (tmp_path / "coco" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "coco" / folder / name).write_bytes(photograph(number))
    return str(tmp_path / "coco")


@pytest.fixture
def write(tmp_path):
    def write(lines, split="test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return str(tmp_path)

    return write


def test_a_statement_is_asked_in_the_forks_words(write, images):
    example = Vsr(path=write(rows()), split="test", image_root=images)[0]
    assert example.question == (
        'Please analyze the provided image. Does the statement "The person is inside the refrigerator." accurately '
        "describes what you see? Choose from (A) True or (B) False."
    )
    assert (example.choices, example.solution, example.solution_as_written) == (("True", "False"), "A", None)
    assert example.id == "vsr/test/0"


def test_label_1_is_true(write, images):
    examples = Vsr(path=write(rows()), split="test", image_root=images)
    assert [example.solution_text for example in examples] == ["True", "True", "False"]


def test_a_relation_belongs_to_one_of_the_papers_categories(write, images):
    examples = Vsr(path=write(rows()), split="test", image_root=images)
    assert [example.category for example in examples] == ["Topological", "Topological", "Proximity"]
    assert len(set(CATEGORIES.values())) == 7 and CATEGORIES["among"] == "Unallocated"


def test_an_unknown_relation_is_unallocated(write, images):
    changed = [{**rows()[0], "relation": "congruent"}]
    assert Vsr(path=write(changed), split="test", image_root=images)[0].category == "Unallocated"


def test_images_are_found_in_the_folder_itself_too(write, images, tmp_path):
    (tmp_path / "coco" / "val2017" / CAPTIONS[2][0]).rename(tmp_path / "coco" / CAPTIONS[2][0])
    assert Vsr(path=write(rows()), split="test", image_root=images)[2].images[0].size == (96, 96)


def test_choices_change_places(write, images):
    swapped = Vsr(path=write(rows()), split="test", image_root=images).rotated(1)[0]
    assert swapped.question.endswith("Choose from (A) False or (B) True.")
    assert (swapped.solution, swapped.solution_text) == ("B", "True")


def test_the_benchmark_reads_the_test_split(write, images):
    write(rows()[:1], split="train")
    overrides = ["benchmark=vsr", f"benchmark.path={write(rows())}", f"benchmark.examples.image_root={images}"]
    assert len(build(compose_config(overrides).benchmark.examples)) == 3


class TestMissingImages:
    def test_they_are_counted_in_one_line_with_the_fix(self, write, tmp_path):
        two_of_one = [*rows(), rows()[0]]
        with pytest.raises(ValueError, match="3 of 3 images are not in") as refused:
            Vsr(path=write(two_of_one), split="test", image_root=str(tmp_path / "nowhere"))
        message = str(refused.value)
        assert "the first is 000000451431.jpg" in message and "\n" not in message
        assert (
            "unzip http://images.cocodataset.org/zips/train2017.zip and http://images.cocodataset.org/zips/val2017.zip"
            in message
        )

    def test_only_the_archives_that_hold_them_are_named(self, write, images, tmp_path):
        (tmp_path / "coco" / "val2017" / CAPTIONS[2][0]).unlink()
        with pytest.raises(ValueError, match="1 of 3 images") as refused:
            Vsr(path=write(rows()), split="test", image_root=images)
        assert "zips/val2017.zip" in str(refused.value) and "train2017.zip" not in str(refused.value)

    def test_rows_that_are_not_read_need_none(self, write, images, tmp_path):
        (tmp_path / "coco" / "val2017" / CAPTIONS[2][0]).unlink()
        assert len(Vsr(path=write(rows()), split="test", image_root=images, size=2)) == 2

    def test_their_rows_can_be_skipped(self, write, images, tmp_path):
        (tmp_path / "coco" / "val2017" / CAPTIONS[2][0]).unlink()
        examples = Vsr(path=write(rows()), split="test", image_root=images, bad_rows="skip")
        assert [bad.id for bad in examples.bad] == ["vsr/test/2"] and "missing" in examples.bad[0].reason

    def test_no_folder_says_what_to_download(self, write):
        config = compose_config(["benchmark=vsr", f"benchmark.path={write(rows())}"])
        with pytest.raises(ValueError, match=r"image_root is not set.*train2017\.zip and val2017\.zip into one folder"):
            build(config.benchmark.examples)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": 2}, "label is 2, expected 0 or 1"),
        ({"label": "1"}, "label is '1', expected 0 or 1"),
        ({"caption": ""}, "caption is ''"),
        ({"relation": None}, "relation is None"),
        ({"image": None}, "image is None"),
    ],
)
def test_a_bad_row_is_named(write, images, change, reason):
    lines = rows()
    lines[1] |= change
    with pytest.raises(ValueError, match="1 bad row, the first is vsr/test/1: ") as refused:
        Vsr(path=write(lines), split="test", image_root=images)
    assert reason in str(refused.value) and "\n" not in str(refused.value)


def test_a_broken_image_is_named_when_it_is_read(write, images, tmp_path):
    examples = Vsr(path=write(rows()), split="test", image_root=images)
    (tmp_path / "coco" / "train2017" / CAPTIONS[1][0]).write_bytes(photograph(0)[:300])
    with pytest.raises(ValueError, match=r"^vsr/test/1: its image"):
        examples[1]


def test_a_missing_column_is_named(write, images):
    with pytest.raises(ValueError, match="no column 'caption'"):
        Vsr(
            path=write([{key: value for key, value in rows()[0].items() if key != "caption"}]),
            split="test",
            image_root=images,
        )


def test_an_unknown_split_is_refused(write, images):
    with pytest.raises(ValueError, match="no split 'validation', expected one of train, dev, test"):
        Vsr(path=write(rows()), split="validation", image_root=images)
