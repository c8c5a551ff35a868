"""Top-1 of the reference `vit_nano` on CIFAR-10, by method and bits, in the simulation of what ships; writes JSON.

    python tools/bench/vit_accuracy.py --data CIFAR10_FOLDER [--methods GLOB ...] [--bits 4 3] [--again]

`CIFAR10_FOLDER` holds `train.npz` (calibration) and `test.npz` (1000 images, never calibrated on). Every row is kept
as soon as it is measured, so an interrupted run continues. Only products run on grids (`Precision.products_only`); the
first and the last layer keep 8 bits, and so do results that no product reads, which papers leave in float.
"""

from __future__ import annotations

import argparse
import fnmatch
import io
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, fx
from torch.nn import functional

from edgeq.exporters import get_exporter
from edgeq.graph.batch import batched
from edgeq.graph.kinds import op_kind
from edgeq.graph.layers import Recorder
from edgeq.graph.legalize import Legalized, legalize, observed
from edgeq.graph.placement import Placement
from edgeq.graph.reconstruct import Effort, Loss, Reconstruction, reconstruct, reconstructed
from edgeq.graph.solve import Rounding
from edgeq.metrics import bootstrap_difference
from edgeq.models import load_model
from edgeq.models.base import parse_model
from edgeq.quant.calibrator import calibrate
from edgeq.quant.grids import fit_attention
from edgeq.quant.reconstruct import BlockSettings, FitSettings
from edgeq.recipe import place_scheme, transform_graph
from edgeq.spec import Precision, QuantConfig

RESULT = Path(__file__).parent / "results" / "vit_accuracy.json"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SAMPLES = 128
LEARNING = 512
"""Images of a reconstruction."""

WEIGHT_RATE = 1e-2
BATCH = 50
GOALS = {8: 0.3, 6: 0.7, 4: 2.5, 3: 10.0}
"""Points of top-1 that a width may cost."""


_LOSSES: tuple[Loss, ...] = ("features", "mse", "fisher")


@dataclass(frozen=True)
class Method:
    """How a row is quantized.

    Args:
        transform: See `edgeq.recipe.Recipe`.
        rounding: Key of `ROUNDERS`.
        ranges: Estimator of activation ranges.
        attention: Kind of grid and correction of the attention probabilities, such as `adalog:row_sum`; empty for the
            uniform grids of the plan.
        blocks: Steps of the reconstruction of each block; 0 for none.
        loss: Of the reconstruction.
    """

    transform: str = "transformer"
    rounding: str = "gptq"
    ranges: str = "minmax"
    attention: str = ""
    blocks: int = 0
    loss: Loss = "mse"


def methods() -> dict[str, Method]:
    """All rows of the table, by name."""
    found: dict[str, Method] = {}

    def add(method: Method) -> None:
        blocks = f"blocks-{method.blocks}-{method.loss}" if method.blocks else ""
        parts = [method.transform, method.rounding, method.ranges, method.attention, blocks]
        found["+".join(p for p in parts if p)] = method

    for rounding in ("gptq", "coordinate", "erq", "decoupleq", "adaround", "flexround", "signround"):
        add(Method("transformer", rounding, "mse"))
    for rounding in ("coordinate", "erq", "decoupleq"):
        add(Method("rotate", rounding, "mse"))
    for loss in _LOSSES:
        add(Method("rotate", "gptq", "mse", blocks=80, loss=loss))
    for transform in ("transformer", "rotate", "none"):
        for rounding, ranges in (("gptq", "minmax"), ("gptq", "mse")):
            add(Method(transform, rounding, ranges))
        for ranges in ("minmax", "percentile:0.9999", "mse"):
            add(Method(transform, "nearest", ranges))
    for kind in ("uniform", "adalog", "log2", "tan", "sulq_table"):
        for renorm in ("none", "row_sum"):
            add(Method("transformer", "gptq", "mse", f"{kind}:{renorm}"))
    return found


def load_images(path: Path, chosen: Sequence[int] | None = None) -> tuple[Tensor, NDArray[np.int64]]:
    """Normalized images `(n, 3, 32, 32)` and labels of a packed split."""
    packed = np.load(path)
    blob, offset = packed["jpeg"].tobytes(), packed["offset"]
    indices = range(len(offset) - 1) if chosen is None else chosen
    images = [np.asarray(Image.open(io.BytesIO(blob[offset[i] : offset[i + 1]])).convert("RGB")) for i in indices]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    return (pixels - mean) / std, packed["label"].astype(np.int64)[list(indices)]


class Bench:
    """The float model, the data, and what rows share."""

    def __init__(self, data: Path, model: str = "vit_nano", samples: int = SAMPLES) -> None:
        self.exporter = get_exporter("tflite")
        self.graph = self.exporter.prepare(load_model(parse_model(model, None, None)).loaded.graph)
        self.images, self.labels = load_images(data / "test.npz")
        order = np.random.default_rng(0).permutation(len(np.load(data / "train.npz")["label"]))
        self.train = partial(load_images, data / "train.npz")
        self.order = order.tolist()
        self.calibration, _ = self.train(self.order[:samples])
        self.transformed = cache(self._transformed)
        self.float_logits = self.logits(self.graph)

    def samples(self) -> list[tuple[Tensor]]:
        """The calibration images one by one."""
        return [(x,) for x in torch.split(self.calibration, 1)]

    def _transformed(self, name: str) -> fx.GraphModule:
        return transform_graph(name, self.graph, lambda: iter(self.samples()), 0)[0]

    @torch.no_grad()
    def logits(self, graph: fx.GraphModule) -> Tensor:
        """Of the test images, `(n, classes)`."""
        many = batched(graph, (self.images[:1],))
        return torch.cat([many(x)[0] for x in torch.split(self.images, BATCH)])

    def place(self, method: Method, bits: int) -> tuple[fx.GraphModule, QuantConfig, Placement]:
        """The transformed graph, and what gets which grid."""
        graph = self.transformed(method.transform)
        precision = Precision(bits, bits, method.ranges, products_only=True)
        config, placement = place_scheme(graph, self.exporter, "integer", precision)
        return graph, config, placement

    def reconstructed(self, method: Method, bits: int, legalized: Legalized) -> Legalized:
        """The quantized graph after block reconstruction on training images."""
        graph, _, placement = self.place(method, bits)
        images, _ = self.train(self.order[:LEARNING])
        fit = FitSettings(iterations=method.blocks, evaluations=10, holdout=1 / 8)
        effort = Effort(BlockSettings(fit, drop=0.0, weight_rate=WEIGHT_RATE), method.loss)
        return reconstructed(legalized, reconstruct(graph, legalized, placement, images, Reconstruction(effort)))

    def legalized(self, method: Method, bits: int) -> Legalized:
        """A row's quantized graph."""
        graph, config, placement = self.place(method, bits)
        statistics = calibrate(graph, observed(graph, placement), iter(self.samples()))
        rounding = Rounding(method.rounding, self.samples)
        found = legalize(graph, placement, config, self.exporter.rules, statistics, "integer", rounding)
        if method.blocks:
            found = self.reconstructed(method, bits, found)
        if method.attention:
            kind, renorm = method.attention.split(":")
            code_attention(found.simulation, graph, self.calibration[:32], kind, renorm, bits)
        return found


def code_attention(
    simulation: fx.GraphModule, graph: fx.GraphModule, images: Tensor, kind: str, renorm: Any, bits: int
) -> None:
    """Replace each product of probabilities and values in `simulation` by one on a grid of `kind`, in place."""
    many = batched(graph, (images[:1],))
    wanted = {n.name for n in graph.graph.nodes if op_kind(n) in ("softmax", "select")}
    with torch.no_grad():
        (recorder := Recorder(many, wanted)).run(images)
    seen = recorder.values
    for softmax in [n for n in simulation.graph.nodes if op_kind(n) == "softmax"]:
        products = _products(softmax)
        value = products[0].args[1]
        assert isinstance(value, fx.Node)
        source = value
        while op_kind(source) != "select":
            source = source.all_input_nodes[0]
        code = fit_attention(kind, seen[softmax.name], seen[source.name], bits, renorm=renorm)
        result = products[0]
        if len(products) > 1:
            result = next(iter(products[0].users))
            while op_kind(result) != "add":
                result = next(iter(result.users))
        with simulation.graph.inserting_before(result):
            new = simulation.graph.call_function(_Coded(code), (softmax, value))
        result.replace_all_uses_with(new)
    simulation.graph.eliminate_dead_code()
    simulation.recompile()


class _Coded:
    """An attention code as a function of a graph."""

    def __init__(self, code: Any) -> None:
        self.code = code
        self.__name__ = f"coded_{code.kind}_{id(self)}"
        self.__module__ = __name__

    def __call__(self, p: Tensor, v: Tensor) -> Tensor:
        found: Tensor = self.code.output(p, v)
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> _Coded:
        return self


def _products(softmax: fx.Node) -> list[fx.Node]:
    """The matmuls that the probabilities reach."""
    waiting, found = list(softmax.users), []
    while waiting:
        node = waiting.pop(0)
        if op_kind(node) == "matmul":
            found.append(node)
        else:
            waiting.extend(node.users)
    return list(dict.fromkeys(found))


def mcnemar(test: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    """Exact two-sided p-value that two classifiers are right equally often (McNemar 1947)."""
    lost, won = int((reference & ~test).sum()), int((test & ~reference).sum())
    total = lost + won
    tail = sum(math.comb(total, k) for k in range(min(lost, won) + 1))
    return min(1.0, float(2 * tail / 2**total))


def measure(bench: Bench, make: Callable[[], fx.GraphModule]) -> dict[str, Any]:
    """One row: top-1, the paired difference to float with its interval, and how far the predictions are apart."""
    start = time.perf_counter()
    simulation = make()
    seconds = time.perf_counter() - start
    logits = bench.logits(simulation)
    right = (logits.argmax(1).numpy() == bench.labels).astype(float)
    base = (bench.float_logits.argmax(1).numpy() == bench.labels).astype(float)
    low, high = bootstrap_difference(right, base, seed=0)
    wanted = functional.log_softmax(bench.float_logits, 1)
    kl = functional.kl_div(functional.log_softmax(logits, 1), wanted, reduction="batchmean", log_target=True)
    return {
        "top1": 100 * right.mean(),
        "float": 100 * base.mean(),
        "difference": 100 * (right.mean() - base.mean()),
        "interval95": [100 * low, 100 * high],
        "mcnemar_p": mcnemar(right > 0, base > 0),
        "kl": float(kl),
        "n": len(right),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Measure the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", default=["*"], help="globs over the names of rows")
    parser.add_argument("--bits", nargs="*", type=int, default=[8, 6, 4, 3])
    parser.add_argument("--again", action="store_true", help="measure rows anew")
    args = parser.parse_args()
    rows: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.is_file() else {}
    bench = Bench(args.data)
    for name, method in methods().items():
        if not any(fnmatch.fnmatchcase(name, glob) for glob in args.methods):
            continue
        for bits in args.bits:
            key = f"{name} W{bits}A{bits}"
            if key in rows and not args.again:
                continue
            row = measure(bench, lambda: bench.legalized(method, bits).simulation)  # noqa: B023 - called at once
            rows[key] = {"method": name, "bits": bits, **asdict(method), **row}
            save(rows)
            print(f"{key:60} {row['top1']:.1f} kl {row['kl']:.4f} {row['seconds']} s", flush=True)


def save(rows: dict[str, Any]) -> None:
    """Write all rows, aside first."""
    aside = RESULT.with_suffix(".tmp")
    environment = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    result = {"goals_points": GOALS, "calibration_images": SAMPLES, "environment": environment, "rows": rows}
    aside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    aside.replace(RESULT)


if __name__ == "__main__":
    main()
