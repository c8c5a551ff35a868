"""The shipped depth network, with its real weights, on synthetic rooms it has not seen: export, runtime, bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeq.data import open_depth
from edgeq.devices import open_model
from edgeq.models import load_model
from edgeq.models.base import parse_model
from tests.cli.conftest import edgeq

COUNT = 48


@pytest.fixture(scope="module")
def rooms(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Rooms of a series that the network was not trained on."""
    sys.path.insert(0, str(root / "tools"))
    from make_scenes import write_scene  # type: ignore[import-not-found]
    from scenes import draw_scene  # type: ignore[import-not-found]

    folder = tmp_path_factory.mktemp("rooms")
    for index in range(COUNT):
        write_scene(draw_scene(5, index), folder, f"{index:03d}")
    yield folder
    sys.path.remove(str(root / "tools"))


@pytest.fixture(scope="module")
def exported(rooms: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    cwd = tmp_path_factory.mktemp("export")
    words = ["--device", "rpi", "--scheme", "integer", "--keep-float", "none", "--data", str(rooms)]
    done = edgeq("export", "depth_nano", *words, "--runs", "20", "--force", "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd, json.loads(done.stdout)


def test_8_bits_keep_the_depth(exported: tuple[Path, dict[str, Any]]) -> None:
    _, summary = exported
    metric = summary["metric"]
    assert (metric["name"], metric["n"]) == ("AbsRel", COUNT)
    assert metric["float"] < 25
    assert metric["quantized"] < 1.05 * metric["float"]
    also = metric["also"]
    assert set(also) == {"delta1", "RMSE"} and also["delta1"]["quantized"] > also["delta1"]["float"] - 2
    assert metric["agreement"] > 0.8
    assert summary["integer_mac_share"] == 1
    assert summary["fidelity"]["sqnr_db"]["median"] > 20
    assert summary["bytes"] < 0.5 * summary["float_bytes"]


def test_the_bundle_makes_the_maps_that_were_scored(exported: tuple[Path, dict[str, Any]], rooms: Path) -> None:
    cwd, summary = exported
    bundle = cwd / summary["artifact"]
    picture = rooms / "images" / "000.png"
    command = [sys.executable, str(bundle / "run.py"), str(picture), "--save", "maps", "--json"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True)
    (result,) = json.loads(done.stdout)["results"]
    found = result["depth"]
    assert found["unit"] == "m" and 0.1 < found["min"] < found["median"] < found["max"] < 15
    assert [Path(f).name for f in found["files"]] == ["000-depth.png", "000-colour.png"]
    with Image.open(cwd / "maps" / "000-depth.png") as opened:
        millimetres = np.asarray(opened)
    adapter: Any = load_model(parse_model("depth_nano", None, None))
    source = open_depth(rooms)
    outputs = open_model(bundle / "model.tflite").run(*adapter.inputs(source.read(0)))
    scored = adapter.judge(outputs, source.read(0), source.items[0].label)
    truth = source.items[0].label.read()
    assert millimetres.shape == truth.shape
    own = 100 * float(np.mean(np.abs(millimetres / 1000 - truth) / truth))
    assert own == pytest.approx(scored["abs_rel"], rel=0.01)


def test_degraded_pictures_are_judged(exported: tuple[Path, dict[str, Any]], rooms: Path) -> None:
    cwd, summary = exported
    words = ["--data", str(rooms), "--degrade", "noise:5,blur:3", "--limit", "16", "--json"]
    done = edgeq("validate", summary["artifact"], *words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["metric"], result["n"]) == ("AbsRel", 16)
    assert [o["name"] for o in result["degraded"]] == ["noise", "blur"]
    assert result["degraded"][0]["float"] > result["clean"]["float"]  # an error, which noise makes larger
    assert result["degraded"][0]["relative_drop"]["float"] > 0
