"""Importance of intermediate outputs by first derivatives: Fisher information and relevance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeq.errors import ModelError
from edgeq.progress import Advance
from edgeq.quant.evaluation import evaluation_mode
from edgeq.quant.losses import drawn_surprise
from edgeq.quant.sensitivity.request import require_request


def fisher_diagonal(
    module: nn.Module,
    batches: Sequence[tuple[Tensor, ...]],
    names: Sequence[str],
    *,
    draws: int = 1,
    seed: int = 0,
    progress: Advance | None = None,
) -> dict[str, Tensor]:
    """Diagonal Fisher information of intermediate outputs O: `E_x E_{y ~ p(y|x)} [(d(-log p_y) / dO)^2]`.

    The weights of a squared block error in the place of BRECQ's (arXiv 2102.05426) and APHQ-ViT's (arXiv 2504.02508).
    Deviation: the labels are drawn from the network's own prediction. That is the Gauss-Newton matrix of the KL
    divergence, needs one backward pass, and is never negative, where differencing two gradients loses its digits.
    All names are served by one pass, and samples are averaged: for scores. `edgeq.quant.losses.fisher_diagonal` gives
    it for each sample at the output of one block, whose suffix is at hand: for reconstruction.

    Args:
        module: Classifier with logits `(N, ..., classes)`; a module, or a graph whose node names may be used.
        batches: Inputs, one tuple a batch, samples along the first axis.
        names: Submodules of `module`, or nodes of the graph.
        draws: Labels drawn for each sample.
        seed: Of the labels.
        progress: Called with 1 after each batch.

    Returns:
        Mean over samples and draws by name: float64, the output's shape without its first axis.

    Raises:
        UsageError: No batch, no or an unknown name, or `draws` below 1.
        ModelError: Outputs that are no logits, are not finite, or do not depend on a name for every sample alone.
    """
    _require(module, batches, names, draws)
    generator = torch.Generator().manual_seed(seed)
    totals: dict[str, Tensor] = {}
    count = 0
    for batch in batches:
        with _tapped(module, batch, names) as (logits, taps):
            log_p = torch.log_softmax(logits.double(), dim=-1).flatten(0, -2)
            for _ in range(draws):
                gradients = _gradients(drawn_surprise(log_p, generator), taps)
                for name, gradient in gradients.items():
                    square = gradient.double().square().sum(0)
                    totals[name] = totals[name] + square if name in totals else square
        count += logits.shape[0]
        if progress is not None:
            progress(1)
    return {name: totals[name] / (count * draws) for name in names}


def relevance(
    module: nn.Module,
    batches: Sequence[tuple[Tensor, ...]],
    names: Sequence[str],
    *,
    progress: Advance | None = None,
) -> dict[str, float]:
    """Share of each intermediate output O in the predicted class: mean over samples of `sum |O * d logit / dO|`.

    Gradient times input is what layer-wise relevance propagation with the epsilon rule gives for networks of rectifiers
    (Ancona et al. 2018, arXiv 1711.06104); LRP-QViT ranks layers by such a relevance. It says how much passes
    through a tensor, not how much a coarser grid hurts: use it to decide between tensors of equal sensitivity.

    Args:
        module: Classifier with logits `(N, ..., classes)`; a module, or a graph whose node names may be used.
        batches: Inputs, one tuple a batch, samples along the first axis.
        names: Submodules of `module`, or nodes of the graph.
        progress: Called with 1 after each batch.

    Returns:
        Shares by name that sum to 1; all 0 when nothing is relevant.

    Raises:
        UsageError: No batch, or no or an unknown name.
        ModelError: As `fisher_diagonal`.
    """
    _require(module, batches, names, draws=1)
    totals = dict.fromkeys(names, 0.0)
    for batch in batches:
        with _tapped(module, batch, names) as (logits, taps):
            for name, gradient in _gradients(logits.amax(-1).sum(), taps).items():
                totals[name] += float((gradient.double() * taps[name].detach().double()).abs().sum())
        if progress is not None:
            progress(1)
    whole = sum(totals.values())
    return {name: total / whole if whole > 0 else 0.0 for name, total in totals.items()}


def _require(module: nn.Module, batches: Sequence[tuple[Tensor, ...]], names: Sequence[str], draws: int) -> None:
    known = {name for name, _ in module.named_modules() if name}
    if isinstance(module, fx.GraphModule):
        known |= {node.name for node in module.graph.nodes if node.op != "output"}
    require_request("importance", "layer", names, known, batches=len(batches), draws=draws)


@contextmanager
def _tapped(
    module: nn.Module, batch: tuple[Tensor, ...], names: Sequence[str]
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Logits of a batch and the named intermediate outputs, connected by the graph of derivatives."""
    taps: dict[str, Tensor] = {}

    def tap(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.shape[:1] != batch[0].shape[:1]:
            raise ModelError(f"{name} gives no tensor with one entry a sample", code="EQ-M243", place=name)
        # what does not depend on a parameter is an input or a constant, and not ours to change
        taps[name] = value if value.requires_grad else value.detach().requires_grad_()
        return taps[name].clone()  # what follows may work in place

    class Tapping(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            return tap(n.name, value) if n.name in names else value

    nodes = {n.name for n in module.graph.nodes} if isinstance(module, fx.GraphModule) else set()
    hooks = [
        module.get_submodule(name).register_forward_hook(lambda _m, _i, value, name=name: tap(name, value))
        for name in names
        if name not in nodes
    ]
    try:
        with evaluation_mode(module), torch.enable_grad():
            logits = Tapping(module).run(*batch) if nodes else module(*batch)
            logits = logits[0] if isinstance(logits, tuple) and len(logits) == 1 else logits
            if not isinstance(logits, Tensor) or logits.ndim < 2 or not bool(torch.isfinite(logits).all()):
                raise ModelError(
                    "the network's output is not one finite tensor of logits (N, ..., classes)",
                    code="EQ-M243",
                    hint="importance needs a classifier; use measured sensitivities for other networks",
                )
            if unused := [name for name in names if name not in taps]:
                raise ModelError(f"{unused[0]} is never computed", code="EQ-M243", place=unused[0])
            yield logits, taps
    finally:
        for hook in hooks:
            hook.remove()


def _gradients(value: Tensor, taps: dict[str, Tensor]) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(
        value, list(taps.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(taps, gradients, strict=True))
