"""Block reconstruction of a whole graph: roundings, activation scales and biases learned block by block.

The legalized graph is cut at its residual stream. Each block is trained on what the blocks before it really deliver, so
that what it gives comes close to what the float block gives; at the end all blocks may be trained together on the
outputs of the network. The start is whatever rounding made the legalized graph, and the result has its form, so that it
replaces codes, grids and biases there.

BRECQ (Li et al. 2021, arXiv 2102.05426) with QDrop (Wei et al. 2022, arXiv 2203.05740), on captured graphs.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from edgeq.errors import DataError, ModelError, UsageError, unknown_name
from edgeq.graph.batch import batched
from edgeq.graph.blocks import MAX_LAYERS, Block, blocks_of, extract, joined, whole
from edgeq.graph.legalize import Legalized
from edgeq.graph.placement import Placement
from edgeq.graph.rewrite import fetch
from edgeq.graph.solve import Solved, apply_solved
from edgeq.graph.transforms.parameters import argument, parameter
from edgeq.progress import Advance
from edgeq.quant.losses import (
    ImportanceLoss,
    LossSum,
    PredictionDifference,
    ReconstructionLoss,
    Suffix,
    fisher_diagonal,
    global_local,
    mse,
)
from edgeq.quant.reconstruct import (
    BlockData,
    BlockSettings,
    FitResult,
    LearnedScale,
    StraightThrough,
    reconstruct_block,
)
from edgeq.quant.rounding.soft import SOFT_ROUNDINGS, SoftRounding
from edgeq.quant.uniform import dequantize, fake_quantize, quantize
from edgeq.spec import PerTensor, QParams, QuantPlan, QuantSpec, codes_hash

_KINDS = {**SOFT_ROUNDINGS, "straight": StraightThrough}
_LOSSES = ("mse", "fisher", "features")
_INSIDE = 0.1
"""How far from its code a weight may start, in steps. What another rounding moved on purpose would start next to the
boundary, and the first noisy steps would undo it: from 0.45 the error of blocks rounded by GPTQ rises before it falls.
"""

_BIAS_RATE = 5e-4
_BATCH = 64

Loss = Literal["mse", "fisher", "features"]
Tensors = dict[str, Tensor]
"""What nodes give for all samples, by their names."""


@dataclass(frozen=True)
class Effort:
    """How one stage of a reconstruction is done.

    Args:
        settings: Length, batches, hold-out, dropping and step sizes.
        loss: `mse` of the block's output; `fisher`, the same weighted by what each element does to the prediction; or
            `features`, which adds the error that it causes at the input of the last block (GLF-Q). A last block that
            ends in class logits always has the divergence of the prediction and the squared error of the logits.
        rounding: `straight` or a key of `SOFT_ROUNDINGS`.
        learn_biases: Train biases as well.

    Raises:
        UsageError: Unknown loss or rounding.
    """

    settings: BlockSettings = field(default_factory=BlockSettings)
    loss: Loss = "mse"
    rounding: str = "straight"
    learn_biases: bool = True

    def __post_init__(self) -> None:
        if self.loss not in _LOSSES:
            raise unknown_name("loss", self.loss, _LOSSES, code="EQ-U320")
        if self.rounding not in _KINDS:
            raise unknown_name("learned rounding", self.rounding, _KINDS, code="EQ-U320")


@dataclass(frozen=True)
class Reconstruction:
    """How a graph is reconstructed.

    Args:
        blocks: The stage that trains block by block; None to leave it out.
        joint: The stage that trains all blocks together on the prediction (or, without class logits, the output) of
            the float network; None to leave it out.
        max_layers: Weighted layers of a block.
        budget_seconds: Wall-clock limit of all; what is left is shared evenly. None for none.
        folder: Where states are kept, to continue after an interruption.

    Raises:
        UsageError: No stage, or a negative budget.
    """

    blocks: Effort | None = field(default_factory=Effort)
    joint: Effort | None = None
    max_layers: int = MAX_LAYERS
    budget_seconds: float | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        if (self.blocks is None and self.joint is None) or self.max_layers < 1 or (self.budget_seconds or 0) < 0:
            raise UsageError(
                f"impossible settings of a reconstruction: {self}",
                code="EQ-U320",
                hint="give at least one stage, and limits above 0",
            )


@dataclass(frozen=True, eq=False)
class Reconstructed:
    """What a reconstruction found.

    Args:
        weights: Codes, grids and biases by layer.
        activations: Grids by tensor.
        fits: The course of each training, by the node that ends the block, or `joint`.
        left: Weighted layers that are in no block, as they were.
    """

    weights: Mapping[str, Solved]
    activations: Mapping[str, QParams]
    fits: Mapping[str, FitResult]
    left: tuple[str, ...]


def reconstruct(
    graph: fx.GraphModule,
    legalized: Legalized,
    placement: Placement,
    samples: Tensor,
    settings: Reconstruction | None = None,
    *,
    teacher: fx.GraphModule | None = None,
    progress: Advance | None = None,
) -> Reconstructed:
    """Learn codes, activation grids and biases of a legalized graph.

    Args:
        graph: The float graph that was legalized.
        legalized: Where to start; not changed.
        placement: What it was legalized with.
        samples: Calibration inputs `(samples, ...)`; a few hundred at least.
        settings: How.
        teacher: Float graph that yields the targets, with the same names at the cuts; `graph` when None. Another one
            makes sense where `graph` was changed in a way that costs accuracy, such as GELU to ReLU.
        progress: Called with the number of steps done.

    Raises:
        UsageError: Activations are quantized at run time, where there are no scales to learn.
        ModelError: The graph cannot be cut.
        DataError: There are fewer than two samples.
    """
    if legalized.simulation is not legalized.emission:
        raise UsageError(
            "grids chosen at run time cannot be learned",
            code="EQ-U321",
            hint="use --scheme static or integer",
        )
    if len(samples) < 2:
        raise DataError(f"{len(samples)} samples are too few to learn from", code="EQ-D320", hint="give hundreds")
    work = _Work(graph, legalized, placement, samples, settings or Reconstruction(), teacher or graph, progress)
    return work.run()


def reconstructed(legalized: Legalized, found: Reconstructed) -> Legalized:
    """The legalized graph with learned codes, grids and biases.

    Args:
        legalized: What the reconstruction started from; not changed.
        found: Its result.
    """
    emission = copy.deepcopy(legalized.emission)
    nodes = {n.name: n for n in emission.graph.nodes}
    tensors = dict(legalized.plan.tensors)
    for name, qparams in found.activations.items():
        tensors[name] = replace(tensors[name], qparams=qparams, provenance=f"{tensors[name].provenance}, then learned")
        for quantized in [u for u in nodes[name].users if _is_quantize(u)]:
            for pair in (quantized, *quantized.users):
                pair.update_arg(1, float(qparams.scale))
                pair.update_arg(2, int(qparams.zero_point))
    for name, solved in found.weights.items():
        attribute = _weight_path(nodes[name])
        apply_solved(emission, nodes[name], attribute, solved)
        stored = tensors[attribute]
        digest = codes_hash(solved.codes.numpy())
        rounding = f"{stored.rounding}, {solved.note}"
        tensors[attribute] = replace(stored, qparams=solved.qparams, rounding=rounding, codes_sha256=digest)
        _set_weight_grid(emission, nodes[name], solved.qparams.on_rows())
    emission.recompile()
    plan = QuantPlan(legalized.plan.scheme, tensors, legalized.plan.ops)
    return Legalized(plan, emission, emission, legalized.absorbed)


class _Work:
    """The float teacher and the quantized student, and what was learned so far."""

    def __init__(
        self,
        graph: fx.GraphModule,
        legalized: Legalized,
        placement: Placement,
        samples: Tensor,
        settings: Reconstruction,
        teacher: fx.GraphModule,
        progress: Advance | None,
    ) -> None:
        self.settings, self.samples, self.progress = settings, samples, progress
        self.graph, self.plan, self.placement = graph, legalized.plan, placement
        self.student, self.scales = _student(legalized, placement)
        self.teacher = copy.deepcopy(teacher)
        try:
            many = [batched(gm, (samples[:1],)) for gm in (self.student, self.teacher)]
        except ModelError:
            self.one_by_one = True
        else:
            self.one_by_one = False
            self.student, self.teacher = many
            self.scales = {g: self.student.get_submodule(_module_name(g)) for g in self.scales}  # type: ignore[misc]
        self.nodes = {n.name: n for n in self.student.graph.nodes}
        layers = {name: path for name, path in placement.weights.items() if _weight_path(self.nodes[name])}
        self.blocks = blocks_of(graph, frozenset(layers), max_layers=settings.max_layers)
        self.latent: dict[str, Tensor] = {}
        self.codes: dict[str, tuple[Tensor, QParams]] = {}
        for name, path in layers.items():
            qparams = self.plan.tensors[path].uniform
            weight = parameter(self.graph, _node(graph, name), "weight")
            assert weight is not None
            self.codes[path] = (quantize(fetch(self.student, path), qparams), qparams)
            self.latent[path] = weight
        self.touched: dict[str, str] = {}
        self.fits: dict[str, FitResult] = {}
        self._deadline = None if settings.budget_seconds is None else time.monotonic() + settings.budget_seconds

    def run(self) -> Reconstructed:
        settings, start = self.settings, dict.fromkeys(self.blocks[0].sources, self.samples)
        stages = (len(self.blocks) if settings.blocks else 0) + (len(self.blocks) if settings.joint else 0)
        if settings.blocks is not None:
            exact, rough = dict(start), dict(start)
            for number, block in enumerate(self.blocks):
                pair = self._block(block, exact, rough, settings.blocks, stages)
                later = {name for b in self.blocks[number + 1 :] for name in b.sources}
                for held, results in zip((exact, rough), pair, strict=True):
                    held.update(results)
                    for name in held.keys() - later:
                        del held[name]
                stages -= 1
        if settings.joint is not None:
            self._block(whole(self.graph, self.blocks), start, start, settings.joint, 1, "joint")
        return self._result()

    def _block(
        self, block: Block, exact: Tensors, rough: Tensors, effort: Effort, stages: int, name: str = ""
    ) -> tuple[Tensors, Tensors]:
        """Train one block; what it gives in the float and in the quantized network."""
        student = extract(self.student, block.sources, block.results)
        inputs = [tuple(held[source] for source in block.sources) for held in (exact, rough)]
        results = self._apply(extract(self.teacher, block.sources, block.results), inputs[0])
        roundings = self._roundings(block, effort)
        biases = self._biases(block) if effort.learn_biases else {}
        if roundings or biases:
            learner, targets = student, results[0]
            if len(results) > 1:
                units = _units(results)
                learner = joined(student, units)
                targets = torch.cat([x.flatten(1) / unit for x, unit in zip(results, units, strict=True)], dim=1)
            fit = effort.settings.fit
            if self._deadline is not None:
                fit = replace(fit, budget_seconds=max(0.0, self._deadline - time.monotonic()) / max(stages, 1))
            path = None if self.settings.folder is None else self.settings.folder / f"{name or block.name}.pt"
            self.fits[name or block.name] = reconstruct_block(
                learner,
                BlockData(inputs[0], inputs[1], targets),
                {**roundings, **biases},
                loss=self._loss(block, effort, targets, joint=name == "joint"),
                settings=replace(effort.settings, fit=fit, one_by_one=self.one_by_one),
                path=path,
                progress=self.progress,
            )
            where = "in all blocks together" if name else "in blocks"
            self._keep(block, roundings, biases, f"{effort.rounding} {where}")
        found = self._apply(student, inputs[1])
        return dict(zip(block.results, results, strict=True)), dict(zip(block.results, found, strict=True))

    def _roundings(self, block: Block, effort: Effort) -> dict[str, SoftRounding]:
        """One for each weight of the block that a single layer reads."""
        found: dict[str, SoftRounding] = {}
        for name in block.layers:
            path = _weight_path(self.nodes[name])
            if path in found or len({u for n in _readers(self.student, path) for u in n.users}) > 1:
                continue
            codes, qparams = self.codes[path]
            found[path] = _KINDS[effort.rounding](_inside(self.latent[path], codes, qparams), qparams)
        return found

    def _biases(self, block: Block) -> dict[str, SoftRounding]:
        found: dict[str, SoftRounding] = {}
        for name in block.layers:
            constant = argument(self.nodes[name], "bias")
            if isinstance(constant, fx.Node) and constant.op == "get_attr" and len(constant.users) == 1:
                path = str(constant.target)
                found[path] = LearnedBias(
                    fetch(self.student, path), fetch(self.student, _weight_path(self.nodes[name]))
                )
        return found

    @torch.no_grad()
    def _keep(
        self, block: Block, roundings: Mapping[str, SoftRounding], biases: Mapping[str, SoftRounding], note: str
    ) -> None:
        """Put what was learned into the student."""
        for path, rounding in roundings.items():
            self.codes[path] = (rounding.codes(), rounding.qparams())
            if isinstance(rounding, StraightThrough):
                self.latent[path] = rounding.target + rounding.shift.detach() * rounding.grid.scale
            _assign(self.student, path, dequantize(*self.codes[path]))
        for path, bias in biases.items():
            if bool(torch.cat([p.flatten() for p in bias.parameters()]).any()):  # else its own values are finer
                _assign(self.student, path, bias.weight())
        for name in block.layers:
            if _weight_path(self.nodes[name]) in roundings:
                self.touched[name] = note

    def _loss(self, block: Block, effort: Effort, targets: Tensor, *, joint: bool) -> ReconstructionLoss:
        """The loss of a block, with what lies behind it in the float network."""
        if joint or block is self.blocks[-1]:
            if len(block.results) > 1 or targets.dim() != 2:
                return mse
            prediction = PredictionDifference(nn.Identity(), targets, temperature=1.0)
            return LossSum.of((1.0, prediction), (0.1 if joint else 1.0, mse))
        if effort.loss == "mse":
            return mse
        last = self.blocks[-1]
        ends = last.results if effort.loss == "fisher" else last.sources
        if block.results == ends:
            return mse
        if len(block.results) > 1 or len(ends) > 1:
            raise ModelError(
                f"the loss {effort.loss} wants a network that one tensor passes; {block.name} has others beside it",
                code="EQ-M322",
                hint="use the loss mse",
            )
        suffix = self._suffix(block.results, ends)
        if effort.loss == "fisher":
            return ImportanceLoss(fisher_diagonal(suffix, targets).mean(0, keepdim=True))
        with torch.no_grad():
            return global_local(suffix, suffix(targets))

    def _suffix(self, sources: tuple[str, ...], results: tuple[str, ...]) -> Suffix:
        """What the float network makes of one tensor on the way to another, differentiable in it alone."""
        suffix = extract(self.teacher, sources, results).requires_grad_(False)
        return lambda x: self._in_parts(suffix, x)[0]

    @torch.no_grad()
    def _apply(self, part: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self._in_parts(part, *inputs)

    def _in_parts(self, part: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
        """`part` on as many samples at a time as it takes."""
        size = 1 if self.one_by_one else _BATCH
        found = [part(*few) for few in zip(*(torch.split(x, size) for x in inputs), strict=True)]
        many = [x if isinstance(x, tuple) else (x,) for x in found]
        return tuple(torch.cat(parts) for parts in zip(*many, strict=True))

    def _result(self) -> Reconstructed:
        weights = {}
        for name, note in self.touched.items():
            codes, qparams = self.codes[_weight_path(self.nodes[name])]
            bias = parameter(self.student, self.nodes[name], "bias")
            weights[name] = Solved(qparams, codes, None if bias is None else bias.clone(), note)
        groups = self.placement.groups
        activations = {
            tensor: module.qparams()
            for group, module in self.scales.items()
            if bool(module.log_factor.any())
            for tensor in self.placement.specs
            if groups[tensor] == group
        }
        inside = {name for block in self.blocks for name in block.layers}
        left = tuple(name for name in self.placement.weights if name not in inside)
        return Reconstructed(weights, activations, self.fits, left)


def _units(results: Sequence[Tensor]) -> list[float]:
    """Divisors after which the mean squared error of all results is the mean of their relative errors."""
    sizes = [result[0].numel() for result in results]
    shares = [math.sqrt(size * len(sizes) / sum(sizes)) for size in sizes]
    return [share * max(float(x.std()), 1e-6) for share, x in zip(shares, results, strict=True)]


class LearnedBias(StraightThrough):
    """A bias as something to learn: on so fine a grid that rounding does not matter. Steps of weights are none of it.

    Args:
        bias: `(O,)`.
        weight: Of the same layer, `(O, ...)`: tells how large a change is.
    """

    own_rate = True

    def __init__(self, bias: Tensor, weight: Tensor) -> None:
        size = max(float(bias.abs().max()), float(weight.flatten(1).norm(dim=1).max()), 1e-6)
        spec = QuantSpec(16, symmetric=True, granularity=PerTensor())
        super().__init__(bias, QParams(spec, 2 * size / spec.qmax, 0))  # type: ignore[arg-type]
        self._rate = _BIAS_RATE * float(weight.flatten(1).norm(dim=1).mean()) * spec.qmax / (2 * size)

    def learning_rate(self, iterations: int) -> float:
        """A share of what inputs of size 1 give, in steps of the grid."""
        del iterations
        return max(self._rate, 1e-6)


class FixedGrid(nn.Module):
    """A grid that is not learned; gradients pass where it does not clip.

    Args:
        qparams: The grid.
    """

    def __init__(self, qparams: QParams) -> None:
        super().__init__()
        self.grid = qparams
        scale, zero, spec = float(qparams.scale), int(qparams.zero_point), qparams.spec
        self._ends = (scale * (spec.qmin - zero), scale * (spec.qmax - zero))

    def forward(self, x: Tensor) -> Tensor:
        """`x` on the grid."""
        inside = x.clamp(*self._ends)
        return inside + (fake_quantize(x, self.grid) - inside).detach()


def _student(legalized: Legalized, placement: Placement) -> tuple[fx.GraphModule, dict[str, LearnedScale]]:
    """A copy of the emission graph with a module for each activation's grid, and weights without any.

    Values that only move (reshape, transpose) lie on their grid already and get no second module.
    """
    gm = copy.deepcopy(legalized.emission)
    scales: dict[str, LearnedScale] = {}
    for node in list(gm.graph.nodes):
        if not _is_quantize(node):
            continue
        (restored,) = node.users
        source = node.args[0]
        assert isinstance(source, fx.Node)
        entry = legalized.plan.tensors.get(source.name)
        if source.op == "get_attr":
            if str(source.target) not in placement.weights.values():
                continue  # an exact constant
            restored.replace_all_uses_with(source)
        elif _carried(source, placement):
            restored.replace_all_uses_with(source)
        elif entry is not None:
            group = placement.groups[source.name]
            if group not in scales:
                module = FixedGrid(entry.uniform) if group in placement.fixed else LearnedScale(entry.uniform)
                gm.add_submodule(_module_name(group), module)
                if isinstance(module, LearnedScale):
                    scales[group] = module
            with gm.graph.inserting_after(source):
                new = gm.graph.call_module(_module_name(group), (source,))
            restored.replace_all_uses_with(new)
        gm.graph.erase_node(restored)
        gm.graph.erase_node(node)
    gm.graph.eliminate_dead_code()
    gm.graph.lint()
    gm.recompile()
    return gm, scales


def _carried(node: fx.Node, placement: Placement) -> bool:
    """Whether a value lies on its grid because all it was made of does, and it was only moved."""
    if node.name in placement.ops or node.name not in placement.produced:
        return False
    sources = [n for n in node.all_input_nodes if n.op != "get_attr"]
    return bool(sources) and all(
        n.op == "call_module" or (n.name in placement.groups and _carried(n, placement)) for n in sources
    )


def _module_name(group: str) -> str:
    return f"grid_of_{group}"


def _is_quantize(node: fx.Node) -> bool:
    return node.op == "call_function" and str(node.target).startswith("quantized_decomposed.quantize_per_")


def _weight_path(node: fx.Node) -> str:
    """Attribute path of a layer's weight, also behind its grid."""
    source: Any = node.args[1]
    while isinstance(source, fx.Node) and source.op != "get_attr":
        source = source.args[0]
    return str(source.target)


def _readers(gm: fx.GraphModule, path: str) -> list[fx.Node]:
    return [n for n in gm.graph.nodes if n.op == "get_attr" and n.target == path]


def _node(gm: fx.GraphModule, name: str) -> fx.Node:
    found: fx.Node = next(n for n in gm.graph.nodes if n.name == name)
    return found


def _inside(weight: Tensor, codes: Tensor, qparams: QParams) -> Tensor:
    """The weight, or where its code is another, the nearest value that is rounded to the code."""
    centre = dequantize(codes, qparams)
    step = dequantize(codes + 1, qparams) - centre
    return torch.maximum(torch.minimum(weight, centre + _INSIDE * step), centre - _INSIDE * step)


def _assign(gm: fx.GraphModule, path: str, value: Tensor) -> None:
    """Overwrite a constant; extracted parts of the graph see it, for they hold the same tensor."""
    fetch(gm, path).copy_(value.reshape(fetch(gm, path).shape))


def _set_weight_grid(gm: fx.GraphModule, layer: fx.Node, qparams: QParams) -> None:
    """Write a weight's scales and zero points where the graph has them."""
    restored = layer.args[1]
    assert isinstance(restored, fx.Node)
    quantized = restored.args[0]
    assert isinstance(quantized, fx.Node)
    for position, values in ((1, qparams.scale), (2, qparams.zero_point)):
        holder = quantized.args[position]
        if isinstance(holder, fx.Node):
            fetch(gm, str(holder.target)).copy_(torch.from_numpy(values))
        else:
            for node in (quantized, restored):
                node.update_arg(position, values.item())
