"""Files of integers that cannot become C are refused, whatever is in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.cli.main import main
from edgeq.errors import ModelError
from edgeq.exporters.tflite.integers import read_integers
from edgeq.graph.intgraph.graph import Window
from edgeq.graph.intgraph.interpret import _patches


def test_an_operation_without_a_kernel_is_named(tiny_int8: Path) -> None:
    with pytest.raises(ModelError) as refused:
        read_integers(tiny_int8)
    assert refused.value.code == "EQ-M920" and "TRANSPOSE (operation 0)" in refused.value.message


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tflite"
    path.write_bytes(b"\x00\x00\x00\x00TFL3" + b"\xff" * 64)
    for content in (path.read_bytes(), b"", b"no tflite"):
        path.write_bytes(content)
        with pytest.raises(ModelError) as refused:
            read_integers(path)
        assert refused.value.code == "EQ-M021"


@settings(max_examples=60)
@given(place=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_damage_is_an_error_with_a_code(
    tiny_int8: Path, tmp_path_factory: pytest.TempPathFactory, place: int, byte: int
) -> None:
    data = bytearray(tiny_int8.read_bytes())
    data[8 + place % (len(data) - 8)] = byte
    path = tmp_path_factory.mktemp("damaged") / "x.tflite"
    path.write_bytes(data)
    with pytest.raises(ModelError):
        read_integers(path)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--device", "rpi"), "EQ-U924"),
        (("--device", "cortex-m4", "--bits", "w4a8"), "EQ-U924"),
        (("--device", "cortex-m4", "--calib", "photos"), "EQ-U924"),
        (("--device", "cortex-m4", "--dry-run"), "EQ-U924"),
    ],
)
def test_what_a_file_of_integers_has_decided(
    tiny_int8: Path, tmp_path: Path, words: tuple[str, ...], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tiny_int8), *words, "--out", str(tmp_path / "o"), "--json"]) == 2
    assert f'"{code}"' in capsys.readouterr().out and not (tmp_path / "o").exists()


def test_an_absent_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "x.tflite"), "--device", "cortex-m4", "--json"]) == 3
    assert '"EQ-M002"' in capsys.readouterr().out


def test_a_border_may_be_larger_below_than_above() -> None:
    window = Window(4, 4, 1, (3, 3), (2, 2), (0, 0), extra=(1, 1))
    assert window.output == (2, 2)
    found = _patches(window, np.arange(16), -1)
    assert found[1, 1, 0].tolist() == [[10, 11, -1], [14, 15, -1], [-1, -1, -1]]
