"""Comparing the integers of a written file with those of the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeq.spec import QuantPlan, codes_hash


@dataclass(frozen=True)
class Constant:
    """An integer constant of a file.

    Args:
        name: Its name in the file.
        layouts: Its codes in every layout of the plan that they can stand for.
        scales: float32, as in the plan.
        results: Tensors with the results of the layers that read it, in execution order.
    """

    name: str
    layouts: Sequence[NDArray[np.int32]]
    scales: NDArray[np.float32]
    results: tuple[str, ...] = ()


@dataclass(frozen=True)
class Match:
    """What of a plan a file holds; the fields are those of `ReadBack`."""

    weights: dict[str, NDArray[np.int32]]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    sites: dict[str, tuple[str, ...]]


def match_weights(constants: Sequence[Constant], plan: QuantPlan | None) -> Match:
    """Planned weights that the file holds with equal integers and scales, those it lacks, and what nobody planned."""
    wanted = plan.weights() if plan else []
    planned = {(t.codes_sha256, t.uniform.scale.tobytes()) for t in wanted}
    held: dict[tuple[str, bytes], NDArray[np.int32]] = {}
    results: dict[tuple[str, bytes], tuple[str, ...]] = {}
    extra = []
    for constant in constants:
        keys = {(codes_hash(layout), constant.scales.tobytes()): layout for layout in constant.layouts}
        known = {key: layout for key, layout in keys.items() if key in planned}
        held.update(known)
        for key in known:
            results[key] = (*results.get(key, ()), *constant.results)
        if not known:
            extra.append(constant.name)
    weights = {}
    missing = []
    names: dict[tuple[str, bytes], list[str]] = {}
    for tensor in wanted:
        key = (tensor.codes_sha256, tensor.uniform.scale.tobytes())
        names.setdefault(key, []).append(tensor.name)
        if key in held:
            weights[tensor.name] = held[key]
        else:
            missing.append(tensor.name)
    sites: dict[str, tuple[str, ...]] = {}
    for key, found in results.items():
        sites.update(share_out(names[key], found))
    return Match(weights, tuple(missing), tuple(extra), sites)


def share_out(weights: Sequence[str], results: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Which results are whose: all are a single weight's; of equal weights each has one, or nobody knows."""
    if len(weights) == 1:
        return {weights[0]: results}
    return {w: (r,) for w, r in zip(weights, results, strict=True)} if len(weights) == len(results) else {}
