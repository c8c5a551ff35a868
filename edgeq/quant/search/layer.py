"""What a candidate grid does to the output of a layer with two operands: the error that scale searches minimise.

A linear or convolution has an activation and a weight, an attention product two activations. The error is that of the
layer's output against the float output, optionally weighted by how much the task loss feels each output, and never
that of the operand itself: for softmax probabilities the two objectives pick grids that differ by many dB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgeq.errors import DataError, UsageError
from edgeq.spec import PerChannel, PerTensor, QuantSpec

Array = NDArray[np.float64]
OutputErrors = Callable[[Tensor], Array]
"""Errors `(n,)`, one per scale, of a layer whose operand is replaced by the given (quantized) tensor."""


@dataclass(frozen=True, eq=False)
class Operand:
    """One operand of a layer.

    Args:
        value: Float values, any shape.
        spec: The grid it should get: per tensor, or per channel; None leaves it float.
        output_axis: Axis of the output along which the channels of the operand separate: -1 for the weight of a linear,
            1 for that of a convolution or for the heads of an attention product `(batch, heads, rows, columns)`.
            Ignored for a single scale.

    Raises:
        DataError: `value` is empty, or holds NaN or infinity.
        UsageError: One scale per group, or an axis that `value` does not have.
    """

    value: Tensor
    spec: QuantSpec | None = None
    output_axis: int = -1

    def __post_init__(self) -> None:
        require_finite(self.value, "an operand")
        if self.spec is not None:
            scale_shape(self.value, self.spec)


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer `function(left, right)` on calibration data.

    Args:
        function: `(left, right) -> output`, such as `torch.nn.functional.linear` or `torch.matmul`.
        left: Activation.
        right: Weight, or second activation.
        importance: Weight of each squared output error, broadcast to the output; None for plain squared error. With the
            diagonal Fisher information at the output (`edgeq.quant.losses.fisher_diagonal`) the search is
            Hessian-guided. PTQ4ViT (Yuan et al. 2021, arXiv 2111.12293, section 3.3) squares the gradient of the KL
            divergence between float and quantized prediction, which vanishes where the two coincide; the Fisher
            diagonal is the quantity that it estimates and does not.

    Raises:
        DataError: The importance is negative, not finite, or does not broadcast to the output.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    left: Operand
    right: Operand
    importance: Tensor | None = None

    def __post_init__(self) -> None:
        with torch.no_grad():
            target = self.function(self.left.value, self.right.value)
        object.__setattr__(self, "_target", target)
        require_finite(target, "the output of a layer")
        if self.importance is None:
            return
        require_finite(self.importance, "the importance of outputs")
        try:
            self.importance.expand(target.shape)
            fits = bool((self.importance >= 0).all())
        except RuntimeError:
            fits = False
        if not fits:
            raise DataError(
                f"importance of shape {tuple(self.importance.shape)} for outputs of shape {tuple(target.shape)}",
                code="EQ-D281",
                hint="one weight of at least 0 for each output, or for each channel",
            )

    @property
    def target(self) -> Tensor:
        """The float output."""
        value: Tensor = self.__dict__["_target"]
        return value

    def errors(self, position: int, other: Tensor | None = None) -> OutputErrors:
        """The error of this layer as a function of one operand.

        Args:
            position: 0 for the left operand, 1 for the right one.
            other: Values of the operand that stays; None for its float values.

        Returns:
            Function of a tensor of the operand's shape: summed, weighted squared output error per scale, `(n,)`.

        Raises:
            UsageError: The output does not have one slice per scale at the operand's `output_axis`.
        """
        operand = (self.left, self.right)[position]
        count, axis = self._groups(operand)
        kept = (self.right, self.left)[position].value if other is None else other
        if position == 1 and count == operand.value.shape[0] and count > 1 and self._gram_is_cheaper():
            return gram_errors(self.left.value, operand.value, kept)

        @torch.no_grad()
        def errors(candidate: Tensor) -> Array:
            output = self.function(candidate, kept) if position == 0 else self.function(kept, candidate)
            squares = (output - self.target).square_()
            if self.importance is not None:
                squares = squares * self.importance
            if axis is None:
                return np.array([float(squares.sum(dtype=torch.float64))])
            result: Array = squares.movedim(axis, 0).reshape(count, -1).sum(1, dtype=torch.float64).numpy()
            return result

        return errors

    def _groups(self, operand: Operand) -> tuple[int, int | None]:
        """Number of scales of an operand, and the axis of the output that separates them."""
        if operand.spec is None or isinstance(operand.spec.granularity, PerTensor):
            return 1, None
        (count,) = scale_shape(operand.value, operand.spec)
        axis, ndim = operand.output_axis, self.target.ndim
        if not -ndim <= axis < ndim or self.target.shape[axis] != count:
            raise UsageError(
                f"{count} scales, but the output {tuple(self.target.shape)} has no such axis {axis}",
                code="EQ-U280",
                hint="scales can be searched one by one only where each belongs to its own slice of the output",
            )
        return count, axis

    def _gram_is_cheaper(self) -> bool:
        weight = self.right.value
        rows = self.left.value.numel() // max(1, weight.shape[-1])
        return self.function is functional.linear and self.importance is None and rows > 2 * weight.shape[-1]


@torch.no_grad()
def gram_errors(x: Tensor, weight: Tensor, x_quantized: Tensor | None = None) -> OutputErrors:
    """Output errors of a linear layer per output channel from second moments: the data is read once.

    With `d = v - w` and `D = Xq - X`, `|Xq v - X w|^2 = |Xq d + D w|^2 = d' Xq'Xq d + 2 d' Xq'D w + w' D'D w`, a form
    that loses nothing to cancellation; in double precision.

    Args:
        x: Inputs `(..., in)`.
        weight: `(out, in)`.
        x_quantized: Inputs that the quantized layer sees; None for the same.

    Returns:
        Function of a weight `(out, in)`: squared error per output channel `(out,)`, summed over the inputs.
    """
    rows, wanted = x.reshape(-1, x.shape[-1]).double(), weight.double()
    seen = rows if x_quantized is None else x_quantized.reshape(rows.shape).double()
    drift = seen - rows
    gram, pull = seen.T @ seen, 2 * wanted @ (drift.T @ seen)
    constant = ((wanted @ (drift.T @ drift)) * wanted).sum(1)

    @torch.no_grad()
    def errors(candidate: Tensor) -> Array:
        change = candidate.double() - wanted
        result: Array = ((change @ gram + pull) * change).sum(1).add_(constant).clamp_(min=0).numpy()
        return result

    return errors


def sample_rows(x: Tensor, rows: int, seed: int) -> Tensor:
    """At most `rows` rows of `x (..., features)`, drawn without replacement, in their order: `(rows, features)`.

    Args:
        x: Activations.
        rows: How many to keep; searching on some thousand rows picks the same grid as on all.
        seed: Of the draw.
    """
    flat = x.reshape(-1, x.shape[-1])
    if len(flat) <= rows:
        return flat
    generator = torch.Generator().manual_seed(seed)
    return flat[torch.randperm(len(flat), generator=generator)[:rows].sort().values]


def scale_shape(value: Tensor, spec: QuantSpec) -> tuple[int, ...]:
    """Shape of the scales of `value`: `()` or `(channels,)`.

    Raises:
        UsageError: One scale per group, or an axis that `value` does not have.
    """
    granularity = spec.granularity
    if isinstance(granularity, PerTensor):
        return ()
    if isinstance(granularity, PerChannel) and -value.ndim <= granularity.axis < value.ndim:
        return (value.shape[granularity.axis],)
    raise UsageError(
        f"cannot search {granularity} for a tensor of shape {tuple(value.shape)} by the error of the output",
        code="EQ-U280",
        hint="use one scale per tensor or per channel; the scales of groups are not independent in the output",
    )


def require_finite(x: Tensor, what: str) -> None:
    """Refuse data that nothing can be fitted to.

    Raises:
        DataError: `x` is empty, or holds NaN or infinity.
    """
    if x.numel() == 0 or not bool(torch.isfinite(x).all()):
        raise DataError(
            f"{what} of shape {tuple(x.shape)} is empty, or holds NaN or infinity",
            code="EQ-D280",
            hint="check the calibration samples, and the float model on them",
        )
