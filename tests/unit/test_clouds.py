"""Point clouds on disk: packed, in folders, alone; labels by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeq.data import open_clouds
from edgeq.data.clouds import decode
from edgeq.errors import DataError


def packed(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def some(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 9, 3)).astype(np.float16)


def test_names_are_matched_with_the_network(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.npz", points=some(), label=np.array(["cup", "bed", "cup"]))
    assert [i.label for i in open_clouds(path, role="evaluation").items] == [1, 0, 1]
    source = open_clouds(path, role="evaluation").for_classes(("bed", "car", "cup"))
    assert [i.label for i in source.items] == [2, 0, 2]
    assert source.classes == ("bed", "car", "cup")
    np.testing.assert_array_equal(source.read(1), some()[1].astype(np.float32))
    numbered = packed(tmp_path / "b.npz", points=some(), label=np.array([1, 0, 1]), classes=np.array(["bed", "cup"]))
    assert [i.label for i in open_clouds(numbered, role="evaluation").for_classes(("cup", "bed")).items] == [0, 1, 0]
    unnamed = packed(tmp_path / "c.npz", points=some(), label=np.array([1, 0, 1]))
    assert [i.label for i in open_clouds(unnamed, role="evaluation").for_classes(("cup", "bed")).items] == [1, 0, 1]


def test_folders_are_classes(tmp_path: Path) -> None:
    for name, count in (("cup", 2), ("bed", 1), ("empty", 0)):
        (tmp_path / name).mkdir()
        for i in range(count):
            np.savetxt(tmp_path / name / f"{i}.txt", some()[i])
    source = open_clouds(tmp_path, role="evaluation")
    assert source.classes == ("bed", "cup")
    assert [(i.id, i.label) for i in source.items] == [("bed/0.txt", 0), ("cup/0.txt", 1), ("cup/1.txt", 1)]
    assert source.read(2).shape == (9, 3)
    np.save(tmp_path / "x.npy", some()[0])
    assert [i.label for i in open_clouds(tmp_path, role="calibration").items] == [None] * 4
    assert len(open_clouds(tmp_path / "x.npy", role="calibration")) == 1
    single = packed(tmp_path / "y.npz", points=some()[0])
    assert open_clouds(single, role="calibration").read(0).shape == (9, 3)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"jpeg": np.zeros(3)}, "EQ-D831"),
    ({"points": np.zeros(3)}, "EQ-D831"),
    ({"points": some()[:0]}, "EQ-D831"),
    ({"points": some(), "label": np.array([1, 2])}, "EQ-D831"),
    ({"points": some(), "label": np.array([1.5, 0, 1])}, "EQ-D831"),
    ({"points": some(), "label": np.array([-1, 0, 1])}, "EQ-D831"),
    ({"points": some(), "label": np.array([0, 1, 2]), "classes": np.array(["a", "b"])}, "EQ-D831"),
    ({"points": some(), "label": np.array(["a", "b", "c"]), "classes": np.array(["a", "b"])}, "EQ-D831"),
    ({"points": some(), "label": np.array(["bed", "ufo", "bed"])}, "EQ-D836"),
]


@pytest.mark.parametrize(("arrays", "code"), BAD)
def test_packed_files_that_cannot_be_used(tmp_path: Path, arrays: dict[str, Any], code: str) -> None:
    with pytest.raises(DataError) as caught:
        open_clouds(packed(tmp_path / "a.npz", **arrays), role="evaluation").for_classes(("bed", "cup"))
    assert caught.value.code == code
    assert caught.value.hint


def test_other_places_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04 no zip")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8")
    (tmp_path / "nothing").mkdir()
    wanted = {"damaged.npz": "EQ-D831", "photo.jpg": "EQ-D832", "nothing": "EQ-D830", "absent": "EQ-D050"}
    for name, code in wanted.items():
        with pytest.raises(DataError) as caught:
            open_clouds(tmp_path / name, role="calibration")
        assert caught.value.code == code, name


def test_the_reasons_have_their_codes() -> None:
    for text, code in ((b"1 2 nan", "EQ-D833"), (b"1 2", "EQ-D835"), (b"a", "EQ-D832")):
        with pytest.raises(DataError) as caught:
            decode(text, "a.txt")
        assert caught.value.code == code


@pytest.mark.parametrize("name", ["packed.npz", "single.npz", "single.npy"])
@pytest.mark.parametrize("flip", [0x01, 0x08, 0xFF])
def test_damage_is_an_error_of_the_data(name: str, flip: int, tmp_path: Path) -> None:
    """Any byte: zipfile and numpy report it in a dozen ways, all of which must arrive as one."""
    path = tmp_path / name
    if name.endswith("npy"):
        np.save(path, some()[0])
    else:
        packed(path, points=some(1) if name == "packed.npz" else some()[0])
    sound, refused = path.read_bytes(), 0
    for place in range(0, len(sound), 3):
        content = bytearray(sound)
        content[place] ^= flip
        path.write_bytes(content)
        try:
            open_clouds(path, role="calibration").read(0)
        except DataError as error:
            assert error.code.startswith("EQ-D83")
            refused += 1
    assert refused
