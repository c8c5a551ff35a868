"""Depth maps on disk: what is read, and what is refused before any work begins."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from edgeq.data import DepthFile, open_depth
from edgeq.data.depth import decode_depth
from edgeq.errors import DataError

SIZE = (8, 6)
NEAR = np.full(SIZE[::-1], 1500, np.uint16)


def photo(folder: Path, name: str = "a.jpg", size: tuple[int, int] = SIZE, exif: Image.Exif | None = None) -> None:
    path = folder / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "grey").save(path, **({"exif": exif} if exif else {}))


def png(folder: Path, values: np.ndarray, name: str = "a.png") -> None:
    path = folder / "depth" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def npy(folder: Path, values: np.ndarray, name: str = "a.npy") -> None:
    path = folder / "depth" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)


def refused(folder: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        open_depth(folder)
    assert caught.value.hint
    return caught.value


def test_millimetres_and_metres_are_read_alike(tmp_path: Path) -> None:
    values = NEAR.copy()
    values[0, 0] = 0
    photo(tmp_path, "x/a.jpg")
    photo(tmp_path, "b.jpg")
    png(tmp_path, values, "x/a.png")
    npy(tmp_path, np.where(values > 0, values / 1000, np.nan), "b.npy")
    source = open_depth(tmp_path)
    assert [item.id for item in source.items] == ["images/b.jpg", "images/x/a.jpg"]
    metres, millimetres = (item.label for item in source.items)
    assert isinstance(metres, DepthFile) and metres.id == "depth/b.npy"
    np.testing.assert_allclose(metres.read(), millimetres.read(), rtol=1e-6)
    assert metres.read().dtype == np.float32
    assert metres.read()[0, 0] == 0 and metres.read()[1, 1] == pytest.approx(1.5)
    assert str(tmp_path) not in repr(metres)  # journals and manifests hold no paths of a machine


def test_units_of_kitti(tmp_path: Path) -> None:
    photo(tmp_path)
    png(tmp_path, np.full_like(NEAR, 512))
    (tmp_path / "depth.json").write_text(json.dumps({"per_metre": 256}))
    assert float(open_depth(tmp_path).items[0].label.read().max()) == 2
    for text in ('{"per_metre": 0}', '{"per_metre": true}', "[]", "{", '{"per_metre": "256"}'):
        (tmp_path / "depth.json").write_text(text)
        assert refused(tmp_path).code == "EQ-D805"


def test_depth_lies_over_the_upright_photo(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(tmp_path, exif=exif)
    png(tmp_path, np.ascontiguousarray(NEAR.T))
    assert open_depth(tmp_path).read(0).size == SIZE[::-1]
    png(tmp_path, NEAR)
    assert refused(tmp_path).code == "EQ-D803"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    photo(tmp_path)
    assert refused(tmp_path).code == "EQ-D800"
    png(tmp_path, NEAR, "other.png")
    error = refused(tmp_path)
    assert error.code == "EQ-D801" and "depth/a.png" in error.message


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((*SIZE[::-1], 3), np.uint8), "kind RGB"),
        (np.zeros(SIZE[::-1], np.uint8), "kind L"),
        (np.ones(SIZE[::-1], np.int32) * 1.0, None),
    ],
)
def test_pictures_of_depth_are_no_depth(tmp_path: Path, values: np.ndarray, words: str | None) -> None:
    photo(tmp_path)
    if words is None:
        npy(tmp_path, values.astype(np.int32))
        words = "holds int32"
    else:
        png(tmp_path, values)
    error = refused(tmp_path)
    assert error.code == "EQ-D802" and words in error.message


def test_bad_values_shapes_and_files(tmp_path: Path) -> None:
    photo(tmp_path)
    npy(tmp_path, np.full(SIZE[::-1], -1.0))
    assert refused(tmp_path).code == "EQ-D802"
    npy(tmp_path, np.ones((1, *SIZE[::-1])))
    assert "shape (1, 6, 8)" in refused(tmp_path).message
    npy(tmp_path, np.ones((3, 4)))
    assert "4 x 3 pixels, its photo 8 x 6" in refused(tmp_path).message
    npy(tmp_path, np.full(SIZE[::-1], np.nan))
    assert refused(tmp_path).code == "EQ-D804"
    (tmp_path / "depth" / "a.npy").write_bytes(b"no array")
    assert refused(tmp_path).code == "EQ-D802"
    png(tmp_path, NEAR)  # a PNG goes before a .npy
    assert open_depth(tmp_path).items[0].label.id == "depth/a.png"
    whole = (tmp_path / "depth" / "a.png").read_bytes()
    (tmp_path / "depth" / "a.png").write_bytes(whole[: len(whole) // 2])
    assert refused(tmp_path).code == "EQ-D802"


def test_a_map_that_goes_away_later(tmp_path: Path) -> None:
    photo(tmp_path)
    png(tmp_path, NEAR)
    label = open_depth(tmp_path).items[0].label
    png(tmp_path, NEAR + 1)
    with pytest.raises(DataError) as caught:
        label.read()
    assert caught.value.code == "EQ-D056"
    (tmp_path / "depth" / "a.png").unlink()
    with pytest.raises(DataError) as caught:
        label.read()
    assert caught.value.code == "EQ-D057"


@given(st.binary(max_size=64), st.sampled_from(["a.png", "a.npy"]))
def test_noise_is_refused_with_a_code(data: bytes, name: str) -> None:
    with pytest.raises(DataError):
        decode_depth(data, name)


@given(arrays.arrays(np.uint16, (3, 5)).filter(np.any))
def test_every_16_bit_value_is_kept(values: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    np.testing.assert_array_equal(np.rint(1000 * decode_depth(buffer.getvalue(), "a.png")), values)
