"""RepQ-ViT's scale reparameterization: one scale per channel of a layer norm becomes one scale for the tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import fx

from edgeq.errors import UsageError, unknown_name
from edgeq.graph.transforms.channels import ChannelStatistics
from edgeq.graph.transforms.norm_sites import norm_sites, shift_and_scale, statistics_of
from edgeq.graph.transforms.report import Report, Skipped
from edgeq.quant.uniform import qparams_from_range
from edgeq.spec import PerChannel, PerTensor, QParams, QuantSpec

Factor = Literal["mean", "median"]


@dataclass(frozen=True)
class Reparameterized:
    """A normalization whose channels now share a grid.

    Args:
        tensor: What the linears read; the grid is that of this tensor.
        qparams: The one grid on which every channel has the codes that it had on its own.
        smallest: Smallest ratio of a channel's scale to the shared one.
        largest: Largest ratio.
    """

    tensor: str
    qparams: QParams
    smallest: float
    largest: float


def reparameterize(
    gm: fx.GraphModule,
    statistics: Mapping[str, ChannelStatistics],
    spec: QuantSpec,
    factor: Factor = "mean",
) -> Report[Reparameterized]:
    """Give the channels of each normalization one grid, moving their own scales and zero points into the linears.

    With scales s and zero points z of the channels, `s~ = mean(s)`, `z~ = round(mean(z))`, `r1 = s / s~` and
    `r2 = z - z~`: `gamma' = gamma / r1`, `beta' = (beta + s r2) / r1`, `W' = r1 W`, `c' = c - W (s r2)`. On the grid
    `(s~, z~)` the new tensor has the integer codes that the old one had on `(s, z)`.

    Source: RepQ-ViT (Li et al., arXiv:2212.08254), section 3.3. Deviations: z~ is rounded, as integer kernels need,
    which keeps the codes identical; ranges are the smallest and largest value seen; s~ may be the median (MOSF),
    which changes neither codes nor results, only the magnitude of W'.

    Args:
        gm: Canonical graph, changed in place.
        statistics: Of the outputs of its `norm_sites`, by name; sites without are skipped.
        spec: Bits and symmetry of the grid.
        factor: How s~ comes from s.

    Raises:
        UsageError: Unknown factor, a spec with groups, or statistics of other channels.
    """
    if factor not in get_args(Factor):
        raise unknown_name("factor", factor, get_args(Factor), code="EQ-U261")
    if spec.granularity != PerTensor():
        message = f"the result is one scale for the tensor, not {spec.granularity}"
        raise UsageError(message, code="EQ-U261", hint="use PerTensor")
    found, skipped = norm_sites(gm)
    done: list[Reparameterized] = []
    left = list(skipped)
    for site in found:
        seen = statistics_of(statistics, site.output, site.width)
        if seen is None:
            left.append(Skipped(site.norm, "no statistics of its output"))
            continue
        each = qparams_from_range(seen.low.numpy(), seen.high.numpy(), replace(spec, granularity=PerChannel(-1)))
        scales, zeros = torch.from_numpy(each.scale).double(), torch.from_numpy(each.zero_point).double()
        shared = np.float32(float(scales.mean() if factor == "mean" else scales.quantile(0.5)))
        zero = torch.round(zeros.mean())
        ratio = scales / float(shared)
        site = shift_and_scale(gm, site, scales * (zeros - zero), ratio)
        qparams = QParams(spec, np.asarray(shared), np.asarray(int(zero)))
        done.append(Reparameterized(site.output, qparams, float(ratio.min()), float(ratio.max())))
    return Report(tuple(done), tuple(left))
