"""Point networks against the published formulas, written out plainly; random weights, structure only."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from edgeq.errors import DataError, EdgeqError, ModelError, UsageError
from edgeq.models import load_model
from edgeq.models.base import ModelRequest
from edgeq.models.point_checkpoints import pointmlp_of, pointnet_of
from edgeq.points import network_inputs

State = dict[str, Tensor]
WIDTHS, BLOCKS = (8, 16, 24), (1, 2)


class Maker:
    """Random tensors by the names of published checkpoints."""

    def __init__(self) -> None:
        self.state: State = {}
        self.random = torch.Generator().manual_seed(0)

    def layer(self, name: str, norm: str, shape: tuple[int, ...], bias: bool = False) -> None:
        self.state[f"{name}.weight"] = torch.randn(shape, generator=self.random) / shape[1] ** 0.5
        if bias:
            self.state[f"{name}.bias"] = torch.randn(shape[0], generator=self.random)
        if norm:
            for part in ("weight", "bias", "running_mean"):
                self.state[f"{norm}.{part}"] = torch.randn(shape[0], generator=self.random)
            self.state[f"{norm}.running_var"] = torch.rand(shape[0], generator=self.random) + 0.5
            self.state[f"{norm}.num_batches_tracked"] = torch.tensor(3.0)


def pointmlp_state() -> State:
    make = Maker()
    make.layer("embedding.net.0", "embedding.net.1", (WIDTHS[0], 6, 1))
    for i, (narrow, wide) in enumerate(pairwise(WIDTHS)):
        for part in ("alpha", "beta"):
            make.state[f"groupers.{i}.affine_{part}"] = torch.randn((1, 1, 1, narrow), generator=make.random)
        pre, post = f"pre_extractors.{i}", f"post_extractors.{i}"
        make.layer(f"{pre}.transfer.net.0", f"{pre}.transfer.net.1", (wide, 2 * narrow, 1))
        for stem in (pre, post):
            for b in range(BLOCKS[i]):
                make.layer(f"{stem}.blocks.{b}.net.0", f"{stem}.blocks.{b}.net.1", (wide // 4, wide, 1))
                make.layer(f"{stem}.blocks.{b}.net.3", f"{stem}.blocks.{b}.net.4", (wide, wide // 4, 1))
    make.layer("classifier.0", "classifier.1", (12, WIDTHS[-1]), bias=True)
    make.layer("classifier.4", "classifier.5", (10, 12), bias=True)
    make.layer("classifier.8", "", (5, 10), bias=True)
    return make.state


def pointnet_state(columns: int, aligned: bool) -> State:
    make = Maker()
    parts = [("feat.stn", columns, 3), ("feat.fstn", 64, 64)] if aligned else []
    for stem, channels, size in parts:
        for i, (a, b) in enumerate(((channels, 64), (64, 128), (128, 1024)), start=1):
            make.layer(f"{stem}.conv{i}", f"{stem}.bn{i}", (b, a, 1), bias=True)
        make.layer(f"{stem}.fc1", f"{stem}.bn4", (512, 1024), bias=True)
        make.layer(f"{stem}.fc2", f"{stem}.bn5", (256, 512), bias=True)
        make.layer(f"{stem}.fc3", "", (size * size, 256), bias=True)
    for i, (a, b) in enumerate(((columns, 64), (64, 128), (128, 1024)), start=1):
        make.layer(f"feat.conv{i}", f"feat.bn{i}", (b, a, 1), bias=True)
    make.layer("fc1", "bn1", (512, 1024), bias=True)
    make.layer("fc2", "bn2", (256, 512), bias=True)
    make.layer("fc3", "", (5, 256), bias=True)
    return make.state


def published(state: State, name: str, norm: str, x: Tensor) -> Tensor:
    """A layer and its batch norm, one after the other."""
    y = x @ state[f"{name}.weight"].flatten(1).T
    if f"{name}.bias" in state:
        y = y + state[f"{name}.bias"]
    if not norm:
        return y
    scaled = (y - state[f"{norm}.running_mean"]) / (state[f"{norm}.running_var"] + 1e-5).sqrt()
    return scaled * state[f"{norm}.weight"] + state[f"{norm}.bias"]


def pointmlp(state: State, points: Tensor, near: list[Tensor]) -> Tensor:
    """Ma et al. 2022, arXiv 2202.07123: group, normalize by the deviation of the group, concatenate, transfer."""
    x = published(state, "embedding.net.0", "embedding.net.1", points).relu()
    for i, index in enumerate(near):
        centres = len(x) // 2
        grouped = x[index.reshape(centres, -1)]
        middle = x[:centres, None]
        apart = (grouped - middle) / ((grouped - middle).reshape(-1).std() + 1e-5)
        alpha, beta = (state[f"groupers.{i}.affine_{part}"][0, 0, 0] for part in ("alpha", "beta"))
        pair = torch.cat([alpha * apart + beta, middle.expand_as(grouped)], -1)
        pre, post = f"pre_extractors.{i}", f"post_extractors.{i}"
        y = published(state, f"{pre}.transfer.net.0", f"{pre}.transfer.net.1", pair).relu()
        for stem in (pre, post):
            for b in range(BLOCKS[i]):
                block = f"{stem}.blocks.{b}.net"
                inner = published(state, f"{block}.0", f"{block}.1", y).relu()
                y = (y + published(state, f"{block}.3", f"{block}.4", inner)).relu()
            y = y.amax(1) if stem == pre else y
        x = y
    x = x.amax(0)
    for a, b in (("classifier.0", "classifier.1"), ("classifier.4", "classifier.5")):
        x = published(state, a, b, x).relu()
    return published(state, "classifier.8", "", x)


def pointnet(state: State, points: Tensor) -> Tensor:
    """Qi et al. 2016, arXiv 1612.00593."""

    def aligned(stem: str, x: Tensor, size: int) -> Tensor:
        for i in (1, 2, 3):
            x = published(state, f"{stem}.conv{i}", f"{stem}.bn{i}", x).relu()
        x = x.amax(0)
        x = published(state, f"{stem}.fc1", f"{stem}.bn4", x).relu()
        x = published(state, f"{stem}.fc2", f"{stem}.bn5", x).relu()
        return published(state, f"{stem}.fc3", "", x).reshape(size, size) + torch.eye(size)

    x = points
    if "feat.stn.conv1.weight" in state:
        x = torch.cat([x[:, :3] @ aligned("feat.stn", x, 3), x[:, 3:]], 1)
    x = published(state, "feat.conv1", "feat.bn1", x).relu()
    if "feat.fstn.conv1.weight" in state:
        x = x @ aligned("feat.fstn", x, 64)
    x = published(state, "feat.conv2", "feat.bn2", x).relu()
    x = published(state, "feat.conv3", "feat.bn3", x).amax(0)
    x = published(state, "fc1", "bn1", x).relu()
    x = published(state, "fc2", "bn2", x).relu()
    return published(state, "fc3", "", x)


def sample(columns: int = 6) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(64, columns)).astype(np.float32)


@torch.no_grad()
def test_pointmlp_is_the_published_network() -> None:
    how = {
        "kind": "points",
        "count": 32,
        "columns": 6,
        "sample": "farthest",
        "scale": "sphere",
        "stages": [[16, 6], [8, 6]],
    }
    points, *near = (torch.from_numpy(x) for x in network_inputs(sample(), how))
    state = pointmlp_state()
    found = pointmlp_of(state, "a.pt")(points, *near)[0]
    wanted = pointmlp(state, points[0], [index.long() for index in near])
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("columns", "aligned"), [(3, True), (6, True), (6, False)])
def test_pointnet_is_the_published_network(columns: int, aligned: bool) -> None:
    state, points = pointnet_state(columns, aligned), torch.from_numpy(sample(columns))
    found = pointnet_of(state, "a.pt")(points[None])[0]
    torch.testing.assert_close(found, pointnet(state, points), atol=1e-3, rtol=1e-3)


def without(state: State, name: str) -> State:
    return {k: v for k, v in state.items() if k != name}


BROKEN: list[tuple[State, str]] = [
    (without(pointmlp_state(), "embedding.net.1.running_var"), "EQ-M830"),
    (without(pointmlp_state(), "groupers.1.affine_beta"), "EQ-M830"),
    ({**pointmlp_state(), "extra.weight": torch.zeros(2)}, "EQ-M830"),
    ({**pointmlp_state(), "groupers.0.affine_alpha": torch.zeros(1, 1, 1, 11)}, "EQ-M830"),
    (without(pointmlp_state(), "pre_extractors.1.blocks.1.net.0.weight"), "EQ-M830"),
    (pointnet_state(3, False), "EQ-M830"),
]


@pytest.mark.parametrize(("state", "code"), BROKEN)
def test_other_checkpoints_are_refused(state: State, code: str) -> None:
    with pytest.raises(ModelError) as caught:
        pointmlp_of(state, "a.pt")
    assert caught.value.code == code


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file(pointnet_state(6, False), path, metadata={"labels": "bed,car,cup,sofa,ufo"})
    return path


def test_a_loaded_network_knows_its_classes_and_its_host_part(saved: Path) -> None:
    adapter: Any = load_model(ModelRequest("points", "pointnet", saved))
    assert adapter.loaded.classes == ("bed", "car", "cup", "sofa", "ufo")
    assert adapter.loaded.cloud["columns"] == 6
    assert adapter.loaded.input_shapes == ((1, 1024, 6),)
    (points,) = adapter.inputs(np.random.default_rng(0).normal(size=(1100, 6)).astype(np.float32))
    assert points.shape == (1, 1024, 6)
    assert adapter.judge([np.array([[0.0, 3, 1, 1, 1]], np.float32)], None, 1) == 100
    for shape, code in (((1000, 6), "EQ-D834"), ((1100, 3), "EQ-D835")):
        with pytest.raises(DataError) as caught:
            adapter.inputs(np.zeros(shape, np.float32))
        assert caught.value.code == code


def test_names_and_weights_are_needed(saved: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.safetensors"
    save_file(pointnet_state(6, False), wrong, metadata={"labels": "bed,car"})
    cases: list[tuple[str, Path | None, type[EdgeqError], str]] = [
        ("pointnett", saved, UsageError, "EQ-U830"),
        ("", saved, UsageError, "EQ-U830"),
        ("pointnet", None, UsageError, "EQ-U016"),
        ("pointnet", wrong, ModelError, "EQ-M831"),
        ("pointmlp_elite", saved, ModelError, "EQ-M830"),
    ]
    for name, path, kind, code in cases:
        with pytest.raises(kind) as caught:
            load_model(ModelRequest("points", name, path))
        assert caught.value.code == code
