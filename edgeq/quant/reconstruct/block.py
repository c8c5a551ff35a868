"""Reconstruction of one block: roundings of its weights and scales of its activations, trained on its output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgeq.errors import DataError, ModelError, UsageError
from edgeq.progress import Advance
from edgeq.quant.losses import LossSum, ReconstructionLoss, mse
from edgeq.quant.reconstruct import checkpoint
from edgeq.quant.reconstruct.activation import LearnedScale
from edgeq.quant.reconstruct.fitting import FitResult, FitSettings, ParameterGroup, Step, fit
from edgeq.quant.rounding.soft import SoftRounding
from edgeq.quant.search.layer import require_finite
from edgeq.quant.uniform import dequantize


@dataclass(frozen=True, eq=False)
class BlockData:
    """What a block saw and gave on the calibration set.

    Args:
        float_inputs: In the float network, each `(samples, ...)`.
        quantized_inputs: With everything before the block quantized, of the same shapes.
        targets: Output of the float block, `(samples, ...)`.

    Raises:
        DataError: Shapes or numbers of samples do not fit, or a tensor is empty or not finite.
    """

    float_inputs: tuple[Tensor, ...]
    quantized_inputs: tuple[Tensor, ...]
    targets: Tensor

    def __post_init__(self) -> None:
        shapes = [tuple(x.shape) for x in self.float_inputs]
        fits = shapes == [tuple(x.shape) for x in self.quantized_inputs] and shapes
        tensors = (*self.float_inputs, *self.quantized_inputs, self.targets)
        if not fits or any(x.ndim < 1 or len(x) != len(self.targets) for x in tensors):
            raise DataError(
                f"inputs {shapes} and targets {tuple(self.targets.shape)} are not of the same samples",
                code="EQ-D281",
                hint="record inputs and outputs of the block in the same order",
            )
        for tensor in tensors:
            require_finite(tensor, "an input or target of the block")


@dataclass(frozen=True)
class BlockSettings:
    """How a block is reconstructed.

    Args:
        fit: How long, and what is held out.
        drop: Share of the values that stay float, of the inputs and in every activation quantizer: QDrop (Wei et al.
            2022, arXiv 2203.05740), published as 0.5; 0 for none.
        weight_rate: Step size of the roundings of weights; None for the one that suits their kind.
        scale_rate: Step size of the activation scales, relative to them; 0 keeps them.
        one_by_one: Run the block on one sample at a time, for graphs captured for a batch of 1.

    Raises:
        UsageError: A number out of bounds.
    """

    fit: FitSettings = field(default_factory=FitSettings)
    drop: float = 0.5
    weight_rate: float | None = None
    scale_rate: float = 1e-3
    one_by_one: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1 or not self.scale_rate >= 0:
            raise UsageError(
                f"impossible settings of a reconstruction: {self}",
                code="EQ-U286",
                hint="the share of dropped values must be at least 0 and below 1",
            )


def reconstruct_block(
    block: nn.Module,
    data: BlockData,
    roundings: Mapping[str, SoftRounding],
    *,
    loss: ReconstructionLoss = mse,
    settings: BlockSettings | None = None,
    path: Path | None = None,
    progress: Advance | None = None,
) -> FitResult:
    """Learn roundings and activation scales of a block so that its output comes close to the float one.

    BRECQ (Li et al. 2021, arXiv 2102.05426) with QDrop (arXiv 2203.05740), on whatever roundings, loss and grids are
    given. Deviations: a share of the samples is held out; deployed values (codes, no dropping, quantized inputs) are
    judged on it, and the best are kept, so that the result is never worse than the start there, and only differs from
    it where it is better by more than chance.

    The weights enter the block from outside and the block itself is left as it was; the learned values are in
    `roundings` and in the block's `LearnedScale` modules.

    Args:
        block: Module or graph, `(*inputs) -> (batch, ...)`, with a `LearnedScale` behind each quantized activation.
        data: Its inputs and float outputs.
        roundings: The weights to learn, by the name of the parameter or buffer of the block.
        loss: What to minimise; a `LossSum` is taken relative to its start.
        settings: How.
        path: Where the state is kept, to continue after an interruption.
        progress: Called with the number of steps done since the last call.

    Raises:
        UsageError: A name or shape that the block does not have, or nothing to learn.
        ModelError: The block's output does not have the shape of the targets.
        DataError: There are fewer than two samples, or the loss is not finite.
    """
    settings = settings or BlockSettings()
    work = _Work(block, data, roundings, loss, settings)
    work.anchor()
    identity = ""
    if path is not None:
        tensors = (*data.float_inputs, *data.quantized_inputs, data.targets, work.fixed())
        identity = checkpoint.fingerprint(settings.drop, settings.one_by_one, *work.kinds(), *tensors)
    with work.frozen():
        return fit(
            work.groups(),
            work.objective,
            work.holdout_losses,
            settings.fit,
            project=work.project,
            path=path,
            identity=identity,
            progress=progress,
        )


class _Work:
    def __init__(
        self,
        block: nn.Module,
        data: BlockData,
        roundings: Mapping[str, SoftRounding],
        loss: ReconstructionLoss,
        settings: BlockSettings,
    ) -> None:
        self._block, self._data, self._roundings, self._loss = block, data, dict(roundings), loss
        self._settings = settings
        self._train, self._held = settings.fit.split(len(data.targets))
        self._scales = {name: m for name, m in block.named_modules() if isinstance(m, LearnedScale)}
        self._unit = 1.0
        known = {**dict(block.named_parameters()), **dict(block.named_buffers())}
        for name, rounding in self._roundings.items():
            if name not in known or known[name].shape != rounding.target.shape:
                raise UsageError(
                    f"the block has no weight {name!r} of shape {tuple(rounding.target.shape)}",
                    code="EQ-U285",
                    hint=f"its weights: {', '.join(list(known)[:8])}",
                )

    @torch.no_grad()
    def anchor(self) -> None:
        """Refer the loss to its value now, so that regularizers and terms of a sum have their weight."""
        index = self._held[: self._settings.fit.batch_size]
        output = self._run(self._hard(), self._inputs(index))
        target = self._data.targets[index]
        if output.shape != target.shape:
            raise ModelError(
                f"the block gives {tuple(output.shape)}, its targets are {tuple(target.shape)}",
                code="EQ-M281",
                hint="record the targets at the block's own output; captured for a batch of 1, it runs one by one",
            )
        if isinstance(self._loss, LossSum):
            self._loss = self._loss.anchored(output, target, index)
        value = float(self._loss(output, target, index))
        self._unit = 1 / value if value > 0 else 1.0

    def groups(self) -> list[ParameterGroup]:
        settings = self._settings
        result = []
        for name, rounding in self._roundings.items():
            rate = rounding.learning_rate(settings.fit.iterations)
            named = {f"{name}:{key}": p for key, p in rounding.named_parameters() if p.requires_grad}
            if settings.weight_rate is not None and not rounding.own_rate:
                rate = settings.weight_rate
            result.append(ParameterGroup(named, rate, rounding.sign_descent))
        if settings.scale_rate and self._scales:
            named = {f"{name}:scale": m.log_factor for name, m in self._scales.items()}
            result.append(ParameterGroup(named, settings.scale_rate))
        return result

    def kinds(self) -> list[str]:
        return [f"{name} {type(r).__name__} {r.start.to_dict()}" for name, r in self._roundings.items()] + [
            f"{name} {m.start.to_dict()}" for name, m in self._scales.items()
        ]

    def fixed(self) -> dict[str, Tensor]:
        """What the block holds and what its weights are rounded from, for the identity of the work."""
        held = {**dict(self._block.named_parameters()), **dict(self._block.named_buffers())}
        return {**held, **{f"target of {name}": rounding.target for name, rounding in self._roundings.items()}}

    def objective(self, step: Step) -> Tensor:
        generator, drop = step.generator, self._settings.drop
        size = min(self._settings.fit.batch_size, len(self._train))
        index = self._train[torch.randperm(len(self._train), generator=generator)[:size]]
        inputs = self._inputs(index)
        if drop > 0:
            pairs = zip(inputs, self._data.float_inputs, strict=True)
            inputs = tuple(torch.where(torch.rand(q.shape, generator=generator) < drop, f[index], q) for q, f in pairs)
        weights = {name: rounding.weight() for name, rounding in self._roundings.items()}
        for scale in self._scales.values():
            scale.learn(generator, drop)
        try:
            output = self._run(weights, inputs)
        finally:
            for scale in self._scales.values():
                scale.learn(None)
        return self._unit * self._loss(output, self._data.targets[index], index) + self._regularizer(step.share)

    def _regularizer(self, share: float) -> Tensor:
        """Mean over all weights of the block."""
        total = sum(r.target.numel() for r in self._roundings.values())
        parts = [r.regularizer(share) * (r.target.numel() / total) for r in self._roundings.values()]
        return torch.stack(parts).sum() if parts else torch.zeros(())

    @torch.no_grad()
    def holdout_losses(self) -> Tensor:
        weights, losses = self._hard(), []
        for index in torch.split(self._held, self._settings.fit.batch_size):
            output, target = self._run(weights, self._inputs(index)), self._data.targets[index]
            samples = zip(*(torch.split(x, 1) for x in (output, target, index)), strict=True)
            losses += [float(self._loss(*sample)) for sample in samples]
        return torch.tensor(losses, dtype=torch.float64)

    def project(self) -> None:
        for rounding in self._roundings.values():
            rounding.project()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Only what is learned gets gradients meanwhile."""
        learned = {id(m.log_factor) for m in self._scales.values()}
        before = {p: p.requires_grad for p in self._block.parameters() if id(p) not in learned}
        for parameter in before:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter, needed in before.items():
                parameter.requires_grad_(needed)

    def _inputs(self, index: Tensor) -> tuple[Tensor, ...]:
        return tuple(x[index] for x in self._data.quantized_inputs)

    def _hard(self) -> dict[str, Tensor]:
        """The weights as they would be deployed."""
        return {name: dequantize(r.codes(), r.qparams()) for name, r in self._roundings.items()}

    def _run(self, weights: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        if not self._settings.one_by_one:
            output: Tensor = functional_call(self._block, dict(weights), inputs)
            return output
        samples = zip(*(torch.split(x, 1) for x in inputs), strict=True)
        return torch.cat([functional_call(self._block, dict(weights), sample) for sample in samples])
