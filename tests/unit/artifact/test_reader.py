"""Writing a bundle, reading it back, and what damage does."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeq.arrays import write_arrays
from edgeq.artifact import Artifact, write_json
from edgeq.errors import InputError
from edgeq.spec import Preprocess
from tests.unit.artifact.conftest import PLAN, Builder


def test_everything_comes_back(build: Builder, tmp_path: Path) -> None:
    artifact = Artifact.open(build(tmp_path / "a"))
    artifact.verify_files()
    assert artifact.plan() == PLAN
    assert artifact.evidence() == {"schema": "edgeq.evidence/1", "sqnr": None}
    golden = artifact.golden()
    assert [a.shape for a in golden.inputs] == [(4, 1, 3, 8, 8)]
    assert [a.shape for a in golden.expected] == [(4, 1, 5)]
    assert artifact.model_file.name == "model.tflite"
    assert artifact.preprocess == Preprocess(8, 8, (0.5,) * 3, (0.25,) * 3, crop_fraction=0.9)
    assert Artifact.open(tmp_path / "a" / "manifest.json").folder == tmp_path / "a"


def test_same_content_gives_the_same_bytes(build: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(tmp_path / "a")
    later = time.time() + 1e6
    monkeypatch.setattr(time, "time", lambda: later)
    second = build(tmp_path / "deeper" / "b")
    names = sorted(p.relative_to(first) for p in first.rglob("*"))
    assert names == sorted(p.relative_to(second) for p in second.rglob("*"))
    for name in names:
        if (first / name).is_file():
            assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_arrays_are_what_numpy_reads(tmp_path: Path) -> None:
    arrays = {
        "b": np.arange(6, dtype=np.int8).reshape(2, 3).T,
        "a": np.float32(3),
        "c": np.zeros((0, 4), np.float64),
        "d": np.array(["ä"]),
    }
    write_arrays(tmp_path / "x.npz", {k: np.asarray(v) for k, v in arrays.items()})
    with np.load(tmp_path / "x.npz", allow_pickle=False) as store:
        assert sorted(store.files) == sorted(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(store[name], array)


def test_json_is_sorted_and_finite(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"b": float("nan"), "a": (np.float32(0.5), np.arange(2), Path("p"))})
    assert (
        tmp_path / "x.json"
    ).read_text() == '{\n "a": [\n  0.5,\n  [\n   0,\n   1\n  ],\n  "p"\n ],\n "b": null\n}\n'


@pytest.mark.parametrize("name", ["model.tflite", "plan.json", "run.py", "golden/inputs.npz", "golden/expected.npz"])
def test_changed_files_are_named(build: Builder, tmp_path: Path, name: str) -> None:
    artifact = Artifact.open(build(tmp_path / "a"))
    path = tmp_path / "a" / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{name} was changed") as caught:
        artifact.verify_files()
    assert caught.value.code == "EQ-I042"
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"{name} has"):
        artifact.verify_files()
    path.unlink()
    with pytest.raises(InputError, match=f"{name} cannot be read"):
        artifact.verify_files()


def test_no_bundle_is_said_so(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", tmp_path / "absent" / "manifest.json", Path("a\0b")):
        with pytest.raises(InputError) as caught:
            Artifact.open(path)
        assert caught.value.code == "EQ-I040"


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"schema":"x"}', "\xff", "[" * 100_000])
def test_damaged_manifest_is_said_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError) as caught:
        Artifact.open(tmp_path)
    assert caught.value.code == "EQ-I041"
    assert caught.value.place == str(tmp_path / "manifest.json")


def test_random_damage_gives_input_errors_only(build: Builder, tmp_path: Path) -> None:
    whole = build(tmp_path / "a")
    rng = random.Random(0)
    for turn in range(150):
        folder = tmp_path / "b"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        for name in ("manifest.json", "plan.json", "evidence.json", "golden/inputs.npz", "golden/expected.npz"):
            content = bytearray((folder / name).read_bytes())
            for _ in range(rng.choice((0, 1, 3))):
                content[rng.randrange(len(content))] = rng.randrange(256)
            (folder / name).write_bytes(content[: rng.randrange(len(content))] if turn % 3 == 0 else content)
        try:
            artifact = Artifact.open(folder)
        except InputError:
            continue
        codes = [refusal(read) for read in (artifact.plan, artifact.evidence, artifact.golden, artifact.verify_files)]
        assert set(codes) <= {None, "EQ-I042"}


def refusal(read: Callable[[], object]) -> str | None:
    try:
        read()
    except InputError as error:
        return error.code
    return None


def test_pickles_are_not_loaded(build: Builder, tmp_path: Path) -> None:
    artifact = Artifact.open(build(tmp_path / "a"))
    np.savez(tmp_path / "a" / "golden" / "inputs.npz", input_0=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="allow_pickle"):
        artifact.golden()


def test_plan_with_a_wrong_schema_is_refused(build: Builder, tmp_path: Path) -> None:
    artifact = Artifact.open(build(tmp_path / "a"))
    (tmp_path / "a" / "plan.json").write_text(json.dumps({"schema": "x"}))
    with pytest.raises(InputError, match=r"plan\.json"):
        artifact.plan()
