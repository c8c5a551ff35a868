"""`edgeq compare` on the command line: the table, the object, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.unit.test_compare import model


def test_refusals_have_codes(run: Run, tmp_path: Path) -> None:
    model(tmp_path / "a.onnx")
    model(tmp_path / "b.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    (tmp_path / "folder").mkdir()
    for words, code, exit_code in (
        (("compare",), "EQ-U452", 2),
        (("compare", "a.onnx"), "EQ-U452", 2),
        (("compare", "a.onnx", "absent.onnx"), "EQ-I450", 3),
        (("compare", "a.onnx", "folder"), "EQ-I040", 3),
        (("compare", "a.onnx", "b.onnx"), "EQ-U453", 2),
        (("compare", "a.onnx", "b.onnx", "--like", "folder"), "EQ-I040", 3),
        (("compare", "a.onnx", "b.onnx", "--runs", "many"), "EQ-U454", 2),
        (("compare", "a.onnx", "b.onnx", "--limit", "0"), "EQ-U001", 2),
    ):
        done = run(*words, "--json")
        assert (done.json["code"], done.code) == (code, exit_code), words


def test_a_table_with_the_first_as_reference(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeq import compare
    from tests.unit.test_compare import INPUTS

    monkeypatch.setattr(compare, "open_inputs", lambda *arguments: INPUTS)
    model(tmp_path / "a.onnx")
    model(tmp_path / "b.onnx", noise=0.01, swapped=True)
    done = run("compare", "a.onnx", "b.onnx", "--runs", "4")
    assert done.code == 0, done.err
    head, first, second, foot = done.out.splitlines()
    assert head.split()[:3] == ["model", "runtime", "size"]
    assert first.split()[:4] == ["a.onnx", "onnx", "0.0", "-"]
    assert second.split()[0] == "b.onnx"
    assert foot == "6 items of items; SQNR, time and difference are to a.onnx"
    data = run("compare", "a.onnx", "b.onnx", "--runs", "4", "--json").json
    assert data["schema"] == "edgeq.compare/1"
    assert [row["name"] for row in data["rows"]] == ["a.onnx", "b.onnx"]
    assert data["samples"] == 6


@pytest.mark.parametrize("words", [("compare", "\0"), ("inspect", "\0")])
def test_a_null_byte_is_no_bug_of_ours(run: Run, words: tuple[str, ...]) -> None:
    done = run(*words, "--json")
    assert (done.json["code"], done.code) == ("EQ-U001", 2)
