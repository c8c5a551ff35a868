"""The calibration cache: never stale, never half-written, never in the way."""

from __future__ import annotations

import operator
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

import edgeq.cache
from edgeq.cache import cache_dir, cache_key, calibration_key, load, store
from edgeq.errors import InternalError
from edgeq.quant.statistics import TensorStatistics
from edgeq.spec import Preprocess

PARTS: dict[str, Any] = {
    "weights": "ab" * 32,
    "graph": "def forward(self, x): return x",
    "items": ["11" * 32, "22" * 32],
    "preprocess": {"height": 224, "mean": [0.5, 0.5, 0.5]},
    "tensors": ["a", "b"],
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache."""
    monkeypatch.setenv("EDGEQ_CACHE_DIR", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "calibration"
    for path in tmp_path.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)


@pytest.fixture
def statistics() -> dict[str, TensorStatistics]:
    result = {"x": TensorStatistics(), "a/b: odd name": TensorStatistics(1), "never seen": TensorStatistics()}
    result["x"].update(torch.randn(50))
    result["a/b: odd name"].update(torch.randn(4, 3))
    return result


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("weights", "ac" * 32),
        ("graph", "def forward(self, x): return -x"),
        ("items", ["22" * 32, "11" * 32]),
        ("items", ["11" * 32]),
        ("preprocess", {"height": 225, "mean": [0.5, 0.5, 0.5]}),
        ("preprocess", {"height": 224, "mean": [0.5, 0.5, 0.5000001]}),
        ("tensors", ["a"]),
        ("tensors", ["ab"]),
    ],
)
def test_any_change_changes_the_key(part: str, value: object) -> None:
    assert cache_key(PARTS) != cache_key({**PARTS, part: value})


def test_format_and_torch_version_change_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    key = cache_key(PARTS)
    monkeypatch.setattr(edgeq.cache, "FORMAT", edgeq.cache.FORMAT + 1)
    assert cache_key(PARTS) != key
    monkeypatch.undo()
    monkeypatch.setattr(edgeq.cache, "version", lambda _: "0.0")
    assert cache_key(PARTS) != key


def test_keys_are_stable_hex_and_blind_to_the_order_of_mappings() -> None:
    key = cache_key(PARTS)
    assert key == cache_key(dict(reversed(PARTS.items())))
    assert len(key) == 64
    assert set(key) <= set("0123456789abcdef")


@given(JSON, JSON)
def test_different_values_have_different_keys(first: object, second: object) -> None:
    assert (repr(first) == repr(second)) <= (cache_key(first) == cache_key(second))
    if cache_key(first) == cache_key(second):
        assert first == second


def test_look_alikes_have_different_keys() -> None:
    array = np.arange(4, dtype=np.int32)
    alikes: list[tuple[object, ...]] = [
        (1,), ("1",), (1.0,), (True,), (None,), ("None",), (b"1",), ([1],), ({"1": 1},), (1, 1), ([1, 1],), ("11",),
        (), ([],), ({},), (array,), (array.reshape(2, 2),), (array.astype(np.float32),), (array.astype(">i4"),),
        ({"bytes": "x"},), ({"mapping": {}},),
    ]  # fmt: skip
    assert len({cache_key(*parts) for parts in alikes}) == len(alikes)


@pytest.mark.parametrize("part", [float("nan"), {1: 2}, {1, 2}, object(), np.array([None]), Path("x")])
def test_what_has_no_canonical_form_is_refused(part: object) -> None:
    with pytest.raises(InternalError) as caught:
        cache_key([part])
    assert caught.value.code == "EQ-Z022"


class Scaled(nn.Module):
    """A weight used by name, as captured graphs do."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(values, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def test_calibration_keys_follow_everything_calibration_depends_on() -> None:
    size = Preprocess(8, 8)

    def key(values: object = (1.0, 2.0), dtype: torch.dtype = torch.float32, **changes: object) -> str:
        graph = fx.symbolic_trace(Scaled(torch.tensor(values, dtype=dtype)))
        arguments: dict[str, Any] = {"tensors": ["mul", "x"], "items": ["11", "22"], "preprocess": size, **changes}
        return calibration_key(graph, **arguments)

    assert key() == key() == key(tensors=["x", "mul"])
    others = [
        key((1.0, 2.0000002)),
        key(((1.0, 2.0),)),
        key(dtype=torch.bfloat16),
        key(3.0),
        key(tensors=["mul"]),
        key(items=["22", "11"]),
        key(items=["11"]),
        key(preprocess=replace(size, crop_fraction=0.9)),
        key(preprocess=replace(size, interpolation="bilinear")),
        key(preprocess=replace(size, std=(0.229, 0.224, 0.226))),
    ]
    assert len({key(), *others}) == len(others) + 1


def test_calibration_keys_follow_the_operations() -> None:
    graph = fx.symbolic_trace(Scaled(torch.ones(2)))
    before = calibration_key(graph, ["mul"], [], Preprocess(8, 8))
    for node in graph.graph.nodes:
        if node.name == "mul":
            node.target = operator.add
    graph.recompile()
    assert calibration_key(graph, ["mul"], [], Preprocess(8, 8)) != before


def test_round_trip(folder: Path, statistics: dict[str, TensorStatistics]) -> None:
    key = cache_key(PARTS)
    assert load(key) is None
    assert store(key, statistics)
    found = load(key)
    assert found == statistics
    assert found is not None
    assert list(found) == list(statistics)
    assert [p.name for p in folder.iterdir()] == [f"{key}.npz"]
    assert load(cache_key({**PARTS, "weights": ""})) is None
    assert store(key, {})
    assert load(key) == {}


def test_every_damage_is_a_miss_and_is_removed(folder: Path, statistics: dict[str, TensorStatistics]) -> None:
    key = cache_key(PARTS)
    store(key, statistics)
    path = folder / f"{key}.npz"
    sound, rng = path.read_bytes(), random.Random(0)
    damages = [b"", b"junk", sound[:-1], sound[: len(sound) // 2], b"\x93NUMPY" + sound]
    for _ in range(150):
        damaged = bytearray(sound)
        damaged[rng.randrange(len(sound))] ^= 1 << rng.randrange(8)
        damages.append(bytes(damaged))
    for damage in damages:
        path.write_bytes(damage)
        found = load(key)
        assert found is None or found == statistics  # some bits of a zip file carry nothing
        assert path.exists() == (found is not None)


def test_an_entry_under_another_name_is_a_miss(folder: Path, statistics: dict[str, TensorStatistics]) -> None:
    key, other = cache_key(1), cache_key(2)
    store(key, statistics)
    (folder / f"{key}.npz").rename(folder / f"{other}.npz")
    assert load(other) is None


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statistics: dict[str, TensorStatistics]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("EDGEQ_CACHE_DIR", str(blocked))
    assert not store(cache_key(1), statistics)
    assert load(cache_key(1)) is None
    assert blocked.read_text() == "not a folder"


def test_a_full_disk_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, statistics: dict[str, TensorStatistics]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    assert not store(cache_key(1), statistics)
    assert list(folder.iterdir()) == []


def test_an_interrupt_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, statistics: dict[str, TensorStatistics]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store(cache_key(1), statistics)
    assert list(folder.iterdir()) == []


def test_the_least_recently_used_go_first(folder: Path, statistics: dict[str, TensorStatistics]) -> None:
    keys = [cache_key(i) for i in range(4)]
    for age, key in enumerate(keys[:3]):
        store(key, statistics)
        used = time.time() - 100 + age
        os.utime(folder / f"{key}.npz", (used, used))
    assert load(keys[0]) is not None  # a hit makes it young
    size = (folder / f"{keys[0]}.npz").stat().st_size
    store(keys[3], statistics, limit_bytes=int(2.5 * size))
    assert [load(key) is not None for key in keys] == [True, False, False, True]
    store(keys[1], statistics, limit_bytes=1)
    assert [load(key) is not None for key in keys] == [False, True, False, False]


def test_what_killed_writers_left_is_removed(folder: Path, statistics: dict[str, TensorStatistics]) -> None:
    folder.mkdir(parents=True)
    old, young = folder / ".aside-old.tmp", folder / ".aside-young.tmp"
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (0, 0))
    store(cache_key(1), statistics)
    assert not old.exists()
    assert young.exists()  # its writer may be alive


def test_writers_and_readers_at_once(statistics: dict[str, TensorStatistics]) -> None:
    keys = [cache_key(i) for i in range(3)]

    def work(step: int) -> bool:
        key = keys[step % 3]
        stored = store(key, statistics)
        return stored and load(key) in (statistics, None)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(24)))


def test_the_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.setenv("EDGEQ_CACHE_DIR", "")
    assert cache_dir().name == "edgeq"
