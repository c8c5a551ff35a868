"""The manifest: round trip, privacy, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.artifact import Manifest
from edgeq.errors import InputError
from tests.unit.artifact.conftest import MANIFEST

FILE = {"path": "golden/inputs.npz", "bytes": 3, "sha256": "00"}


def test_round_trip_through_json() -> None:
    whole = replace(MANIFEST, files=(FILE,), input_files={"calib": "photos"})
    data = json.loads(json.dumps(whole.to_dict()))
    assert data["schema"] == "edgeq.artifact/1"
    again = Manifest.from_dict(data)
    assert again.to_dict() == whole.to_dict()
    assert again.labels == MANIFEST.labels
    assert again.golden == MANIFEST.golden


def test_later_additions_are_ignored() -> None:
    data = {**MANIFEST.to_dict(), "novelty": 1}
    data["golden"]["novelty"] = 2
    assert Manifest.from_dict(data) == Manifest.from_dict(MANIFEST.to_dict())


def test_no_path_of_the_machine_is_kept(tmp_path: Path) -> None:
    private = tmp_path / "photos"
    manifest = replace(
        MANIFEST,
        command=("export", str(private), f"--calib={private}", "--data", "here/data", "a=/b"),
        config={"calib": private, "nested": {"list": [str(private), 3, None]}, "home": "~/photos"},
        model={"name": "m", "family": "vit", "source": str(private)},
    )
    text = json.dumps(manifest.to_dict())
    assert str(tmp_path) not in text
    assert manifest.command == ("export", "photos", "--calib=photos", "--data", "here/data", "a=/b")
    assert manifest.config == {"calib": "photos", "nested": {"list": ["photos", 3, None]}, "home": "photos"}
    assert manifest.model["source"] == "photos"


@pytest.mark.parametrize(
    "key", sorted(set(MANIFEST.to_dict()) - {"schema", "runtime", "networks", "driver", "postprocess", "cloud"})
)
def test_missing_and_wrong_values_are_named(key: str) -> None:
    data = MANIFEST.to_dict()
    with pytest.raises(InputError, match=f"key '{key}' is missing") as caught:
        Manifest.from_dict({k: v for k, v in data.items() if k != key})
    assert caught.value.code == "EQ-I041"
    with pytest.raises(InputError, match=key):
        Manifest.from_dict({**data, key: 3.5})


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", "a\\b"])
def test_files_stay_in_the_folder(path: str) -> None:
    with pytest.raises(InputError, match="leaves the folder"):
        replace(MANIFEST, files=({**FILE, "path": path},))


@pytest.mark.parametrize(
    "change",
    [
        {"files": [{"path": "x"}]},
        {"files": ["x"]},
        {"inputs": [{"name": "x", "shape": 3}]},
        {"labels": [1, 2]},
        {"command": [None]},
        {"golden": {"min_sqnr_db": "high"}},
        {"golden": {"min_sqnr_db": True}},
        {"postprocess": ["boxes"]},
        {"cloud": 3},
        {"preprocess": {"height": 0, "width": 8}},
        {"preprocess": {"wide": 8}},
        {"seed": True},
    ],
)
def test_wrong_entries_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        Manifest.from_dict({**MANIFEST.to_dict(), **change})
    assert caught.value.code == "EQ-I041"


def test_other_schemas_are_refused() -> None:
    with pytest.raises(InputError, match=r"edgeq\.artifact/9") as caught:
        Manifest.from_dict({**MANIFEST.to_dict(), "schema": "edgeq.artifact/9"})
    assert "upgrade" in str(caught.value.hint)
    others: tuple[object, ...] = ({}, {"schema": None}, [], 3, None)
    for data in others:
        with pytest.raises(InputError):
            Manifest.from_dict(data)


def test_model_file_must_be_one() -> None:
    with pytest.raises(InputError, match="0 model files"):
        _ = MANIFEST.entry
    assert replace(MANIFEST, files=({**FILE, "path": "m.tflite"},)).entry == "m.tflite"
    pair = ({**FILE, "path": "model.bin"}, {**FILE, "path": "model.xml"})
    assert replace(MANIFEST, files=pair).entry == "model.xml"


def test_bundles_without_runtime_options_still_open() -> None:
    data = MANIFEST.to_dict()
    del data["runtime"]
    assert Manifest.from_dict(data).runtime == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(MANIFEST.to_dict())), JSON, max_size=3))
def test_any_damage_gives_one_error(change: dict[str, Any]) -> None:
    try:
        manifest = Manifest.from_dict({**MANIFEST.to_dict(), **change})
    except InputError as error:
        assert error.code == "EQ-I041"
    else:
        assert Manifest.from_dict(manifest.to_dict()).to_dict() == manifest.to_dict()
