"""A loaded model with its data and its float reference: what every candidate is built from and compared with."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import fx

from edgeq import candidate as candidates
from edgeq.cache import calibration_key, load, store
from edgeq.candidate import Arrays, Candidate
from edgeq.config import ExportConfig
from edgeq.data import ImageSource
from edgeq.devices import get_target
from edgeq.devices.base import Target
from edgeq.devices.litert import LiteRtModel
from edgeq.errors import ModelError
from edgeq.exporters import get_exporter
from edgeq.exporters.base import Exporter
from edgeq.graph.legalize import Legalized
from edgeq.models import load_model
from edgeq.models.base import ModelAdapter, parse_model
from edgeq.progress import Progress
from edgeq.quant.calibrator import calibrate
from edgeq.quant.statistics import TensorStatistics
from edgeq.samples import Samples, collect_samples, open_labelled

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


@dataclass
class Session:
    """A loaded model with its data and its float reference, from which candidates are built."""

    config: ExportConfig
    adapter: ModelAdapter
    target: Target
    exporter: Exporter
    graph: fx.GraphModule
    samples: Samples
    statistics: dict[str, TensorStatistics]
    float_path: Path
    reference: list[Arrays]
    labelled: ImageSource | None
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
        exporter.config(config.scheme, observer_of(config))
    adapter = load_model(parse_model(config.model, config.family, config.weights))
    return target, exporter, adapter


def prepare(config: ExportConfig, scratch: Path, stages: Stages) -> Session:
    """Load the model and its data, convert the float reference, calibrate what the schemes need."""
    torch.manual_seed(config.seed)
    with stages.step("load"):
        target, exporter, adapter = resolve(config)
        samples = collect_samples(config, adapter)
        labelled = open_labelled(config, samples)
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
    session.statistics.update(observe(session, stages))
    return session


def target_threads(target: Target) -> int:
    """As many threads as the target has cores and this machine can give."""
    return max(1, min(target.cores, len(os.sched_getaffinity(0))))


def float_outputs(adapter: ModelAdapter, path: Path, samples: Samples, threads: int) -> list[Arrays]:
    """Outputs of the float file for the held-out samples; the first is checked against the captured graph."""
    model = LiteRtModel(path, threads=threads)
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


def observer_of(config: ExportConfig) -> str:
    """Range estimator of activations: `auto` keeps every observed value (clipping costs the worst image)."""
    return "minmax" if config.method == "auto" else config.method


def observe(session: Session, stages: Stages) -> dict[str, TensorStatistics]:
    """Statistics of every tensor that a scheme puts on a calibrated grid, from the cache if nothing changed."""
    graph, loaded = session.graph, session.adapter.loaded
    names: set[str] = set()
    for scheme in schemes(session.config, session.target, session.exporter):
        names.update(candidates.place_scheme(graph, session.exporter, scheme, observer_of(session.config))[1].specs)
    if not names:
        return {}
    items = [item.sha256 for item in session.samples.calibration_items]
    key = calibration_key(graph, sorted(names), items, loaded.preprocess)
    cached = load(key)
    if cached is not None:
        stages.progress.say("calibration statistics taken from the cache: same weights, data and configuration")
        return cached
    with stages.step("calibrate", len(session.samples.calibration_items)) as advance:
        batches = (tuple(torch.from_numpy(a) for a in sample) for sample in session.samples.calibration())
        statistics = calibrate(graph, sorted(names), batches, progress=advance)
    store(key, statistics)
    return statistics


def build_scheme(session: Session, scheme: str, scratch: Path, stages: Stages) -> tuple[Candidate, Legalized]:
    """Build one candidate."""
    with stages.step(f"build {scheme}"):
        return candidates.build(
            session.graph,
            session.exporter,
            scheme,
            observer_of(session.config),
            session.statistics,
            scratch / scheme,
        )
