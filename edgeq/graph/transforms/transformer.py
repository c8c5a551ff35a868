"""All transforms that make a transformer's tensors fit grids of 8 bits and fewer, in an order that works."""

from __future__ import annotations

import copy
from itertools import islice

from torch import fx

from edgeq.graph.naming import rebuild
from edgeq.graph.rewrite import refresh
from edgeq.graph.transforms.balance import balance_hidden, balance_stems, hidden_tensors, stem_tensors
from edgeq.graph.transforms.channels import channel_statistics
from edgeq.graph.transforms.heads import head_tensors, rotate_heads, scale_heads
from edgeq.graph.transforms.keys import center_keys, key_tensors
from edgeq.graph.transforms.probabilities import SplitReport, split_probabilities
from edgeq.graph.transforms.report import Applied, Batches, Report
from edgeq.graph.transforms.rotate import RotationReport, rotate_streams

HEADS_EVERY = 4
"""Heads are scaled on every so many batches: only their ratios matter, and all batches calibrate the grids."""


def spread_outliers(graph: fx.GraphModule, seed: int = 0) -> tuple[fx.GraphModule, tuple[Applied, ...]]:
    """Rotate residual streams in a copy of `graph`; needs no data.

    Args:
        graph: Canonical float graph.
        seed: Of the rotation.
    """
    copied = copy.deepcopy(graph)
    report = rotate_streams(copied, seed)
    return rebuild(copied), (_rotated(report),)


def fit_transformer(
    graph: fx.GraphModule, batches: Batches, seed: int = 0, *, products: bool = True
) -> tuple[fx.GraphModule, tuple[Applied, ...]]:
    """Rotate streams and heads, centre keys, balance hidden layers, scale heads and split probabilities, in a copy.

    The function stays, up to float rounding. A graph without attention, or without layer norms, is left alone where
    nothing fits.

    Args:
        graph: Canonical float graph.
        batches: Calibration inputs; read once, and every fourth of them twice.
        seed: Of the rotations.
        products: Whether products of two activations will read grids; heads are scaled and probabilities split for
            them alone.

    Raises:
        DataError: There is no batch, or an input holds NaN or infinity.
    """
    copied = copy.deepcopy(graph)
    stems = stem_tensors(copied)
    streams = rotate_streams(copied, seed)
    heads = rotate_heads(copied, seed)
    axes = {**dict.fromkeys(hidden_tensors(copied), -1), **key_tensors(copied), **stems}
    seen = channel_statistics(copied, list(axes), batches(), axes) if axes else {}
    keys = center_keys(copied, seen)
    hidden = balance_hidden(copied, seen)
    stem = balance_stems(copied, {name: seen[name] for name in stems})
    axes = head_tensors(copied) if products else {}
    few = islice(batches(), 0, None, HEADS_EVERY)
    seen = channel_statistics(copied, list(axes), few, axes) if axes else {}
    scaled = scale_heads(copied, seen) if products else Report((), ())
    split = split_probabilities(copied) if products else SplitReport({}, ())
    refresh(copied)
    applied = (
        _rotated(streams),
        Applied("rotate heads", len(heads.sites), heads.skipped),
        Applied("centre keys", len(keys.sites), keys.skipped),
        Applied("balance hidden layers", len(hidden.sites), hidden.skipped),
        Applied("balance stems", len(stem.sites), stem.skipped),
        Applied("scale heads", len(scaled.sites), scaled.skipped),
        Applied("split probabilities", len(split.thresholds), split.skipped),
    )
    return rebuild(copied), applied


def _rotated(report: RotationReport) -> Applied:
    detail = ", ".join(f"{channels} channels by a {kind} matrix" for channels, kind, _ in report.rotated)
    return Applied("rotate streams", len(report.rotated), report.skipped, detail)
