"""A loaded model with its data and its float reference: what every candidate is built from and compared with."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

from edgeq import candidate as candidates
from edgeq.cache import calibration_key, load, store
from edgeq.candidate import Arrays
from edgeq.config import ExportConfig
from edgeq.config_keys import split_bits
from edgeq.data import Source
from edgeq.devices import get_target, open_model
from edgeq.devices.base import Target
from edgeq.errors import ModelError
from edgeq.exporters import get_exporter
from edgeq.exporters.base import Exporter
from edgeq.graph.legalize import observed
from edgeq.graph.transforms.transformer import Applied
from edgeq.models import load_model
from edgeq.models.base import ModelAdapter, parse_model
from edgeq.progress import Progress
from edgeq.quant.calibrator import calibrate
from edgeq.quant.statistics import TensorStatistics
from edgeq.recipe import Recipe, place_scheme, recipe_for, transform_graph
from edgeq.samples import Samples, collect_samples, open_labelled
from edgeq.spec import Precision

SOLVED = 32  # calibration samples that rounders read: their activations are held in memory together
CONVERTED = 1e-3  # largest relative difference between the float file and the captured graph


@dataclass
class Stages:
    """Seconds spent per stage, in order."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Time a stage and show its progress."""
        started = time.perf_counter()
        with self.progress.step(name, total) as advance:
            yield advance
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 3)


@dataclass(frozen=True)
class Fitted:
    """The float graph that some candidates start from.

    Args:
        graph: Transformed.
        applied: What the transforms did.
        statistics: Of every tensor that one of these candidates calibrates.
    """

    graph: fx.GraphModule
    applied: tuple[Applied, ...]
    statistics: Mapping[str, TensorStatistics]


@dataclass
class Session:
    """A loaded model with its data and its float reference, from which candidates are built."""

    config: ExportConfig
    adapter: ModelAdapter
    target: Target
    exporter: Exporter
    graph: fx.GraphModule
    samples: Samples
    fitted: dict[str, Fitted]
    float_path: Path
    reference: list[Arrays]
    labelled: Source[Any] | None
    threads: int


def resolve(config: ExportConfig) -> tuple[Target, Exporter, ModelAdapter]:
    """Target, exporter and model of a configuration; cheap questions first.

    Raises:
        UsageError: A name is unknown, or the scheme does not exist for the format.
        ModelError: The model cannot be used.
    """
    target = get_target(config.device)
    exporter = get_exporter(target.format if config.format == "auto" else config.format)
    if config.scheme != "auto":
        exporter.config(config.scheme, Precision(*split_bits(config.bits)))
    adapter = load_model(parse_model(config.model, config.family, config.weights))
    return target, exporter, adapter


def prepare(config: ExportConfig, scratch: Path, stages: Stages) -> Session:
    """Load the model and its data, convert the float reference, calibrate what the schemes need."""
    torch.manual_seed(config.seed)
    with stages.step("load"):
        target, exporter, adapter = resolve(config)
        samples = collect_samples(config, adapter)
        labelled = open_labelled(config, adapter, samples)
    with stages.step("convert float"):
        float_path = scratch / f"float-{exporter.file_name}"
        graph = adapter.loaded.graph
        exporter.emit(graph, candidates.example_of(graph), None, float_path)
        threads = config.threads or target_threads(target)
        reference = float_outputs(adapter, float_path, samples, threads)
    session = Session(
        config,
        adapter,
        target,
        exporter,
        exporter.prepare(graph),
        samples,
        {},
        float_path,
        reference,
        labelled,
        threads,
    )
    fit_all(session, stages)
    return session


def target_threads(target: Target) -> int:
    """As many threads as the target has cores and this machine can give."""
    return max(1, min(target.cores, len(os.sched_getaffinity(0))))


def float_outputs(adapter: ModelAdapter, path: Path, samples: Samples, threads: int) -> list[Arrays]:
    """Outputs of the float file for the held-out samples; the first is checked against the captured graph."""
    model = open_model(path, threads=threads)
    outputs = [model.run(*sample) for sample in samples.held_out]
    with torch.no_grad():
        captured = adapter.loaded.graph(*(torch.from_numpy(a) for a in samples.held_out[0]))
    for name, ours, theirs in zip(adapter.loaded.output_names, captured, outputs[0], strict=True):
        error = float(np.abs(ours.numpy() - theirs).max() / max(float(np.abs(ours.numpy()).max()), 1e-12))
        if not error <= CONVERTED:
            raise ModelError(
                f"the converted float file differs from the model: output {name} by {error:.1e} of its largest value",
                code="EQ-M022",
                place=name,
                hint="this is a converter defect; report the model with `edgeq doctor`",
            )
    return outputs


def schemes(config: ExportConfig, target: Target, exporter: Exporter) -> tuple[str, ...]:
    """The schemes to try: all that the target allows, or the one that was asked for."""
    if config.scheme != "auto":
        return (config.scheme,)
    return tuple(s for s in exporter.schemes if s in target.schemes[exporter.name])


def recipe_of(config: ExportConfig, adapter: ModelAdapter, scheme: str) -> Recipe:
    """The recipe that the configuration means for a model and a scheme."""
    return recipe_for(config.method, config.rounding, config.bits, scheme, adapter.loaded.network)


def fit_all(session: Session, stages: Stages) -> None:
    """Transform and calibrate the graph, once for all schemes whose recipes transform it alike."""
    wanted: dict[str, list[str]] = {}
    for scheme in schemes(session.config, session.target, session.exporter):
        wanted.setdefault(recipe_of(session.config, session.adapter, scheme).transform, []).append(scheme)
    for name, members in wanted.items():
        with stages.step("transform"):
            batches = batches_of(session.samples)
            graph, applied = transform_graph(name, session.graph, batches, session.config.seed)
            require_same_function(session.graph, graph, next(batches()))
        session.fitted[name] = Fitted(graph, applied, observe(session, graph, members, stages))


@torch.no_grad()
def require_same_function(before: fx.GraphModule, after: fx.GraphModule, sample: tuple[torch.Tensor, ...]) -> None:
    """Check on a sample that transforms have left the float network what it was.

    Raises:
        ModelError: They have not; nothing built on the transformed graph would mean anything.
    """
    if after is before:
        return
    for position, (wanted, got) in enumerate(zip(before(*sample), after(*sample), strict=True)):
        error = float((wanted - got).abs().max() / wanted.abs().max().clamp(min=1e-12))
        if not error <= CONVERTED:
            raise ModelError(
                f"the transforms change output {position} of the float network by {error:.1e} of its largest value",
                code="EQ-M302",
                hint="export with --method minmax, and report the model with `edgeq doctor`",
            )


def batches_of(
    samples: Samples, limit: int | None = None, *, degraded: bool = False
) -> Callable[[], Iterator[tuple[torch.Tensor, ...]]]:
    """The calibration inputs as tensors, as often as they are asked for; at most `limit`, evenly spread.

    Ranges and transforms come from clean samples: degraded ones leave ranges as they are or shrink them.
    """

    def batches() -> Iterator[tuple[torch.Tensor, ...]]:
        stride = 1 if limit is None else max(1, -(-len(samples.calibration_index) // limit))
        for sample in islice(samples.calibration(degraded=degraded), 0, None, stride):
            yield tuple(torch.from_numpy(a) for a in sample)

    return batches


def observe(
    session: Session, graph: fx.GraphModule, members: Sequence[str], stages: Stages
) -> dict[str, TensorStatistics]:
    """Statistics of every tensor that one of the schemes `members` calibrates, from the cache if nothing changed."""
    names: set[str] = set()
    for scheme in members:
        precision = recipe_of(session.config, session.adapter, scheme).precision
        names.update(observed(graph, place_scheme(graph, session.exporter, scheme, precision)[1]))
    if not names:
        return {}
    items = [item.sha256 for item in session.samples.calibration_items]
    key = calibration_key(graph, sorted(names), items, session.adapter.loaded.preprocess)
    cached = load(key)
    if cached is not None:
        stages.progress.say("calibration statistics taken from the cache: same weights, data and configuration")
        return cached
    with stages.step("calibrate", len(items)) as advance:
        statistics = calibrate(graph, sorted(names), batches_of(session.samples)(), progress=advance)
    store(key, statistics)
    return statistics
