"""Scale searches: candidates for the grid of one operand, judged by the error of the layer's output.

All start from the min-max grid and leave it only for a candidate with a smaller error, so that none is worse than
min-max on the data given. With a handful of samples that is also a way to fit noise: prefer few candidates then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgeq.errors import UsageError, unknown_name
from edgeq.quant.ranges import search_clip
from edgeq.quant.search.fpcs import FpcsBudget, fpcs
from edgeq.quant.search.layer import Array, Layer, OutputErrors, require_finite, scale_shape
from edgeq.quant.uniform import fake_quantize, qparams_from_range
from edgeq.spec import PerChannel, QParams, QuantSpec

PERCENTILES = (0.999, 0.9999, 0.99999, 1.0)
"""Those of RepQ-ViT and min-max: at 8 bits the published three clip too hard."""

_GAIN = 1 - 1e-6  # smaller gains are rounding noise; ignoring them keeps the choice reproducible


@dataclass(frozen=True, eq=False)
class ScaleChoice:
    """The grid that a search chose, and what it is worth.

    Args:
        qparams: The grid.
        error: Output error per scale `(n,)` with it.
        minmax_error: Output error per scale `(n,)` with the min-max grid.
        evaluations: How many grids were tried.
    """

    qparams: QParams
    error: Array
    minmax_error: Array
    evaluations: int

    @property
    def low(self) -> Array:
        """Lower end of the grid, of the shape of the scales."""
        codes = self.qparams.spec.qmin - self.qparams.zero_point.astype(np.float64)
        return self.qparams.scale.astype(np.float64) * codes

    @property
    def high(self) -> Array:
        """Upper end of the grid, of the shape of the scales."""
        codes = self.qparams.spec.qmax - self.qparams.zero_point.astype(np.float64)
        return self.qparams.scale.astype(np.float64) * codes


Search = Callable[[Tensor, QuantSpec, OutputErrors], ScaleChoice]
"""Choose the grid of a tensor by the error of the output."""


def search_grid(
    value: Tensor,
    spec: QuantSpec,
    errors: OutputErrors,
    *,
    alpha: float = 0.01,
    beta: float = 1.2,
    steps: int = 100,
) -> ScaleChoice:
    """Scales between `alpha` and `beta` times that of min-max, in even steps; all channels at once, each for itself.

    PTQ4ViT (Yuan et al. 2021, arXiv 2111.12293, section 3.3). Deviation: the min-max grid itself is always tried.

    Args:
        value: The operand.
        spec: Its grid, per tensor or per channel.
        errors: Output error per scale, from `Layer.errors`.
        alpha: Smallest factor.
        beta: Largest factor.
        steps: Number of steps; one more grid is tried.

    Raises:
        UsageError: Impossible factors, or a granularity that cannot be searched.
        DataError: `value` is empty or not finite.
    """
    if not (0 < alpha <= beta and steps >= 1 and np.isfinite(beta)):
        raise UsageError(
            f"impossible grid of scales: {steps} steps from {alpha} to {beta}",
            code="EQ-U281",
            hint="alpha must be above 0 and at most beta",
        )
    low, high = _ends(value, spec)
    return _best(value, spec, errors, ((low * f, high * f) for f in np.linspace(alpha, beta, steps + 1)))


def search_percentile(
    value: Tensor, spec: QuantSpec, errors: OutputErrors, *, percentiles: Iterable[float] = PERCENTILES
) -> ScaleChoice:
    """Ranges from quantile `1 - P` to quantile `P`; all channels at once, each for itself.

    RepQ-ViT (Li et al. 2023, arXiv 2212.08254, section 4). Deviations: the error is that of the output, not of the
    operand, and 1.0 (min-max) is among the candidates.

    Args:
        value: The operand.
        spec: Its grid, per tensor or per channel.
        errors: Output error per scale, from `Layer.errors`.
        percentiles: The P, above 0.5 and at most 1.

    Raises:
        UsageError: A percentile out of bounds, or a granularity that cannot be searched.
        DataError: `value` is empty or not finite.
    """
    wanted = tuple(percentiles)
    if not wanted or not all(0.5 < p <= 1 for p in wanted):
        raise UsageError(
            f"percentiles must be above 0.5 and at most 1: {wanted}",
            code="EQ-U281",
            hint=f"{PERCENTILES} for example",
        )
    require_finite(value, "an operand")
    rows = _rows(value, spec).numpy()
    quantiles = np.quantile(rows, [*(1 - p for p in wanted), *wanted], axis=1).astype(np.float64)
    return _best(value, spec, errors, zip(quantiles[: len(wanted)], quantiles[len(wanted) :], strict=True))


def search_clip_ends(value: Tensor, spec: QuantSpec, errors: OutputErrors) -> ScaleChoice:
    """Both ends of the range, together and each on its own: `edgeq.quant.ranges.search_clip` on the output error.

    Tries some 300 grids (60 symmetric ones), and is the only search here that shrinks one end alone.

    Args:
        value: The operand.
        spec: Its grid, per tensor or per channel.
        errors: Output error per scale, from `Layer.errors`.

    Raises:
        UsageError: A granularity that cannot be searched.
        DataError: `value` is empty or not finite.
    """
    low, high = _ends(value, spec)
    trial = _Trial(value, spec, errors)
    ends = search_clip(low, high, trial.of_range, symmetric=spec.symmetric)
    return trial.choose(*ends)


def search_fpcs(
    value: Tensor,
    spec: QuantSpec,
    errors: OutputErrors,
    *,
    budget: FpcsBudget | None = None,
    zero_points: int = 16,
) -> ScaleChoice:
    """Scale and zero point together by `fpcs`, for one scale per tensor.

    AdaLog (Wu et al. 2024, arXiv 2407.12951, section 3.3): scales between the ranges of the 0.90 and the 1.00 quantile,
    zero points around the middle code. Deviation: around the zero point of min-max, further apart the more codes there
    are, because that of a GELU at 8 bits is far from the middle; a symmetric grid has only its scale to search.

    Args:
        value: The operand.
        spec: Its grid, per tensor.
        errors: Output error `(1,)`, from `Layer.errors`.
        budget: Size of the beam.
        zero_points: Zero points tried with each scale.

    Raises:
        UsageError: One scale per channel, or fewer than one zero point.
        DataError: `value` is empty or not finite.
    """
    if isinstance(spec.granularity, PerChannel) or zero_points < 1:
        raise UsageError(
            f"a progressive search finds one scale and one of {zero_points} zero points, not {spec.granularity}",
            code="EQ-U280",
            hint="search the scales of channels with `output_mse`, or one channel after the other",
        )
    budget = budget or FpcsBudget()
    trial = _Trial(value, spec, errors)
    low, high = _ends(value, spec)
    if not (high - low).any() or not trial.minmax_error.any():
        return trial.choose(low, high)
    start = trial.minmax
    inner = np.quantile(_rows(value, spec).numpy(), [0.1, 0.9])
    least = float(qparams_from_range(min(inner[0], 0.0), max(inner[1], 0.0), spec).scale) if inner.any() else 0.0
    full = float(start.scale)
    count = max(2, budget.width // zero_points) if not spec.symmetric else budget.width
    scales = np.linspace(max(min(least, 0.9 * full), full / 256), full, count)
    offsets = (np.arange(zero_points) - zero_points // 2) * max(1, (spec.qmax - spec.qmin) // 64)
    zeros = np.unique(np.clip(int(start.zero_point) + offsets, spec.qmin, spec.qmax))
    partners = np.zeros(1) if spec.symmetric else zeros.astype(np.float64)
    found = fpcs(lambda s, z: trial.of_pairs(s, z), scales, partners, budget)
    return trial.accept(_pair(spec, found.scale, found.partner))


SEARCHES: Mapping[str, Search] = {
    "output_mse": search_grid,
    "percentile": search_percentile,
    "clip": search_clip_ends,
    "fpcs": search_fpcs,
}
"""Searches by name. Each becomes Hessian-guided by giving its `Layer` an importance."""


def get_search(name: str) -> Search:
    """The search called `name`.

    Raises:
        UsageError: There is none of that name.
    """
    if name not in SEARCHES:
        raise unknown_name("scale search", name, SEARCHES, code="EQ-U282")
    return SEARCHES[name]


@dataclass(frozen=True, eq=False)
class LayerChoice:
    """Grids of both operands of a layer; None for one that stays float.

    Args:
        left: Grid of the left operand, with its errors in the round that chose it.
        right: Grid of the right operand, likewise.
        error: Output error of the layer with both grids.
        minmax_error: Output error of the layer with both min-max grids.
        rounds: Rounds until nothing changed any more.
    """

    left: ScaleChoice | None
    right: ScaleChoice | None
    error: float
    minmax_error: float
    rounds: int


def search_alternating(
    layer: Layer, *, left: Search = search_grid, right: Search = search_grid, rounds: int = 3
) -> LayerChoice:
    """Search the grids of both operands in turn, the right one first, each with the other one quantized.

    PTQ4ViT (arXiv 2111.12293, algorithm 1): weight then activation, for attention products the right factor first.
    Deviations: a step that finds nothing better keeps the grid it had, so that the error never grows from one step to
    the next; rounds end when nothing changes.

    Args:
        layer: The layer; an operand without spec stays float.
        left: Search for the left operand.
        right: Search for the right operand.
        rounds: Rounds at most.

    Raises:
        UsageError: No operand has a spec, fewer than one round, or a granularity that cannot be searched.
    """
    operands = (layer.left, layer.right)
    specs = (layer.left.spec, layer.right.spec)
    if rounds < 1 or specs == (None, None):
        raise UsageError(
            f"nothing to search in {rounds} rounds",
            code="EQ-U281",
            hint="give at least one operand a spec, and one round",
        )
    values = [_minmax_values(o.value, o.spec) for o in operands]
    choices = [_minmax_choice(layer, position, values[1 - position]) for position in (0, 1)]
    minmax_error = error = _total(layer, values)
    done = 0
    for _ in range(rounds):
        done, before = done + 1, error
        for position in (1, 0):
            spec, operand = specs[position], operands[position]
            if spec is None:
                continue
            found = (left, right)[position](operand.value, spec, layer.errors(position, values[1 - position]))
            changed = list(values)
            changed[position] = fake_quantize(operand.value, found.qparams)
            total = _total(layer, changed)
            if total < error * _GAIN:
                choices[position], values, error = found, changed, total
        if not error < before * _GAIN:
            break
    return LayerChoice(choices[0], choices[1], error, minmax_error, done)


class _Trial:
    """Tries grids of one tensor, counts them, and never ends worse than min-max."""

    def __init__(self, value: Tensor, spec: QuantSpec, errors: OutputErrors) -> None:
        require_finite(value, "an operand")
        self._value, self._spec, self._errors = value, spec, errors
        self._shape = scale_shape(value, spec)
        self.evaluations = 0
        self.minmax = self.grid(*_ends(value, spec))
        self.minmax_error = self.of(self.minmax)

    def grid(self, low: Array, high: Array) -> QParams:
        return qparams_from_range(low.reshape(self._shape), high.reshape(self._shape), self._spec)

    def of(self, qparams: QParams) -> Array:
        self.evaluations += 1
        return self._errors(fake_quantize(self._value, qparams))

    def of_range(self, low: Array, high: Array) -> Array:
        return self.of(self.grid(low, high))

    def of_pairs(self, scales: Array, zero_points: Array) -> Array:
        pairs = zip(scales, zero_points, strict=True)
        return np.array([float(self.of(_pair(self._spec, s, z)).sum()) for s, z in pairs])

    def choose(self, low: Array, high: Array) -> ScaleChoice:
        return self.accept(self.grid(low, high))

    def accept(self, qparams: QParams) -> ScaleChoice:
        # the floor of a scale depends on the other channels, so that grids chosen one by one need a last look together
        error = self.of(qparams)
        if not (error <= self.minmax_error).all():
            qparams, error = self.minmax, self.minmax_error
        return ScaleChoice(qparams, error, self.minmax_error, self.evaluations)


def _best(
    value: Tensor, spec: QuantSpec, errors: OutputErrors, candidates: Iterable[tuple[Array, Array]]
) -> ScaleChoice:
    """The candidate with the least error, for each scale on its own."""
    trial = _Trial(value, spec, errors)
    low, high = _ends(value, spec)
    error = trial.minmax_error
    for lower, upper in candidates:
        found = trial.of_range(lower, upper)
        better = found < error * _GAIN
        error = np.where(better, found, error)
        low, high = np.where(better, lower, low), np.where(better, upper, high)
    return trial.choose(low, high)


@torch.no_grad()
def _rows(value: Tensor, spec: QuantSpec) -> Tensor:
    """The values of each scale as one row `(n, m)`."""
    shape = scale_shape(value, spec)
    if isinstance(spec.granularity, PerChannel):
        return value.detach().float().movedim(spec.granularity.axis, 0).reshape(shape[0], -1)
    return value.detach().float().reshape(1, -1)


def _ends(value: Tensor, spec: QuantSpec) -> tuple[Array, Array]:
    """Smallest and largest value of each scale `(n,)`."""
    require_finite(value, "an operand")
    low, high = (end.double().numpy() for end in torch.aminmax(_rows(value, spec), dim=1))
    return low, high


def _total(layer: Layer, values: Sequence[Tensor]) -> float:
    """Output error of the layer with the given operands; searches may sum in another order, this one decides."""
    output = layer.function(values[0], values[1])
    squares = (output - layer.target).square()
    return float((squares if layer.importance is None else squares * layer.importance).sum(dtype=torch.float64))


def _minmax_choice(layer: Layer, position: int, other: Tensor) -> ScaleChoice | None:
    operand = (layer.left, layer.right)[position]
    if operand.spec is None:
        return None
    trial = _Trial(operand.value, operand.spec, layer.errors(position, other))
    return trial.accept(trial.minmax)


def _minmax_values(value: Tensor, spec: QuantSpec | None) -> Tensor:
    if spec is None:
        return value
    low, high = _ends(value, spec)
    shape = scale_shape(value, spec)
    return fake_quantize(value, qparams_from_range(low.reshape(shape), high.reshape(shape), spec))


def _pair(spec: QuantSpec, scale: float, zero_point: float) -> QParams:
    return QParams(spec, np.array(scale, dtype=np.float32), np.array(zero_point, dtype=np.int32))
