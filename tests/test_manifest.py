"""A sealed folder is whole, and whatever happened to it since is found."""

from __future__ import annotations

import zlib

import pytest

from visual_r1 import manifest
from visual_r1.files import read_json


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "checkpoint-4"
    (folder / "global_step4").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 100)
    (folder / "global_step4" / "rank1.pt").write_bytes(b"optimizer")
    (folder / "empty").touch()
    manifest.seal(folder, manifest.describe(folder, manifest.list_files(folder)))
    return folder


def flip(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[12_345] ^= 1
    path.write_bytes(data)


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {
    "a flipped bit": (flip, "model.safetensors is not as it was written"),
    "a short file": (truncate, "model.safetensors has 25599 of 25600 bytes"),
    "a missing file": (lambda folder: (folder / "global_step4" / "rank1.pt").unlink(), "global_step4/rank1.pt is miss"),
    "no manifest": (lambda folder: (folder / manifest.MANIFEST).unlink(), "has no manifest.json"),
    "half a manifest": (lambda folder: (folder / manifest.MANIFEST).write_text('{"files": {"mo'), "cannot be read"),
}


def test_every_file_is_listed_with_its_size_and_crc(folder):
    files = read_json(folder / manifest.MANIFEST)["files"]
    assert list(files) == ["empty", "global_step4/rank1.pt", "model.safetensors"]
    assert files["global_step4/rank1.pt"] == {"bytes": 9, "crc32": f"{zlib.crc32(b'optimizer'):08x}"}


def test_a_sealed_folder_is_whole(folder):
    assert manifest.is_sealed(folder) and manifest.damage(folder) is None
    (folder / "note.txt").touch()  # what somebody has added takes nothing away
    assert manifest.damage(folder) is None


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(folder, name):
    do, message = DAMAGE[name]
    do(folder)
    assert message in (manifest.damage(folder) or "")
