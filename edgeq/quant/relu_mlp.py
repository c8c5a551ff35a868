"""An MLP with GELU made one with ReLU: what follows a ReLU has no negative tail, and suits a uniform grid."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeq.errors import DataError, ModelError, UsageError
from edgeq.progress import Advance
from edgeq.quant.reconstruct import checkpoint
from edgeq.quant.reconstruct.fitting import FitResult, FitSettings, ParameterGroup, Step, fit
from edgeq.quant.search.layer import require_finite

_QUANTILE_VALUES = 1 << 20  # a quantile of so many is as good as of all


@dataclass(frozen=True, eq=False)
class MlpWeights:
    """`fc2(act(fc1(x)))`.

    Args:
        weight1: `(hidden, in)`.
        bias1: `(hidden,)`.
        weight2: `(out, hidden)`.
        bias2: `(out,)`.

    Raises:
        ModelError: The shapes do not fit, or a value is NaN or infinite.
    """

    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor

    def __post_init__(self) -> None:
        shapes = [tuple(t.shape) for t in self.tensors()]
        hidden, out = shapes[1], shapes[3]
        fits = len(shapes[0]) == 2 and (shapes[0][0],) == hidden and shapes[2] == (*out, *hidden)
        if not fits or not all(bool(torch.isfinite(t).all()) for t in self.tensors()):
            raise ModelError(
                f"weights and biases of shapes {shapes} are no MLP, or hold NaN or infinity",
                code="EQ-M282",
                hint="pass (hidden, in), (hidden,), (out, hidden), (out,)",
            )

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four, in order."""
        return self.weight1, self.bias1, self.weight2, self.bias2


@dataclass(frozen=True)
class ReluSettings:
    """How an MLP is made one with ReLU.

    Args:
        fit: How long, and what is held out.
        rate: Step size of Adam, relative to the RMS of each tensor.
        clip_quantile: Quantile of the positive GELU outputs above which a hidden value should not matter, in (0.5, 1];
            .99 at 3 bits and .98 at 2 and 4 bits in APHQ-ViT; 1 asks for no clipping.
        clip_weight: Weight of the clipped output's error beside that of the output.
        ridge: Damping of the closed-form start, relative to the mean second moment of the hidden values.

    Raises:
        UsageError: A number out of bounds.
    """

    fit: FitSettings = field(default_factory=FitSettings)
    rate: float = 3e-3
    clip_quantile: float = 0.99
    clip_weight: float = 2.0
    ridge: float = 0.1

    def __post_init__(self) -> None:
        if not (self.rate > 0 and 0.5 < self.clip_quantile <= 1 and self.clip_weight >= 0 and self.ridge > 0):
            raise UsageError(
                f"impossible settings of an MLP reconstruction: {self}",
                code="EQ-U286",
                hint="the quantile must be above 0.5 and at most 1, rate and ridge above 0",
            )


@dataclass(frozen=True, eq=False)
class ReluMlp:
    """The new MLP.

    Args:
        weights: To be used with ReLU.
        clip: Hidden values above it hardly matter: an upper end for their grid; inf when no clipping was asked for.
        replaced_error: Error on held-out samples when GELU is only replaced by ReLU, relative to the variance of the
            output.
        refitted_error: The same after the closed-form start.
        error: The same of the result.
        fit: The course of the training; its losses contain the clipped term.
    """

    weights: MlpWeights
    clip: float
    replaced_error: float
    refitted_error: float
    error: float
    fit: FitResult


def relu_mlp(
    mlp: MlpWeights,
    inputs: Tensor,
    *,
    importance: Tensor | None = None,
    settings: ReluSettings | None = None,
    path: Path | None = None,
    progress: Advance | None = None,
) -> ReluMlp:
    """Train an MLP so that with ReLU it gives what it gave with GELU.

    MLP reconstruction of APHQ-ViT (Wu et al. 2025, arXiv 2504.02508, section 3.3): `H (y - y_relu)^2 + 2 H (y -
    y_clip)^2`, where `y_clip` clamps the hidden values at a quantile of the positive GELU outputs; without importance
    it is the plain form of GLF-Q. Deviations: fc2 starts from the damped least-squares solution for the ReLU features,
    which costs one Cholesky factorization and saves thousands of steps; steps are relative to the size of each tensor;
    the best weights on held-out samples are kept. Whether the start is better is also decided there.

    Args:
        mlp: The weights that go with GELU.
        inputs: Inputs of fc1 `(samples, ..., in)`.
        importance: Weight of each output, broadcast to `(samples, ..., out)`; None for plain squared error.
        settings: How.
        path: Where the state is kept, to continue after an interruption.
        progress: Called with the number of steps done since the last call.

    Raises:
        ModelError: The weights do not fit the inputs.
        DataError: The inputs are empty, not finite, or fewer than two samples; or the importance does not fit.
    """
    settings = settings or ReluSettings()
    work = _Work(mlp, inputs, importance, settings)
    replaced = work.relative_error()
    work.refit()
    refitted = work.relative_error()
    identity = ""
    if path is not None:
        loss = replace(settings, fit=FitSettings())  # `fit` adds its own, without the budget
        identity = checkpoint.fingerprint(loss, inputs, work.importance, *mlp.tensors())
    result = fit(
        work.groups(),
        work.objective,
        work.holdout_losses,
        settings.fit,
        path=path,
        identity=identity,
        progress=progress,
    )
    return ReluMlp(work.weights(), work.clip, replaced, refitted, work.relative_error(), result)


class _Work:
    def __init__(self, mlp: MlpWeights, inputs: Tensor, importance: Tensor | None, settings: ReluSettings) -> None:
        if inputs.ndim < 2 or inputs.shape[-1] != mlp.weight1.shape[1]:
            raise ModelError(
                f"inputs of shape {tuple(inputs.shape)} for an MLP of {mlp.weight1.shape[1]} inputs",
                code="EQ-M282",
                hint="record the inputs of fc1, (samples, ..., in)",
            )
        require_finite(inputs, "the input of an MLP")
        self._inputs, self._settings = inputs.detach().float(), settings
        self._mlp = mlp
        self._train, self._held = settings.fit.split(len(inputs))
        self.importance = self._checked(importance)
        # each tensor is learned in units of its size, a bias of zeros in those of its weight
        sizes = [float(t.double().square().mean().sqrt()) for t in mlp.tensors()]
        self._units = [max(sizes[i] or sizes[i - i % 2], 1e-12) for i in range(len(sizes))]
        self._start = [t.detach().float() for t in mlp.tensors()]
        self._change = [nn.Parameter(torch.zeros_like(t)) for t in self._start]
        self.clip = self._clip()

    @torch.no_grad()
    def _checked(self, importance: Tensor | None) -> Tensor:
        shape = (*self._inputs.shape[:-1], self._mlp.weight2.shape[0])
        weights = torch.ones(1) if importance is None else importance.detach().float()
        try:
            full = weights.expand(shape)
            sound = bool(torch.isfinite(weights).all()) and bool((weights >= 0).all()) and bool((weights > 0).any())
        except RuntimeError:
            sound = False
        if not sound:
            raise DataError(
                f"importance of shape {tuple(weights.shape)} for outputs of shape {shape}",
                code="EQ-D281",
                hint="one weight of at least 0 for each output, or for each token and channel",
            )
        return full / full.square().mean().sqrt()

    @torch.no_grad()
    def _clip(self) -> float:
        if self._settings.clip_quantile == 1:
            return float("inf")
        hidden = len(self._mlp.bias1)
        rows = self._inputs[self._train].flatten(0, -2)
        rows = rows[:: max(1, len(rows) * hidden // _QUANTILE_VALUES)]
        values = functional.gelu(functional.linear(rows, *self._start[:2])).flatten()
        positive = values[values > 0].sort().values
        if not len(positive):
            return float("inf")
        return float(positive[min(len(positive) - 1, int(self._settings.clip_quantile * len(positive)))])

    def _tensors(self) -> list[Tensor]:
        return [s + u * c for s, u, c in zip(self._start, self._units, self._change, strict=True)]

    def weights(self) -> MlpWeights:
        return MlpWeights(*(t.detach().clone() for t in self._tensors()))

    def groups(self) -> list[ParameterGroup]:
        names = ("weight1", "bias1", "weight2", "bias2")
        return [ParameterGroup(dict(zip(names, self._change, strict=True)), self._settings.rate)]

    def _target(self, x: Tensor) -> Tensor:
        weight1, bias1, weight2, bias2 = (t.detach().float() for t in self._mlp.tensors())
        return functional.linear(functional.gelu(functional.linear(x, weight1, bias1)), weight2, bias2)

    def _losses(self, index: Tensor) -> Tensor:
        """Loss of each sample."""
        x, settings = self._inputs[index], self._settings
        weights = self.importance[index]
        with torch.no_grad():
            target = self._target(x)
        weight1, bias1, weight2, bias2 = self._tensors()
        hidden = functional.relu(functional.linear(x, weight1, bias1))
        squares = weights * (functional.linear(hidden, weight2, bias2) - target).square()
        if self.clip < float("inf") and settings.clip_weight:
            clipped = functional.linear(hidden.clamp(max=self.clip), weight2, bias2)
            squares = squares + settings.clip_weight * weights * (clipped - target).square()
        return squares.flatten(1).mean(1)

    def objective(self, step: Step) -> Tensor:
        size = min(self._settings.fit.batch_size, len(self._train))
        return self._losses(self._train[torch.randperm(len(self._train), generator=step.generator)[:size]]).mean()

    @torch.no_grad()
    def holdout_losses(self) -> Tensor:
        parts = torch.split(self._held, self._settings.fit.batch_size)
        return torch.cat([self._losses(index) for index in parts])

    @torch.no_grad()
    def relative_error(self) -> float:
        """Squared error of the plain output over its variance, on the held-out samples."""
        error, values = 0.0, []
        weight1, bias1, weight2, bias2 = self._tensors()
        for index in torch.split(self._held, self._settings.fit.batch_size):
            x = self._inputs[index]
            target = self._target(x)
            output = functional.linear(functional.relu(functional.linear(x, weight1, bias1)), weight2, bias2)
            error += float((output - target).double().square().sum())
            values.append(target.double().flatten())
        spread = torch.cat(values)
        variance = float((spread - spread.mean()).square().sum())
        return error / variance if variance > 0 else error

    @torch.no_grad()
    def refit(self) -> None:
        """Start fc2 at the damped least-squares fit of the outputs to the ReLU features, if that helps."""
        weight1, bias1, weight2, bias2 = self._start
        size = len(bias1) + 1
        gram, cross = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, len(bias2), dtype=torch.float64)
        for index in torch.split(self._train, self._settings.fit.batch_size):
            x = self._inputs[index].flatten(0, -2)
            hidden = functional.relu(functional.linear(x, weight1, bias1))
            missing = self._target(x) - functional.linear(hidden, weight2, bias2)
            features = torch.cat([hidden, torch.ones_like(hidden[:, :1])], dim=1).double()
            gram += features.T @ features
            cross += features.T @ missing.double()
        damping = self._settings.ridge * float(gram.diagonal().mean())
        if not damping > 0:
            return
        change = torch.linalg.solve(gram + damping * torch.eye(size, dtype=torch.float64), cross).float()
        before, loss = self._start, self.holdout_losses().mean()
        self._start = [weight1, bias1, weight2 + change[:-1].T, bias2 + change[-1]]
        if not bool(self.holdout_losses().mean() < loss):
            self._start = before
