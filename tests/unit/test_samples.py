"""Mixing degraded samples into calibration: about half, drawn by item and seed, and written down."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeq.config import ExportConfig
from edgeq.data import Source
from edgeq.errors import UsageError
from edgeq.models import load_model
from edgeq.models.base import ModelRequest
from edgeq.samples import Samples, collect_samples


@pytest.fixture(scope="module")
def adapter() -> Any:
    return load_model(ModelRequest("vit", "vit_nano", None))


def samples(adapter: Any, **changes: Any) -> Samples:
    return collect_samples(ExportConfig("vit_nano", "rpi", **changes), [adapter])[0]


def test_about_half_are_degraded_and_the_rest_is_as_without(adapter: Any) -> None:
    plain, mixed = samples(adapter), samples(adapter, degrade="mix")
    assert plain.calibration_index == mixed.calibration_index
    assert plain.held_out_index == mixed.held_out_index
    names = Counter(str(c and c.name) for c in map(mixed.condition, mixed.calibration_index))
    share = 1 - names["None"] / len(mixed.calibration_index)
    assert 0.3 < share < 0.7
    assert len(names) > 5
    pairs = zip(plain.calibration(), mixed.calibration(degraded=True), mixed.calibration(), strict=True)
    for index, (clean, degraded, again) in zip(mixed.calibration_index, pairs, strict=True):
        assert np.array_equal(clean[0], again[0])
        assert np.array_equal(clean[0], degraded[0]) == (mixed.condition(index) is None)


def test_the_draw_belongs_to_the_seed(adapter: Any) -> None:
    drawn = [[samples(adapter, degrade="mix", seed=0).condition(i) for i in range(50)] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != [samples(adapter, degrade="mix", seed=1).condition(i) for i in range(50)]
    assert not any(samples(adapter).condition(i) for i in range(50))


def test_names_that_do_not_exist_are_refused_before_any_work(adapter: Any) -> None:
    with pytest.raises(UsageError) as caught:
        samples(adapter, degrade="snow")
    assert caught.value.code == "EQ-U752"


def test_labels_follow_names(tmp_path: Path) -> None:
    from edgeq.data import Item
    from edgeq.errors import DataError

    def source(labels: list[int | None], classes: tuple[str, ...] | None) -> Source[bytes]:
        items = tuple(Item(str(i), "0", label) for i, label in enumerate(labels))
        return Source(str(tmp_path), items, classes, lambda i: b"", lambda data, place: data)

    swapped = source([0, 1, 1], ("a", "b")).for_classes(("b", "a"))
    assert [item.label for item in swapped.items] == [1, 0, 0]
    some = source([0, 2, 0], ("c", "unused", "a")).for_classes(("a", "b", "c"))
    assert [item.label for item in some.items] == [2, 0, 2], "data may show some of the classes only"
    assert some.classes == ("a", "b", "c")
    with pytest.raises(DataError) as caught:
        source([0, 1], ("a", "x")).for_classes(("a", "b"))
    assert caught.value.code == "EQ-D836"
    kept = source([0, 1], ("x", "y")).for_classes(("a", "b", "c"))
    assert [item.label for item in kept.items] == [0, 1]
    unlabelled = source([None], None)
    assert unlabelled.for_classes(("a",)) is unlabelled
    with pytest.raises(DataError) as caught:
        source([0, 3], ("x", "y", "z", "w")).for_classes(("a", "b"))
    assert caught.value.code == "EQ-D059"
