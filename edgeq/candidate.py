"""One way of quantizing the model: built, read back, run by its runtime and timed against float."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from edgeq.artifact import model_bytes
from edgeq.devices import open_model
from edgeq.devices.base import Execution, Recording, RuntimeModel
from edgeq.devices.timing import PairedLatency, Runs, paired_latency
from edgeq.diagnosis import first_lowered, is_lowered
from edgeq.exporters.base import Exporter, ReadBack
from edgeq.graph.islands import IslandChoice
from edgeq.graph.layers import LayerFidelity, layer_fidelity, layers_by_weight
from edgeq.graph.learn import Learned
from edgeq.graph.legalize import Legalized, legalize
from edgeq.graph.placement import Placement
from edgeq.graph.solve import Rounding
from edgeq.graph.widths import WidthChoice
from edgeq.metrics import Summary, sqnr_db, summarize
from edgeq.models.base import Guarded, ModelAdapter
from edgeq.quant.statistics import TensorStatistics
from edgeq.recipe import Recipe, place_scheme
from edgeq.spec import QuantPlan

Arrays = tuple[NDArray[np.float32], ...]
Learn = Callable[[fx.GraphModule, Legalized, Placement], tuple[Legalized, Learned]]
"""Learns codes, grids and biases of a legalized graph: `(float graph, legalized, placement)`."""

SIMULATED = 4  # samples on which the simulation is run beside the artifact
LAYERED = 2  # samples on which layers are compared
APART_DB = 10.0
"""A file that is so much less faithful than its simulation computes something else than was planned."""
OUTLINE = 48  # parts of a tensor's range that evidence counts
RANKED = 5  # layers named in evidence and messages


@dataclass(frozen=True)
class RangeOutline:
    """What calibration saw of a tensor, beside the grid that it got.

    Args:
        tensor: Its name.
        low: Smallest value seen.
        high: Largest value seen.
        grid: Smallest and largest value of the grid.
        counts: Values in equal parts of low to high.
    """

    tensor: str
    low: float
    high: float
    grid: tuple[float, float]
    counts: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class Candidate:
    """A built artifact and everything measured on it.

    Args:
        scheme: Its name.
        path: The model file, while the export lasts.
        bytes: Its size; of a program for a microcontroller, its constants.
        plan: Its quantization.
        read_back: What the file contains.
        recipe: How it was quantized.
        fidelity: SQNR in dB of every output over the held-out samples, by output name.
        simulated_db: Median SQNR that the simulation predicts on the first samples.
        latency: Paired with the float file, or None when not timed.
        execution: What the runtime made of the file, or None before it ran.
        layers: Quantized operations, the largest own error first.
        ranges: Calibrated tensors, in the order of the plan.
        widths: How a budget of bytes was spent.
        learned: What was learned after rounding.
        islands: What measurement keeps float, and why.
        rejected: Why it cannot ship; empty when it can.
    """

    scheme: str
    path: Path
    bytes: int
    plan: QuantPlan
    read_back: ReadBack
    recipe: Recipe
    fidelity: dict[str, Summary] = field(default_factory=dict)
    simulated_db: float | None = None
    latency: PairedLatency | None = None
    execution: Execution | None = None
    layers: Sequence[LayerFidelity] = ()
    ranges: Sequence[RangeOutline] = ()
    widths: WidthChoice | None = None
    learned: Learned | None = None
    islands: IslandChoice | None = None
    rejected: tuple[str, ...] = ()

    @property
    def worst_output(self) -> Summary | None:
        """Fidelity of the output with the lowest median; None before it is measured."""
        return min(self.fidelity.values(), key=lambda s: s.median, default=None)

    def to_dict(self) -> dict[str, Any]:
        """JSON form for `evidence.json`."""
        return {
            "scheme": self.scheme,
            "bytes": self.bytes,
            "transform": self.recipe.transform,
            "rounding": self.recipe.rounding,
            "notes": list(self.plan.notes),
            "rejected": list(self.rejected),
            "fidelity_sqnr_db": {k: v.to_dict() for k, v in self.fidelity.items()},
            "simulated_sqnr_db": self.simulated_db,
            "latency": None if self.latency is None else self.latency.to_dict(),
            "widths": None if self.widths is None else self.widths.to_dict(),
            "islands": None if self.islands is None else self.islands.to_dict(),
            "learned": None if self.learned is None else self.learned.to_dict(),
            "partitions": self.execution.partitions if self.execution else 0,
            "execution": self.execution.to_dict() if self.execution else None,
            "file": self.read_back.to_dict(),
            "float_ops": _float_ops(self.plan),
            "layers": [r.to_dict() for r in self.layers],
            "ranges": [r.to_dict() for r in self.ranges],
        }


def _float_ops(plan: QuantPlan) -> list[dict[str, Any]]:
    """Operations that stay float, grouped by kind and reason."""
    groups: dict[tuple[str, str], int] = {}
    for op in plan.ops.values():
        if op.mode == "float":
            groups[op.op, op.reason] = groups.get((op.op, op.reason), 0) + 1
    return [{"op": op, "reason": reason, "count": count} for (op, reason), count in sorted(groups.items())]


def build(
    graph: fx.GraphModule,
    exporter: Exporter,
    scheme: str,
    recipe: Recipe,
    statistics: Mapping[str, TensorStatistics],
    rounding: Rounding,
    notes: Sequence[str],
    folder: Path,
    learn: Learn | None = None,
) -> tuple[Candidate, Legalized]:
    """Legalize, emit and read back one candidate in `folder`; its graphs are returned apart, they are large.

    Args:
        graph: Float graph, already transformed as the recipe says.
        exporter: The runtime.
        scheme: The scheme.
        recipe: Its recipe.
        statistics: Of the tensors that `observed` names.
        rounding: The recipe's rounder, with the samples it may need.
        notes: What the recipe's transforms did, for the plan.
        folder: Where to write.
        learn: What follows the rounding, if anything.
    """
    config, placement = place_scheme(graph, exporter, scheme, recipe.precision)
    legalized = legalize(graph, placement, config, exporter.rules, statistics, scheme, rounding)
    legalized = replace(legalized, plan=replace(legalized.plan, notes=tuple(notes)))
    learned = None
    if learn is not None:
        legalized, learned = learn(graph, legalized, placement)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / exporter.file_name
    exporter.emit(legalized.emission, example_of(graph), legalized.plan, path)
    read_back = exporter.read_back(path, legalized)
    rejected = []
    if read_back.missing:
        rejected.append(f"{len(read_back.missing)} planned weights are not in the file: {read_back.missing[0]}, ...")
    if read_back.extra:
        rejected.append(f"{len(read_back.extra)} integer weights in the file nobody planned: {read_back.extra[0]}, ...")
    if read_back.misfits:
        rejected.append(
            f"{len(read_back.misfits)} layers of the file have a bias on another grid: {read_back.misfits[0]}, ..."
        )
    if not legalized.plan.weights():
        rejected.append("no layer of this model has a weight that could be quantized")
    candidate = Candidate(
        scheme,
        path,
        read_back.memory.flash if read_back.memory else model_bytes(path),
        legalized.plan,
        read_back,
        recipe,
        learned=learned,
        ranges=outlines(legalized.plan, statistics),
        rejected=tuple(rejected),
    )
    return candidate, legalized


def outlines(plan: QuantPlan, statistics: Mapping[str, TensorStatistics]) -> tuple[RangeOutline, ...]:
    """What calibration saw of each planned activation that has a range of its own."""
    found = []
    for tensor in plan.tensors.values():
        seen = statistics.get(tensor.name)
        if tensor.role != "activation" or seen is None or not seen.count:
            continue
        spec, scale, zero = tensor.uniform.spec, float(tensor.uniform.scale), int(tensor.uniform.zero_point)
        grid = ((spec.qmin - zero) * scale, (spec.qmax - zero) * scale)
        counts = tuple(int(n) for n in seen.outline(OUTLINE))
        found.append(RangeOutline(tensor.name, float(seen.low), float(seen.high), grid, counts))
    return tuple(found)


def example_of(graph: fx.GraphModule) -> tuple[torch.Tensor, ...]:
    """Zero inputs of the shapes that `graph` was captured with."""
    inputs = [n.meta["val"] for n in graph.graph.nodes if n.op == "placeholder"]
    return tuple(torch.zeros(x.shape, dtype=x.dtype) for x in inputs)


def measure_fidelity(
    candidate: Candidate,
    legalized: Legalized,
    graph: fx.GraphModule,
    adapter: ModelAdapter,
    inputs: Sequence[Arrays],
    reference: Sequence[Arrays],
    threads: int,
) -> Candidate:
    """Run the file on held-out inputs and compare with float; rank its layers on the first of them.

    Args:
        candidate: Built.
        legalized: Its graphs.
        graph: The float graph.
        adapter: The model: names of its outputs, and when they are useless.
        inputs: Held-out network inputs.
        reference: Float outputs for them.
        threads: Threads of the runtime.
    """
    model = open_model(candidate.path, threads=threads)
    outputs = [model.run(*sample) for sample in inputs]
    fidelity = {
        name: summarize([sqnr_db(r[i], o[i]) for r, o in zip(reference, outputs, strict=True)])
        for i, name in enumerate(adapter.loaded.output_names)
    }
    few = [tuple(torch.from_numpy(a) for a in sample) for sample in inputs[:SIMULATED]]
    with torch.no_grad():
        simulated = [tuple(o.numpy() for o in legalized.simulation(*sample)) for sample in few]
    predicted, reached = (_median_db(reference[:SIMULATED], found) for found in (simulated, outputs[:SIMULATED]))
    shown = record_layers(model, candidate.read_back, layers_by_weight(graph, legalized.plan), inputs[:LAYERED])
    layers = layer_fidelity(graph, legalized, few[:LAYERED], shown)
    execution = model.execution()
    useless = [adapter.collapse(reference, outputs)] if isinstance(adapter, Guarded) else []
    if predicted - reached > APART_DB:
        first = first_lowered((r.name for r in layers if is_lowered(r.total_db, r.file_db)), candidate.plan.ops)
        useless.append(
            f"the file computes something else than was planned: {reached:.1f} dB where its simulation has "
            f"{predicted:.1f}{f'; first at {first}' if first else ''}"
        )
    return replace(
        candidate,
        fidelity=fidelity,
        simulated_db=predicted,
        execution=execution,
        rejected=(*candidate.rejected, *_ran_float(candidate.read_back, execution), *filter(None, useless)),
        layers=layers,
    )


def record_layers(
    model: RuntimeModel, read_back: ReadBack, layers: Mapping[str, Sequence[str]], inputs: Sequence[Arrays]
) -> list[dict[str, NDArray[Any]]]:
    """What layers give in the file, by layer, for each of `inputs`; empty where the runtime does not show it.

    Args:
        model: The file, loaded.
        read_back: Which of its tensors holds the result of which weight's layers.
        layers: Layers by the weight that they read.
        inputs: Network inputs.
    """
    places: dict[str, str] = {}
    for weight, names in layers.items():
        sites = read_back.sites.get(weight, ())
        if len(sites) == len(names):  # otherwise a layer was split or merged, and nobody knows which is whose
            places.update(zip(names, sites, strict=True))
    if not places or not isinstance(model, Recording):
        return []
    recorded = (model.record(set(places.values()), *sample) for sample in inputs)
    return [{layer: held[place] for layer, place in places.items() if place in held} for held in recorded]


def _median_db(reference: Sequence[Arrays], found: Sequence[Arrays]) -> float:
    """Median over samples of the SQNR of the least faithful output."""
    worst = [
        min(sqnr_db(r, f) for r, f in zip(truth, outputs, strict=True))
        for truth, outputs in zip(reference, found, strict=True)
    ]
    return summarize(worst).median


def measure_latency(
    candidate: Candidate, float_path: Path, sample: Arrays, threads: int, runs: Runs, seconds: float
) -> Candidate:
    """Time the candidate against the float file, alternating in this process."""
    quick, slow = open_model(candidate.path, threads=threads), open_model(float_path, threads=threads)
    slow.prepare(*sample)
    quick.prepare(*sample)
    latency = paired_latency(slow.invoke, quick.invoke, runs=runs, max_seconds=seconds)
    return replace(candidate, latency=latency)


def judge(candidate: Candidate, min_sqnr_db: float, budget_kb: float | None = None) -> Candidate:
    """Add the reasons why a measured candidate cannot ship, naming the operations responsible.

    Args:
        candidate: Measured.
        min_sqnr_db: Floor of the median SQNR of its worst output.
        budget_kb: Largest size in kB.
    """
    rejected = list(candidate.rejected)
    if budget_kb is not None and candidate.bytes > 1000 * budget_kb:
        rejected.append(f"its file of {candidate.bytes / 1000:.1f} kB is over the budget of {budget_kb:g} kB")
    worst = candidate.worst_output
    if worst is not None and not worst.median >= min_sqnr_db:
        names = ", ".join(f"{r.name} ({r.own_db:.1f} dB)" for r in candidate.layers[:3])
        rejected.append(
            f"median SQNR {worst.median:.1f} dB is below the floor of {min_sqnr_db:g} dB; largest own errors: {names}"
        )
    latency = candidate.latency
    if latency is not None and latency.verdict == "slower":
        rejected.append(
            f"slower than float: {latency.ratio:.2f} x its time (95 %: {latency.low:.2f} to {latency.high:.2f}); "
            f"{_overhead(candidate.execution)}float: {_slow_ops(candidate)}"
        )
    return replace(candidate, rejected=tuple(rejected))


def _ran_float(read_back: ReadBack, execution: Execution) -> list[str]:
    """The reason against a candidate whose integer products the runtime executes in float, naming the first."""
    integer = {name for op in execution.ops if op.integer for name in op.covers}
    lost = [op.name for op in read_back.ops if op.kernel == "int8" and op.macs and op.name not in integer]
    if not lost:
        return []
    return [
        f"{len(lost)} products that the file holds as integers were not seen to run in integers: {', '.join(lost[:3])}"
    ]


def _overhead(execution: Execution | None) -> str:
    """Work between the kernels, for messages."""
    if execution is None:
        return ""
    parts = f"{execution.conversions} conversions between integers and float"
    return f"{parts} in {execution.partitions} delegate partitions; "


def _slow_ops(candidate: Candidate) -> str:
    groups = sorted(_float_ops(candidate.plan), key=lambda g: -int(g["count"]))
    return ", ".join(f"{g['count']} {g['op']}" for g in groups[:4]) or "none"
