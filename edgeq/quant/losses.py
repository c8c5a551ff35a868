"""Reconstruction losses: how far a quantized block's output is from the float one, in the terms that matter.

Every loss is a callable `(output, target, index) -> scalar`; `index (batch,)` numbers the calibration samples of the
batch, so that a loss can look up what it holds about each. What lies behind the block (the float suffix of the network)
enters as a differentiable callable that is never trained.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeq.errors import DataError, ModelError, UsageError

Suffix = Callable[[Tensor], Tensor]
"""The float network behind a block: `(batch, ...) -> (batch, ...)`, differentiable."""


class ReconstructionLoss(Protocol):
    """Distance of a block's quantized output from its float output."""

    def __call__(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """A scalar that carries gradients to `output`.

        Args:
            output: Of the quantized block, `(batch, ...)`.
            target: Of the float block, same shape.
            index: Numbers of the samples in the calibration set, int64 `(batch,)`.
        """
        ...


def mse(output: Tensor, target: Tensor, index: Tensor) -> Tensor:
    """Mean squared error over all elements."""
    del index
    return functional.mse_loss(output, target)


@dataclass(frozen=True, eq=False)
class ImportanceLoss:
    """Squared error weighted per element, with weights of mean 1 so that losses of blocks can be compared.

    With weights per sample this is the loss of BRECQ (Li et al. 2021, arXiv 2102.05426, equation 10), whose weights
    come from true labels in place of the drawn ones of `fisher_diagonal`; with the average over samples of
    `perturbation_importance` it is that of APHQ-ViT (Wu et al. 2025, arXiv 2504.02508).

    Args:
        importance: At least 0 and not all zero; `(samples, ...)` for weights per sample, `(1, ...)` for one for all.

    Raises:
        DataError: A weight is negative or not finite, or all are zero.
    """

    importance: Tensor

    def __post_init__(self) -> None:
        weights = self.importance.detach()
        mean = float(weights.mean(dtype=torch.float64)) if weights.numel() else 0.0
        if not (bool(torch.isfinite(weights).all()) and bool((weights >= 0).all()) and mean > 0):
            raise DataError(
                f"importance of shape {tuple(weights.shape)} is negative, not finite, or zero everywhere",
                code="EQ-D282",
                hint="use `mse` where the output of the network does not depend on this block",
            )
        object.__setattr__(self, "importance", (weights.double() / mean).float())

    def __call__(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """Mean over elements of `importance * (output - target)^2`."""
        weights = self.importance if len(self.importance) == 1 else self.importance[index]
        return (weights * (output - target).square()).mean()


@dataclass(frozen=True, eq=False)
class PredictionDifference:
    """KL divergence between float and quantized prediction, through the float suffix.

    PD-Quant (Liu et al. 2023, arXiv 2212.07048, equation 5): `KL(softmax(z / T) || softmax(z_q / T))` with T = 4; only
    for networks that end in class logits. The published objective adds it, divided by 0.1, to the squared error of the
    block; `LossSum.of((1, PredictionDifference(...)), (2, mse))` weighs the two relative to their starts instead.

    Args:
        suffix: The float network behind the block, `-> (batch, classes)`.
        logits: Of the float network, `(samples, classes)`.
        temperature: T; softens the prediction so that all classes speak.

    Raises:
        UsageError: The temperature is not positive.
        ModelError: The logits are not `(samples, classes)`.
    """

    suffix: Suffix
    logits: Tensor
    temperature: float = 4.0

    def __post_init__(self) -> None:
        _require_temperature(self.temperature)
        _require_logits(self.logits)

    def __call__(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """Mean over the batch of the divergence in nats."""
        del target
        wanted = functional.log_softmax(self.logits[index] / self.temperature, dim=-1)
        found = functional.log_softmax(self.suffix(output) / self.temperature, dim=-1)
        return functional.kl_div(found, wanted, reduction="batchmean", log_target=True)


@dataclass(frozen=True, eq=False)
class FeatureDistance:
    """Squared error of a late feature, such as the input of the head, through the float suffix.

    Args:
        suffix: The float network between the block and the feature, `-> (batch, ...)`.
        features: Of the float network, `(samples, ...)`.
    """

    suffix: Suffix
    features: Tensor

    def __call__(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """Mean squared error over all elements of the feature."""
        del target
        return functional.mse_loss(self.suffix(output), self.features[index])


@dataclass(frozen=True, eq=False)
class TaskLoss:
    """The loss of the task itself, from the model family: for networks that do not end in class logits.

    LiDAR-PTQ (Zhou et al. 2024, arXiv 2401.15865) trains detectors on what the float model finds above a score
    threshold, added to the squared error of the block: `LossSum.of((1, TaskLoss(...)), (1, mse))`.

    Args:
        criterion: `(output, index) -> scalar`; runs the suffix, and knows the pseudo-labels of each sample.
    """

    criterion: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """The criterion on this batch."""
        del target
        return self.criterion(output, index)


@dataclass(frozen=True, eq=False)
class LossSum:
    """Weighted sum of losses, each relative to its value before training.

    Two losses in different units cannot be balanced by a constant that suits all blocks; their relative changes can.

    Args:
        terms: Weight and loss of each term.
        references: Value of each term at the start; empty before `anchored`, where the values are taken as they are.

    Raises:
        UsageError: There is no term, or a weight is not positive.
    """

    terms: tuple[tuple[float, ReconstructionLoss], ...]
    references: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.terms or not all(weight > 0 for weight, _ in self.terms):
            raise UsageError(
                "a sum of losses needs at least one term, and positive weights",
                code="EQ-U283",
                hint="LossSum.of((1.0, mse)) for example",
            )

    @classmethod
    def of(cls, *terms: tuple[float, ReconstructionLoss]) -> LossSum:
        """The sum of `(weight, loss)` terms."""
        return cls(terms)

    @torch.no_grad()
    def anchored(self, output: Tensor, target: Tensor, index: Tensor) -> LossSum:
        """The same sum with every term divided by its value here, except where that is 0."""
        found = [float(loss(output, target, index)) for _, loss in self.terms]
        return replace(self, references=tuple(value if value > 0 else 1.0 for value in found))

    def __call__(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """`sum of weight * loss / reference`."""
        references = self.references or (1.0,) * len(self.terms)
        parts = [w / r * loss(output, target, index) for (w, loss), r in zip(self.terms, references, strict=True)]
        return torch.stack(parts).sum()


def global_local(suffix: Suffix, features: Tensor, *, local: float = 2.0) -> LossSum:
    """Late feature plus `local` times the block's own squared error, each relative to its start (GLF-Q).

    Args:
        suffix: The float network between the block and the feature.
        features: Of the float network, `(samples, ...)`.
        local: Weight of the block's own error; published values from 1 to 4 give the same.
    """
    return LossSum.of((1.0, FeatureDistance(suffix, features)), (local, mse))


def fisher_diagonal(suffix: Suffix, outputs: Tensor, *, draws: int = 1, seed: int = 0, batch_size: int = 32) -> Tensor:
    """Diagonal Fisher information at a block's output: `E over y ~ p of (d(-log p_y) / dO)^2`.

    The labels are drawn from the model's own prediction, which makes this the expected Hessian of the KL divergence
    between float and perturbed prediction (Martens 2014, arXiv 1412.1193, section 9.2). Gradients at true labels (the
    "empirical Fisher" of BRECQ) are something else, and the gradient of that divergence at the float output is zero.

    Args:
        suffix: The float network behind the block, `-> (batch, classes)`.
        outputs: Of the float block, `(samples, ...)`.
        draws: Labels per sample; the noise of one is averaged out over samples by `.mean(0, keepdim=True)`.
        seed: Of the draws.
        batch_size: Samples of one backward pass.

    Returns:
        Importance of each element, float32, of the shape of `outputs`.

    Raises:
        ModelError: The suffix does not give `(batch, classes)`.
        UsageError: No draws, or an empty batch.
    """
    if draws < 1 or batch_size < 1:
        raise UsageError(f"{draws} draws in batches of {batch_size}", code="EQ-U283", hint="both must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for batch in torch.split(outputs.detach().float(), batch_size):
        leaf = batch.clone().requires_grad_()
        with torch.enable_grad():
            likelihoods = functional.log_softmax(_require_logits(suffix(leaf)), dim=-1)
            squares = torch.zeros_like(batch)
            for _ in range(draws):
                surprise = drawn_surprise(likelihoods, generator)
                squares += torch.autograd.grad(surprise, leaf, retain_graph=True)[0].square()
        parts.append(squares / draws)
    return torch.cat(parts)


def drawn_surprise(likelihoods: Tensor, generator: torch.Generator) -> Tensor:
    """`-log p_y` for a label drawn in each row, summed: rows are independent, so that one backward pass serves all.

    Args:
        likelihoods: Log-probabilities `(rows, classes)`.
        generator: Of the labels.
    """
    labels = torch.multinomial(likelihoods.detach().exp(), 1, generator=generator)
    return -likelihoods.gather(-1, labels).sum()


def perturbation_importance(
    suffix: nn.Module, outputs: Tensor, *, step: float = 1e-3, temperature: float = 20.0, batch_size: int = 32
) -> Tensor:
    """Average perturbation Hessian: the mean over samples of `|g(O + e) - g(O - e)| / 2e`.

    `g` is the gradient of `KL(softmax(z / T) || softmax(z' / T))` at a perturbed output, and e shifts all elements of a
    sample together (APHQ-ViT, Wu et al. 2025, arXiv 2504.02508, equations 7 to 9). Deviation: e is `step` times the
    RMS of the sample, in double precision. The published 1e-6 in single precision vanishes next to values above 16.

    Args:
        suffix: The float network behind the block, `-> (batch, classes)`; a copy is run in double precision.
        outputs: Of the float block, `(samples, ...)`.
        step: Perturbation relative to the RMS of each sample.
        temperature: T.
        batch_size: Samples of one backward pass.

    Returns:
        Importance `(1, ...)`, float32.

    Raises:
        ModelError: The suffix does not give `(batch, classes)`.
        UsageError: The step, the temperature or the batch size is not positive.
    """
    _require_temperature(temperature)
    if step <= 0 or batch_size < 1:
        raise UsageError(f"step {step} in batches of {batch_size}", code="EQ-U283", hint="both must be above 0")
    precise = copy.deepcopy(suffix).double()

    def gradient(point: Tensor, wanted: Tensor) -> Tensor:
        leaf = point.detach().requires_grad_()
        with torch.enable_grad():
            found = functional.log_softmax(precise(leaf) / temperature, dim=-1)
            divergence = functional.kl_div(found, wanted, reduction="sum", log_target=True)
            return torch.autograd.grad(divergence, leaf)[0]

    total = torch.zeros_like(outputs[:1], dtype=torch.float64)
    for batch in torch.split(outputs.detach().double(), batch_size):
        with torch.no_grad():
            wanted = functional.log_softmax(_require_logits(precise(batch)) / temperature, dim=-1)
        size = batch.flatten(1).square().mean(1).sqrt().reshape(-1, *[1] * (batch.ndim - 1))
        shift = step * torch.where(size > 0, size, torch.ones_like(size))
        change = (gradient(batch + shift, wanted) - gradient(batch - shift, wanted)).abs()
        total += (change / (2 * shift)).sum(0, keepdim=True)
    return (total / len(outputs)).float()


def _require_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise UsageError(f"the temperature must be above 0, not {temperature}", code="EQ-U283", hint="4 for example")


def _require_logits(logits: Tensor) -> Tensor:
    if logits.ndim != 2:
        raise ModelError(
            f"the network ends in a tensor of shape {tuple(logits.shape)}, not in class logits (batch, classes)",
            code="EQ-M280",
            hint="use the task's own loss, or `mse`",
        )
    return logits
