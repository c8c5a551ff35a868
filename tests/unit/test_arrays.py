"""Archives of arrays: whatever a damaged one makes zipfile and numpy raise, callers see one error."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.arrays import DamagedArraysError, read_arrays, write_arrays

ARRAYS = {"a": np.arange(6, dtype=np.int16).reshape(2, 3), "b": np.array(["x", "yz"])}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("arrays") / "sound.npz"
    write_arrays(path, ARRAYS)
    return path.read_bytes()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_arrays(tmp_path / "x.npz", ARRAYS)
    found = read_arrays(tmp_path / "x.npz")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    assert read_arrays(tmp_path / "x.npz", only=("b", "absent")).keys() == {"b"}


@pytest.mark.parametrize("flip", [0x01, 0x08, 0xFF])
def test_every_flipped_byte_is_damage_or_harmless(sound: bytes, flip: int) -> None:
    refused = 0
    for place in range(len(sound)):
        content = bytearray(sound)
        content[place] ^= flip
        try:
            found = read_arrays(bytes(content))
        except DamagedArraysError as error:
            refused += 1
            assert str(error)
        else:  # a date, an attribute, a name: never a number
            assert all(np.array_equal(array, ARRAYS[name]) for name, array in found.items() if name in ARRAYS)
    assert refused > len(sound) // 2


def test_every_cut_is_damage(sound: bytes) -> None:
    for end in range(len(sound)):
        with pytest.raises(DamagedArraysError):
            read_arrays(sound[:end])


@given(st.binary(max_size=200))
def test_noise_is_damage(content: bytes) -> None:
    with pytest.raises(DamagedArraysError):
        read_arrays(content)


@given(st.binary(max_size=80))
def test_a_sound_archive_of_noise_is_damage(tmp_path_factory: pytest.TempPathFactory, header: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.npz"
    with zipfile.ZipFile(path, "w") as store:
        store.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with pytest.raises(DamagedArraysError):
        read_arrays(path)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    with pytest.raises(DamagedArraysError):
        read_arrays(tmp_path / "objects.npz")


def test_an_absent_file_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "absent.npz")
