"""Learning after rounding, measured in steps: so many for every block, or as many as fit into a time.

Time makes a result that cannot be repeated. So a budget of minutes is turned into a number of steps once, by timing a
few, and the number is what counts and what a manifest records.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from edgeq.graph.blocks import blocks_of
from edgeq.graph.legalize import Legalized
from edgeq.graph.placement import Placement
from edgeq.graph.reconstruct import Effort, Reconstructed, Reconstruction, reconstruct, reconstructed
from edgeq.graph.widths import relative_error
from edgeq.progress import Advance
from edgeq.quant.reconstruct import BlockSettings, FitSettings

LEAST_STEPS = 10
EVALUATIONS = 10

_TRIAL_BATCH = 8
_TRIAL_STEPS = 3
_BATCH, _LEAST_BATCH = 32, 4
_ELEMENTS = _BATCH * 3 * 224 * 224
"""Of the inputs of a batch at most: what larger images would take of time and memory is better spent on steps."""
_WEIGHT_RATE = 1e-2
"""Steps of the roundings, by `tools/bench/vit_accuracy.py`: with the usual 1e-3 nothing moves in minutes."""


@dataclass(frozen=True)
class Learned:
    """What learning did.

    Args:
        steps: Of each block.
        before: Held-out loss of each block at the start, by the node that ends it.
        after: At the end; the same where nothing better was found.
        network: Noise over signal of the whole network on the held-out samples, before and after.
    """

    steps: int
    before: dict[str, float]
    after: dict[str, float]
    network: tuple[float, float]

    @property
    def kept(self) -> bool:
        """Whether the network is better for it; what was learned is dropped otherwise."""
        return self.network[1] < self.network[0]

    def to_dict(self) -> dict[str, Any]:
        """JSON form for `evidence.json`."""
        rows = [{"block": name, "loss": [self.before[name], self.after[name]]} for name in self.before]
        return {"steps": self.steps, "kept": self.kept, "network": list(self.network), "blocks": rows}


def learn(
    graph: fx.GraphModule,
    legalized: Legalized,
    placement: Placement,
    samples: Tensor,
    steps: int,
    *,
    folder: Path | None = None,
    progress: Advance | None = None,
) -> tuple[Legalized, Learned]:
    """Learn codes, grids and biases block by block; see `reconstruct` for the method.

    Every block is judged on samples that it was not trained on, and so is the network at the end: better blocks do not
    always make a better network. Where it is not better, the start is returned.

    Args:
        graph: The float graph that was legalized.
        legalized: Where to start; not changed.
        placement: What it was legalized with.
        samples: Calibration inputs `(samples, ...)`.
        steps: Of each block.
        folder: Where unfinished work is kept; None for nowhere.
        progress: Called with the number of steps done; there are `steps` for each of `blocks_to_learn`.

    Raises:
        EdgeqError: As `reconstruct`.
    """
    fit = _fit(steps, samples)
    found = _run(graph, legalized, placement, samples, fit, folder, progress)
    before = {name: done.start for name, done in found.fits.items()}
    after = {name: done.best for name, done in found.fits.items()}
    learned = reconstructed(legalized, found)
    learned = replace(learned, plan=replace(learned.plan, notes=legalized.plan.notes))
    held = torch.split(samples[fit.split(len(samples))[1]], 1)
    noise = [_noise(graph, candidate.simulation, held) for candidate in (legalized, learned)]
    report = Learned(steps, before, after, (noise[0], noise[1]))
    return (learned if report.kept else legalized), report


@torch.no_grad()
def _noise(graph: fx.GraphModule, simulation: fx.GraphModule, samples: Sequence[Tensor]) -> float:
    """Noise over signal of the worst output, averaged over the samples."""
    total = 0.0
    for x in samples:
        total += max(relative_error(truth, output) for truth, output in zip(graph(x), simulation(x), strict=True))
    return total / len(samples)


def blocks_to_learn(graph: fx.GraphModule, placement: Placement) -> int:
    """Number of blocks.

    Raises:
        ModelError: EQ-M321 where the graph cannot be cut.
    """
    return len(blocks_of(graph, frozenset(placement.weights)))


def steps_within(
    graph: fx.GraphModule,
    legalized: Legalized,
    placement: Placement,
    samples: Tensor,
    seconds: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """About how many steps of each block fit into `seconds`, at least `LEAST_STEPS`; found by timing a few.

    Args:
        graph: As for `learn`.
        legalized: As for `learn`.
        placement: As for `learn`.
        samples: As for `learn`.
        seconds: For all blocks, with what is computed between them; the trial counts.
        clock: Seconds that pass.
    """
    few = samples[: _TRIAL_BATCH + 2]
    start = clock()
    for count in (1, 1 + _TRIAL_STEPS):
        fit = FitSettings(iterations=count, batch_size=_TRIAL_BATCH, evaluations=1)
        _run(graph, legalized, placement, few, fit, None, None)
        if count == 1:
            middle = clock()
    end = clock()
    trial_step = max(1e-6, ((end - middle) - (middle - start)) / _TRIAL_STEPS)
    passes = max(0.0, (middle - start) - trial_step) / len(few)  # of one sample through all blocks, several times
    step = trial_step * min(_batch(samples), len(samples)) / min(_TRIAL_BATCH, len(few))
    left = seconds - (end - start) - 1.5 * passes * len(samples)  # 1.5: the later looks at the held-out samples
    return max(LEAST_STEPS, int(left / step))


def _batch(samples: Tensor) -> int:
    return max(_LEAST_BATCH, min(_BATCH, _ELEMENTS // samples[0].numel()))


def _fit(steps: int, samples: Tensor) -> FitSettings:
    return FitSettings(iterations=steps, batch_size=_batch(samples), evaluations=min(EVALUATIONS, steps))


def _run(
    graph: fx.GraphModule,
    legalized: Legalized,
    placement: Placement,
    samples: Tensor,
    fit: FitSettings,
    folder: Path | None,
    progress: Advance | None,
) -> Reconstructed:
    effort = Effort(BlockSettings(fit, drop=0.0, weight_rate=_WEIGHT_RATE))
    settings = Reconstruction(effort, folder=folder)
    return reconstruct(graph, legalized, placement, samples, settings, progress=progress)
