"""Which weights of a graph get 4 bits and which keep 8, so that the file fits a budget and the outputs stay close.

Every weight that may be narrow is tried alone: what that does to the outputs is its score, what it saves its cost, and
an integer program picks the best set (`edgeq.quant.allocation`). Scores are measured on the float network with one
rounded weight at a time, and are assumed to add up, as in ZeroQ (arXiv 2001.00281) and AdaQuant (arXiv 2006.10518).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from edgeq.errors import UsageError
from edgeq.graph.rewrite import fetch
from edgeq.metrics import sqnr_db
from edgeq.progress import Advance
from edgeq.quant.allocation import Allocation, Choice, ilp, weight_bytes
from edgeq.quant.sensitivity import kl_divergence, measured
from edgeq.quant.uniform import dequantize
from edgeq.quant.weights import round_weights, weight_qparams
from edgeq.spec import PerGroup, QuantSpec

NARROW, WIDE = 4, 8

Sample = tuple[Tensor, ...]
Loss = Callable[[Tensor, Tensor], float]
"""`(reference, test) -> loss`, 0 where they agree."""

Damage = Callable[[Sequence[Tensor], Sequence[Tensor]], float]
"""The same for all outputs of a network together."""


@dataclass(frozen=True)
class WidthProblem:
    """What is to be decided.

    Args:
        weights: Spec of each weight in 8 and in 4 bits by its attribute path; only 8 where it must stay so.
        overhead: Bytes of the file that are not codes and scales of these weights.
        budget: Largest size of the file in bytes.
        extra: Bytes that the file needs besides for a narrow weight, for an operation that widens it, say.
    """

    weights: Mapping[str, Mapping[int, QuantSpec]]
    overhead: float
    budget: float
    extra: float = 0.0


@dataclass(frozen=True)
class Study:
    """What is known of a network before its widths are decided.

    Args:
        graph: Float graph.
        problem: Weights and overhead.
        losses: From `weight_losses`.
    """

    graph: fx.GraphModule
    problem: WidthProblem
    losses: Mapping[str, float]


@dataclass(frozen=True)
class WidthChoice:
    """The decision.

    Args:
        allocation: Width by attribute path.
        losses: Of the outputs with that weight alone in 4 bits.
        expected_bytes: Size of the file.
    """

    allocation: Allocation
    losses: Mapping[str, float]
    expected_bytes: int

    @property
    def narrow(self) -> tuple[str, ...]:
        """The weights in 4 bits, in the order of the graph."""
        return tuple(name for name, bits in self.allocation.bits.items() if bits == NARROW)

    def to_dict(self) -> dict[str, Any]:
        """JSON form for `evidence.json`."""
        return {
            "solver": self.allocation.solver,
            "gap": self.allocation.gap,
            "expected_bytes": self.expected_bytes,
            "bits": dict(self.allocation.bits),
            "loss_alone_in_4_bits": dict(self.losses),
        }


def choose_widths(graph: fx.GraphModule, problem: WidthProblem, losses: Mapping[str, float]) -> WidthChoice:
    """The best widths within the budget.

    Args:
        graph: Float graph.
        problem: Weights and budget.
        losses: From `weight_losses`.

    Raises:
        UsageError: EQ-U332 where even the narrowest weights do not fit.
    """
    return share_budget({"": Study(graph, problem, losses)}, problem.budget)[""]


def share_budget(studies: Mapping[str, Study], budget: float) -> dict[str, WidthChoice]:
    """The best widths of several networks, by name, whose files fit a budget together.

    Args:
        studies: The networks; losses of all are of the same kind.
        budget: Largest size of all files in bytes.

    Raises:
        UsageError: EQ-U332 where even the narrowest weights do not fit.
    """
    overhead = sum(study.problem.overhead for study in studies.values())
    choices = {name: _choices(study) for name, study in studies.items()}
    least = overhead + sum(_least(found) for found in choices.values())
    if least > budget:
        raise UsageError(
            f"the budget of {budget / 1000:g} kB is below {least / 1000:.0f} kB, the smallest file of this "
            "model with 4-bit weights wherever they can be",
            code="EQ-U332",
            hint=f"--budget-kb {math.ceil(least / 1000)}, or another --scheme",
        )
    named = {name: [replace(c, name=f"{name}/{c.name}") for c in found] for name, found in choices.items()}
    whole = ilp([choice for found in named.values() for choice in found], budget - overhead)
    result = {}
    for name, study in studies.items():
        picked = [c for c in choices[name] if whole.bits[f"{name}/{c.name}"] == c.bits]
        cost, score = math.fsum(c.cost for c in picked), math.fsum(c.score for c in picked)
        own = replace(whole, bits={c.name: c.bits for c in picked}, cost=cost, score=score)
        result[name] = WidthChoice(own, study.losses, round(cost + study.problem.overhead))
    return result


def _choices(study: Study) -> list[Choice]:
    """What each weight of a network may have."""
    choices = []
    for path, specs in study.problem.weights.items():
        weight = fetch(study.graph, path)
        for bits, spec in specs.items():
            # 8 bits alone are hardly ever seen in the outputs; the difference to 4 is what the choice is about.
            score, extra = (study.losses[path], study.problem.extra) if bits == NARROW else (0.0, 0.0)
            choices.append(Choice(path, bits, weight_cost(weight, spec) + extra, score))
    return choices


def _least(choices: Sequence[Choice]) -> float:
    """Bytes of the narrowest weights."""
    names = dict.fromkeys(choice.name for choice in choices)
    return math.fsum(min(c.cost for c in choices if c.name == name) for name in names)


def weight_cost(weight: Tensor, spec: QuantSpec) -> int:
    """Bytes of a weight with one scale and one zero point, 4 and 8 bytes, per output channel; or a scale per group.

    Of two-level scales both: a step and a zero point per output channel, and a multiple of one byte per group.
    """
    rows = weight_bytes(weight.numel(), spec.bits, scales=3 * len(weight))
    if isinstance(spec.granularity, PerGroup):
        groups = weight.numel() // spec.granularity.size
        if spec.two_level:
            return rows + groups
        return weight_bytes(weight.numel(), spec.bits, groups, 2 if spec.granularity.half else 4)
    return rows


@torch.no_grad()
def weight_losses(
    graph: fx.GraphModule,
    problem: WidthProblem,
    samples: Sequence[Sample],
    damage: Damage,
    *,
    journal: Path | None = None,
    key: str = "",
    advance: Advance | None = None,
) -> dict[str, float]:
    """Loss of the outputs with each narrowable weight alone in 4 bits, rounded to nearest, averaged over samples.

    Args:
        graph: Float graph; each weight is replaced for a while and put back.
        problem: The weights.
        samples: Inputs.
        damage: `largest` of `prediction_loss` or `relative_error`, or what the family knows better.
        journal: File to continue from, see `measured`.
        key: What the measurements depend on.
        advance: Called with 1 after each weight.

    Raises:
        UsageError: No weight may be narrow.
        ModelError: A loss is not finite.
    """
    reference = [graph(*sample) for sample in samples]

    def try_one(path: str, bits: int) -> float:
        weight = fetch(graph, path)
        kept = weight.clone()
        qparams = weight_qparams(weight, problem.weights[path][bits], name=path)
        try:
            weight.copy_(dequantize(round_weights(weight, qparams, name=path), qparams))
            return sum(damage(truth, graph(*x)) for truth, x in zip(reference, samples, strict=True))
        finally:
            weight.copy_(kept)

    offered = {path: [NARROW] for path, specs in problem.weights.items() if NARROW in specs}
    found = measured(offered, try_one, journal=journal, key=key, progress=advance)
    return {path: value / len(samples) for (path, _), value in found.items()}


def largest(loss: Loss) -> Damage:
    """The largest loss over the outputs of a network."""

    def damage(reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
        return max(loss(truth, output) for truth, output in zip(reference, outputs, strict=True))

    return damage


def prediction_loss(reference: Tensor, test: Tensor) -> float:
    """Kullback-Leibler divergence of the predicted classes, for logits `(batch, classes)`."""
    return kl_divergence(reference, test)


def relative_error(reference: Tensor, test: Tensor) -> float:
    """Noise over signal power: the inverse of `edgeq.metrics.sqnr_db`, which adds up over independent errors."""
    return float(10 ** (-sqnr_db(reference.numpy(), test.numpy()) / 10))
