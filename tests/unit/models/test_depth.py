"""The depth family: the shipped network, scores, alignment, ONNX files."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeq import depthmap
from edgeq.data import open_boxes
from edgeq.errors import ModelError, UsageError
from edgeq.models import MODELS, load_model
from edgeq.models.base import Guarded, parse_model
from edgeq.models.checkpoint import load_into, load_state_dict
from edgeq.models.depth_nano import DepthNano
from edgeq.models.depth_score import aligned, judge_depth, same_depth
from edgeq.spec import Preprocess
from tests.unit.graph.onnx_build import build, node

TRUTH = np.linspace(1, 6, 12 * 16, dtype=np.float32).reshape(12, 16)


def test_the_shipped_network_is_captured_as_it_is(root: Path) -> None:
    adapter: Any = load_model(parse_model("depth_nano", None, None))
    assert MODELS["depth_nano"].ships_weights and adapter.loaded.source == "edgeq"
    network = DepthNano().eval()
    path = root / "models/weights/depth_nano.safetensors"
    load_into(network, load_state_dict(path), path)
    image = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(adapter.loaded.graph(image)[0], network(image), atol=1e-4)
    note = json.loads(path.with_suffix(".json").read_text())
    assert note["parameters"] == sum(p.numel() for p in network.parameters()) < 400_000
    samples = adapter.open(adapter.sample_file, "calibration")
    assert len(samples) == 96 and samples.read(0).size == (128, 96)
    assert adapter.loaded.preprocess == Preprocess(
        96, 128, resize="squash", crop_fraction=1.0, interpolation="bilinear"
    )
    assert isinstance(adapter, Guarded)
    rising = [(np.linspace(0, 1, 48 * 64, dtype=np.float32),)]
    assert "flat" in adapter.collapse(rising, [(np.ones(48 * 64, np.float32),)])
    assert not adapter.collapse(rising, rising)


def test_figures_are_those_of_the_definitions() -> None:
    found = np.where(np.arange(16) % 2, TRUTH * 1.1, TRUTH * 0.7).astype(np.float32)
    truth = TRUTH.copy()
    truth[:, 8:] = 0  # unknown
    record = judge_depth(found, truth, "metric")
    assert record["abs_rel"] == pytest.approx(100 * (0.1 + 0.3) / 2, rel=1e-5)
    assert record["delta1"] == 50
    assert record["rmse"] == pytest.approx(math.sqrt(np.mean((found - TRUTH)[:, :8] ** 2)), rel=1e-5)
    assert json.loads(json.dumps(record)) == record
    perfect = judge_depth(TRUTH, TRUTH, "metric")
    assert (perfect["abs_rel"], perfect["delta1"], perfect["rmse"]) == (0, 100, 0)
    assert same_depth(perfect, perfect) == 1
    assert same_depth(perfect, judge_depth(TRUTH * 1.06, TRUTH, "metric")) == 0
    nothing = judge_depth(np.zeros_like(TRUTH), TRUTH, "metric")
    assert nothing["abs_rel"] == pytest.approx(100, abs=0.2) and nothing["delta1"] == 0


@given(st.floats(0.01, 100), st.floats(-50, 50), st.sampled_from(["disparity", "relative"]))
def test_maps_without_unit_are_judged_up_to_scale_and_shift(scale: float, shift: float, kind: str) -> None:
    truth = np.where(TRUTH > 2, TRUTH, 0).astype(np.float32)
    ideal = 1 / TRUTH if kind == "disparity" else TRUTH
    found = (scale * ideal + shift).astype(np.float32)
    record = judge_depth(found, truth, kind)
    assert record["abs_rel"] < 0.5 and record["delta1"] == 100


def test_no_aligned_depth_is_beyond_what_is_known() -> None:
    found = 1 / TRUTH
    found[0, 0] = -10  # behind the camera, once aligned
    assert aligned(found, TRUTH, "disparity").max() <= TRUTH.max() * 1.0001
    flat = aligned(np.ones_like(TRUTH), TRUTH, "relative")
    np.testing.assert_allclose(flat, TRUTH.mean(), rtol=1e-5)


@pytest.mark.parametrize("kind", depthmap.KINDS)
def test_pictures_of_a_map(tmp_path: Path, kind: str) -> None:
    head = {"decode": "depth", "kind": kind}
    raw = np.log(TRUTH) if kind == "log" else TRUTH
    found = depthmap.read_map(raw[None, None], head)
    np.testing.assert_allclose(found, TRUTH, rtol=1e-5)
    files = depthmap.write_maps(found, head, (32, 24), str(tmp_path / "x"))
    assert [Path(f).name for f in files] == ["x-depth.png", "x-colour.png"]
    with Image.open(files[0]) as opened:
        codes = np.asarray(opened)
    assert codes.shape == (24, 32)
    if kind in depthmap.METRIC:
        np.testing.assert_allclose(codes / 1000, depthmap.resize_map(found, (32, 24)), atol=6e-4)
        assert depthmap.summarize(found, head)["unit"] == "m"
    else:
        assert (codes.min(), codes.max()) == (0, 65535)
    with Image.open(files[1]) as opened:
        colours = np.asarray(opened).astype(int).sum(axis=2)
    near_first = colours[0, 0] > colours[-1, -1]
    assert near_first == (kind != "disparity")  # near things are bright


def test_a_map_of_no_numbers_is_written_all_the_same(tmp_path: Path) -> None:
    for kind in depthmap.KINDS:
        head = {"decode": "depth", "kind": kind}
        found = depthmap.read_map(np.full((1, 1, 4, 4), np.nan, np.float32), head)
        assert np.isfinite(found).all()
        depthmap.write_maps(found, head, (4, 4), str(tmp_path / kind))
        assert np.isfinite(judge_depth(found, TRUTH[:4, :4], kind)["abs_rel"])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: plumbing only."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("onnx")
    kernel = np.random.default_rng(0).normal(size=(2, 3, 3, 3)).astype(np.float32)

    def write(name: str, channels: int, *nodes: Any, outputs: str = "y") -> None:
        conv = node("Conv", "x k", "c", strides=[2, 2], pads=[1, 1, 1, 1])
        constants = {"k": kernel[:channels], "axis": np.array([1])}
        build(folder / f"{name}.onnx", [conv, *nodes], {"x": (1, 3, 32, 48)}, outputs.split(), constants)

    write("map", 1, node("Relu", "c"))
    write("flat", 1, node("Squeeze", "c axis"))
    write("two", 2, node("Relu", "c"))
    write("vector", 1, node("Flatten", "c"))
    write("pair", 1, node("Relu", "c"), node("Sigmoid", "c", "z"), outputs="y z")
    return folder


def test_onnx_files_are_disparity_unless_said(files: Path) -> None:
    for name in ("map", "flat"):
        loaded = load_model(parse_model(str(files / f"{name}.onnx"), "depth", None)).loaded
        assert loaded.postprocess == {"decode": "depth", "kind": "disparity"} and loaded.output_names == ("disparity",)
        assert loaded.preprocess == Preprocess(32, 48, resize="squash", crop_fraction=1.0)
        assert (loaded.name, loaded.network) == (name, "convolution")
    adapter: Any = load_model(parse_model("depth:metric", None, files / "map.onnx"))
    assert adapter.head["kind"] == "metric" and adapter.loaded.name == "map"


@pytest.mark.parametrize("what", ["two", "vector", "pair"])
def test_other_outputs_are_refused(files: Path, what: str) -> None:
    with pytest.raises(ModelError, match="one map") as caught:
        load_model(parse_model(str(files / f"{what}.onnx"), "depth", None))
    assert caught.value.code == "EQ-M800"


def test_weights_without_an_architecture_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"a": torch.zeros(1)}, path)
    for name, weights in ((str(path), None), ("depth:metric", path), ("depth:disparity", None)):
        with pytest.raises(UsageError) as caught:
            load_model(parse_model(name, "depth" if weights is None and name == str(path) else None, weights))
        assert caught.value.code == "EQ-U801"


@pytest.fixture(scope="module")
def scenes(root: Path) -> Iterator[Any]:
    sys.path.insert(0, str(root / "tools"))
    import scenes

    yield scenes
    sys.path.remove(str(root / "tools"))


def test_scenes_are_the_same_again_and_others_with_another_seed(scenes: Any) -> None:
    first, again, other = (scenes.draw_scene(s, 4, 24, 32) for s in (2, 2, 3))
    np.testing.assert_array_equal(first.rgb, again.rgb)
    np.testing.assert_array_equal(first.depth, again.depth)
    assert (first.rgb != other.rgb).any()
    for scene in (first, other):
        assert scene.rgb.shape == (24, 32, 3) and scene.depth.shape == (24, 32)
        assert 0.1 < scene.depth.min() < scene.depth.max() < 12
        assert scene.rgb.std() > 5


def test_boxes_of_scenes_hold_what_is_seen_of_things(scenes: Any) -> None:
    found = np.concatenate([scenes.draw_scene(3, index, 64, 64).boxes for index in range(12)])
    kinds, centre, size = found[:, 0], found[:, 1:3], found[:, 3:]
    assert len(found) > 20 and len(set(kinds.tolist())) > 4
    assert set(kinds.tolist()) <= set(range(len(scenes.CLASSES)))
    assert (size >= 6 / 64).all() and (centre - size / 2 > -1e-6).all() and (centre + size / 2 < 1 + 1e-6).all()


def test_labels_of_scenes_are_read_as_they_were_drawn(scenes: Any, tmp_path: Path) -> None:
    from make_scenes import write_scene  # type: ignore[import-not-found]

    drawn = [scenes.draw_scene(3, index, 64, 64) for index in range(3)]
    for index, scene in enumerate(drawn):
        write_scene(scene, tmp_path, f"{index:06d}")
    source = open_boxes(tmp_path, len(scenes.CLASSES))
    for item, scene in zip(source.items, drawn, strict=True):
        np.testing.assert_allclose(np.reshape(item.label, (-1, 5)), scene.boxes, atol=1e-6)


def test_rays_meet_solids_where_they_are(scenes: Any) -> None:
    from scenes.geometry import cast  # type: ignore[import-not-found]

    ahead = np.array([[0.0], [0.0], [1.0]], np.float32)
    start = np.zeros((3, 1), np.float32)
    for kind, wanted in (("box", 4.5), ("sphere", 4.5), ("cylinder", 4.5)):
        hit = cast([scenes.Solid(kind, (0.0, 0.0, 5.0), (0.5, 0.5, 0.5))], start, ahead)
        assert hit.t[0] == pytest.approx(wanted, abs=1e-4)
        np.testing.assert_allclose(hit.normal[:, 0], (0, 0, -1), atol=1e-4)
    turned = cast([scenes.Solid("box", (0.0, 0.0, 5.0), (0.5, 0.5, 0.5), np.pi / 4)], start, ahead)
    assert turned.t[0] == pytest.approx(5 - 0.5 * math.sqrt(2), abs=1e-3)
    room = cast([scenes.Solid("box", (0.0, 0.0, 0.0), (2.0, 2.0, 3.0), inside=True)], start, ahead)
    assert room.t[0] == pytest.approx(3) and room.normal[2, 0] == -1
