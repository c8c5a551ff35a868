"""Attention probabilities on two ranges: most of them are small, and a grid to 1 rounds the small ones away."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import fx

from edgeq.graph.bounds import set_bounds
from edgeq.graph.recognize import attention_sites
from edgeq.graph.rewrite import aten, call, refresh, supersede
from edgeq.graph.transforms.report import Skipped


@dataclass(frozen=True)
class SplitReport:
    """What `split_probabilities` did.

    Args:
        thresholds: Upper end of the small range, by index of the attention.
        skipped: Attentions left as they were, by their softmax, and why.
    """

    thresholds: dict[int, float]
    skipped: tuple[Skipped, ...]


def threshold_of(keys: int) -> float:
    """Upper end of the small range for a softmax over `keys` tokens: the power of 2 nearest to `8 / keys`, below 1.

    Eight times the mean probability. On a ViT-S of 257 tokens this is 1/32; 1/16 to 1/128 differ little.
    """
    return 2.0 ** min(-1, round(math.log2(8 / keys)))


def split_probabilities(gm: fx.GraphModule) -> SplitReport:
    """Write `P V` as `min(P, t) V + (P - min(P, t)) V` for every attention whose softmax only its context reads.

    Each part fits a grid of its own: steps of `t / 255` for the many small probabilities, steps of `1 / 255` for the
    few large ones, where the first part is at its end. This is the twin uniform quantizer of PTQ4ViT (Yuan et al.,
    arXiv:2111.12293) in plain operations, two integer matmuls and a sum, instead of codes with a range flag. Deviation:
    the threshold is fixed by the number of keys, not searched.

    Args:
        gm: Canonical graph, changed in place; refreshed afterwards. The bounds of both parts are noted on them, so
            that they need no calibration.
    """
    thresholds: dict[int, float] = {}
    skipped = []
    nodes = {n.name: n for n in gm.graph.nodes}
    for site in attention_sites(gm):
        softmax, context = nodes[site.softmax], nodes[site.context]
        if set(softmax.users) != {context}:
            skipped.append(Skipped(site.softmax, "other operations read the probabilities too"))
            continue
        threshold = threshold_of(site.keys)
        small = call(gm, aten.clamp.default, softmax, None, threshold, before=context)
        large = call(gm, aten.sub.Tensor, softmax, small, before=context)
        set_bounds(small, 0.0, threshold, "split of the probabilities")
        set_bounds(large, 0.0, 1.0 - threshold, "split of the probabilities")
        parts = [call(gm, aten.matmul.default, p, context.args[1], before=context) for p in (small, large)]
        supersede(context, call(gm, aten.add.Tensor, *parts, before=context))
        thresholds[site.index] = threshold
    gm.graph.lint()
    gm.recompile()
    refresh(gm)
    return SplitReport(thresholds, tuple(skipped))
