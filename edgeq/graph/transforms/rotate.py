"""Rotation of residual streams: every channel becomes a mixture of all, so that no channel is an outlier.

Layer norm first becomes RMS norm: its scale and shift move into its readers, its centring into the writers (Ashkboos
et al. 2024, "SliceGPT", arXiv 2401.15024, section 3). Then the stream may be rotated by any orthogonal matrix (Ashkboos
et al. 2024, "QuaRot", arXiv 2404.00456; for vision transformers GLF-Q). Deviations: a Hadamard matrix with random signs
where the width has one, else a random rotation; constants that enter the stream and convolutions that read its last
norm are followed through the graph, also where zero padding keeps the shift from moving into a bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from edgeq.graph.rewrite import aten, call, fetch, refresh, supersede
from edgeq.graph.transforms.parameters import argument, parameter, set_parameter, store_constant
from edgeq.graph.transforms.report import Skipped
from edgeq.graph.transforms.stream import NormRead, Stream, residual_streams
from edgeq.quant.hadamard import rotation

_SMALLEST_SCALE = 1e-4  # of the largest: a shift is divided by the norm's scale where a convolution pads


@dataclass(frozen=True)
class RotationReport:
    """What `rotate_streams` did.

    Args:
        rotated: For each rotated stream its width, `hadamard` or `random`, and the number of its norms.
        skipped: First norm of each stream left as it was, and why.
    """

    rotated: tuple[tuple[int, str, int], ...]
    skipped: tuple[Skipped, ...]


def rotate_streams(gm: fx.GraphModule, seed: int = 0) -> RotationReport:
    """Rotate every residual stream of `gm`, in place; the function it computes stays, up to float rounding.

    Layer norms of rotated streams are RMS norms (`aten.rms_norm`) afterwards, without scale and shift.

    Args:
        gm: Canonical graph with valid shapes; refreshed afterwards.
        seed: Of the rotations.
    """
    rotated, skipped = [], []
    for stream in residual_streams(gm):
        reason = stream.reason or _unfit(gm, stream)
        if reason:
            skipped.append(Skipped(next(iter(stream.norms)), reason))
            continue
        matrix, kind = rotation(stream.channels, seed)
        _rotate(gm, stream, matrix)
        rotated.append((stream.channels, kind, len(stream.norms)))
    gm.graph.lint()
    gm.recompile()
    refresh(gm)
    return RotationReport(tuple(rotated), tuple(skipped))


def _unfit(gm: fx.GraphModule, stream: Stream) -> str:
    """Why the norms of a stream cannot be folded; empty when they can."""
    nodes = {n.name: n for n in gm.graph.nodes}
    for name, reads in stream.norms.items():
        scale = parameter(gm, nodes[name], "weight")
        peaks = None if scale is None or not any(r.padded for r in reads) else scale.abs()
        if peaks is not None and float(peaks.min()) < _SMALLEST_SCALE * float(peaks.max()):
            return f"{name} has channels of scale 0 before a padded convolution"
        if len({r.node for r in reads}) != len(reads):
            return f"a reader of {name} reads it twice"
    return ""


def _rotate(gm: fx.GraphModule, stream: Stream, matrix: Tensor) -> None:
    """Rotate one stream by `matrix` (C, C), float64."""
    nodes = {n.name: n for n in gm.graph.nodes}
    writing = matrix - matrix.mean(0, keepdim=True)  # centring, then rotation
    for name in stream.writers:
        node = nodes[name]
        weight, bias = parameter(gm, node, "weight"), parameter(gm, node, "bias")
        assert weight is not None
        set_parameter(gm, node, "weight", torch.tensordot(writing.T, weight.double(), 1))
        if bias is not None:
            set_parameter(gm, node, "bias", bias.double() @ writing)
    for entry in stream.constants:
        _rotate_constant(gm, nodes[entry.reader], nodes[entry.node], entry.axis, writing)
    for name, reads in stream.norms.items():
        _fold_norm(gm, nodes[name], [(nodes[r.node], r) for r in reads], matrix)


def _rotate_constant(gm: fx.GraphModule, reader: fx.Node, constant: fx.Node, axis: int, writing: Tensor) -> None:
    turned = (fetch(gm, str(constant.target)).double().movedim(axis, -1) @ writing).movedim(-1, axis)
    new = store_constant(gm, f"{constant.target}_rotated", turned, reader)
    reader.replace_input_with(constant, new)
    if not constant.users:
        gm.graph.erase_node(constant)


def _fold_norm(gm: fx.GraphModule, norm: fx.Node, reads: list[tuple[fx.Node, NormRead]], matrix: Tensor) -> None:
    """Move scale, shift and rotation of a layer norm into its readers and leave an RMS norm."""
    channels = matrix.shape[0]
    scale = parameter(gm, norm, "weight")
    shift = parameter(gm, norm, "bias")
    gamma = torch.ones(channels, dtype=torch.float64) if scale is None else scale.double()
    beta = torch.zeros(channels, dtype=torch.float64) if shift is None else shift.double()
    padded = any(read.padded for _, read in reads) and bool(beta.any())
    for node, read in reads:
        weight = parameter(gm, node, "weight")
        assert weight is not None
        old = weight.double()
        bias = parameter(gm, node, "bias")
        axis = 1  # (O, C) and (O, C, kh, kw)
        turned = (old.movedim(axis, -1) * gamma) @ matrix
        set_parameter(gm, node, "weight", turned.movedim(-1, axis))
        if not padded and bool(beta.any()):
            taps = old.sum(tuple(range(2, old.dim()))) if old.dim() > 2 else old
            start = torch.zeros(old.shape[0], dtype=torch.float64) if bias is None else bias.double()
            set_parameter(gm, node, "bias", start + read.factor * (taps @ beta))
    source = norm.args[0]
    assert isinstance(source, fx.Node)
    eps = argument(norm, "eps")
    rms = call(gm, aten.rms_norm.default, source, [channels], None, eps, before=norm)
    rms.meta["val"] = norm.meta["val"]
    if padded:
        path = f"{norm.meta.get('path') or norm.name}.shift"
        constant = store_constant(gm, path, (beta / gamma) @ matrix, norm)
        rms = call(gm, aten.add.Tensor, rms, constant, before=norm)
        rms.meta["val"] = norm.meta["val"]
    supersede(norm, rms)
