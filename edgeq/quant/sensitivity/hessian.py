"""Sensitivity by curvature: traces of Hessian blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeq.errors import InternalError, ModelError
from edgeq.progress import Advance
from edgeq.quant.evaluation import evaluation_mode
from edgeq.quant.sensitivity.request import require_request


@dataclass(frozen=True)
class Trace:
    """Estimated trace of the Hessian block of one parameter.

    Args:
        mean: The estimate.
        error: Its standard error over the probes; 0 for a single probe, which shows none.
        parameters: Number of values of the parameter.
    """

    mean: float
    error: float
    parameters: int


def hessian_trace(
    module: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Sequence[Any],
    names: Sequence[str],
    *,
    probes: int = 50,
    seed: int = 0,
    progress: Advance | None = None,
) -> dict[str, Trace]:
    """Traces of the Hessian blocks of chosen parameters, averaged over batches.

    Hutchinson's estimator `E[v^T H v] = tr H` with Rademacher probes v, as in HAWQ-V2 (arXiv 1911.03852). Deviation:
    one probe covers all parameters at once, since the blocks beside the diagonal average out; one product per probe
    then serves every layer, at a somewhat larger error per probe, which is reported.

    Args:
        module: The float network, used in evaluation mode.
        loss: `(module, batch) -> ()`, twice differentiable, a mean over the samples of the batch.
        batches: Data in whatever form `loss` takes; equally many samples each.
        names: Parameters, as in `module.named_parameters()`.
        probes: Number of random vectors.
        seed: Of the probes; every batch sees the same ones.
        progress: Called with 1 after each probe of each batch.

    Raises:
        UsageError: No batch, an unknown or no parameter, or `probes` below 1.
        ModelError: The loss is not a finite number, or cannot be differentiated twice.
    """
    known = dict(module.named_parameters())
    require_request("trace", "parameter", names, known, batches=len(batches), probes=probes)
    parameters = [known[name] for name in names]
    samples = torch.zeros(probes, len(names), dtype=torch.float64)
    with _differentiable(module, parameters):
        for batch in batches:
            gradients = _gradients(loss(module, batch), parameters)
            for probe in range(probes):
                vectors = _rademacher(parameters, seed, probe)
                samples[probe] += _quadratic_forms(gradients, parameters, vectors)
                if progress is not None:
                    progress(1)
    samples /= len(batches)
    means = samples.mean(0).tolist()
    errors = (samples.std(0) / math.sqrt(probes)).tolist() if probes > 1 else [0.0] * len(names)
    return {
        name: Trace(mean, error, parameter.numel())
        for name, mean, error, parameter in zip(names, means, errors, parameters, strict=True)
    }


def perturbation(trace: Trace, weight: Tensor, quantized: Tensor) -> float:
    """`tr(H) / n * ||Q(W) - W||^2`, HAWQ-V2's score of a weight at a width (arXiv 1911.03852).

    Twice the loss increase of a second-order expansion when the error is spread evenly over the directions. A negative
    trace (the network is not at a minimum) counts as 0.

    Args:
        trace: Of the weight's Hessian block.
        weight: The float weight.
        quantized: Its values on the grid, same shape.

    Raises:
        InternalError: The shapes do not fit.
    """
    if weight.shape != quantized.shape or weight.numel() != trace.parameters:
        shapes = f"{tuple(weight.shape)} and {tuple(quantized.shape)}"
        raise InternalError(f"weights of shapes {shapes} for a trace of {trace.parameters}", code="EQ-Z240")
    error = (quantized.detach().to(torch.float64) - weight.detach().to(torch.float64)).square().sum()
    return max(0.0, trace.mean) / trace.parameters * float(error)


@contextmanager
def _differentiable(module: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Evaluation mode and gradients for the parameters; both as before afterwards."""
    wanted = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with evaluation_mode(module), torch.enable_grad():
            yield
    finally:
        for parameter, before in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(before)


def _gradients(value: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    if value.ndim != 0 or not bool(torch.isfinite(value)):
        raise ModelError(
            f"the loss must be one finite number, not {value.detach()}",
            code="EQ-M241",
            hint="check the model, its data and the loss in float",
        )
    if not value.requires_grad:
        return [torch.zeros_like(parameter) for parameter in parameters]
    return list(
        torch.autograd.grad(value, list(parameters), create_graph=True, allow_unused=True, materialize_grads=True)
    )


def _rademacher(parameters: Sequence[nn.Parameter], seed: int, probe: int) -> list[Tensor]:
    """Signs, the same for the same seed and number of the probe: drawn again for every batch rather than kept."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + probe)
    return [torch.randint(0, 2, p.shape, generator=generator).mul_(2).sub_(1).to(p) for p in parameters]


def _quadratic_forms(
    gradients: Sequence[Tensor], parameters: Sequence[nn.Parameter], vectors: Sequence[Tensor]
) -> Tensor:
    """`v_i^T (H v)_i` for each parameter i, float64."""
    curved = [(g, v) for g, v in zip(gradients, vectors, strict=True) if g.requires_grad]
    if not curved:  # the loss is linear in every parameter
        return torch.zeros(len(parameters), dtype=torch.float64)
    try:
        products = torch.autograd.grad(
            [g for g, _ in curved],
            list(parameters),
            [v for _, v in curved],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
    except RuntimeError as error:
        raise ModelError(
            f"the loss cannot be differentiated twice: {error}",
            code="EQ-M242",
            hint="write fused attention as matmul and softmax, or use measured sensitivities",
        ) from error
    forms = [(v.double() * hv.double()).sum() for v, hv in zip(vectors, products, strict=True)]
    return torch.stack(forms)
