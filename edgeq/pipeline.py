"""`edgeq export`, top to bottom: load, calibrate, build the candidates, measure them, ship the best one."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

from edgeq import candidate as candidates
from edgeq.artifact import check_out, staged
from edgeq.bundle import BundleParts, write_bundle
from edgeq.cache import calibration_key, load, store
from edgeq.candidate import Arrays, Candidate
from edgeq.config import ExportConfig
from edgeq.devices import get_target
from edgeq.devices.base import Target
from edgeq.devices.litert import LiteRtModel
from edgeq.errors import GateError, ModelError
from edgeq.exporters import get_exporter
from edgeq.exporters.base import Exporter
from edgeq.models import load_model
from edgeq.models.base import ModelAdapter, parse_model
from edgeq.progress import Progress
from edgeq.quant.calibrator import calibrate
from edgeq.quant.statistics import TensorStatistics
from edgeq.samples import Evaluation, Samples, collect_samples, evaluate

SCRATCH = ".scratch"
SECONDS_PER_TIMING = 20.0
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
class ExportResult:
    """What an export produced.

    Args:
        summary: The JSON contract `edgeq.export/1`.
        artifact: The bundle's folder.
        shipped: The chosen candidate.
        judged: All candidates, with the reasons against those that may not ship.
        target: Where it is meant to run.
    """

    summary: dict[str, Any]
    artifact: Path
    shipped: Candidate
    judged: tuple[Candidate, ...]
    target: Target


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
    threads: int


def export(config: ExportConfig, command: Sequence[str], progress: Progress) -> ExportResult:
    """Export a model.

    Args:
        config: Resolved configuration.
        command: The command line, for the manifest.
        progress: Where to show the stages.

    Raises:
        EdgeqError: Anything that stops the export; nothing is left behind.
    """
    out = check_out(config.out or default_out(config), config.exist)
    stages = Stages(progress)
    # Everything is built in the folder that becomes the bundle: a killed run leaves nothing elsewhere.
    with staged(out, config.exist) as folder:
        scratch = folder / SCRATCH
        scratch.mkdir()
        session = prepare(config, scratch, stages)
        built = [
            build_scheme(session, scheme, scratch, stages)
            for scheme in schemes(config, session.target, session.exporter)
        ]
        measured = [measure(session, candidate, stages) for candidate in built]
        shipped, judged, scored = choose(session, measured, stages)
        parts = BundleParts(config, session.adapter, session.target, session.samples, shipped, judged, scored)
        with stages.step("write"):
            summary = write_bundle(folder, out, parts, session.float_path, command, stages.seconds)
            shutil.rmtree(scratch)
    summary["seconds"] = dict(stages.seconds)
    summary["peak_mb"] = peak_mb()
    return ExportResult(summary, out, shipped, judged, session.target)


def dry_run(config: ExportConfig, progress: Progress) -> dict[str, Any]:
    """What an export would do: the operations of each scheme by mode, and why the float ones are float.

    Raises:
        EdgeqError: As `export`, as far as it is known before calibration.
    """
    check_out(config.out or default_out(config), config.exist)
    stages = Stages(progress)
    with stages.step("load"):
        target, exporter, adapter = resolve(config)
        samples = collect_samples(config, adapter)
        graph = exporter.prepare(adapter.loaded.graph)
    plans = []
    for scheme in schemes(config, target, exporter):
        placement = candidates.place_scheme(graph, exporter, scheme, observer_of(config))[1]
        modes = Counter(f"{op.op} {op.mode}" for op in placement.ops.values())
        reasons = sorted({f"{op.op}: {op.reason}" for op in placement.ops.values() if op.reason})
        plans.append({"scheme": scheme, "ops": dict(sorted(modes.items())), "float_because": reasons})
    return {
        "schema": "edgeq.export/1",
        "ok": True,
        "dry_run": True,
        "model": adapter.loaded.name,
        "target": target.name,
        "format": exporter.name,
        "calibration_images": len(samples.calibration_items),
        "held_out_images": len(samples.held_out),
        "schemes": plans,
    }


def default_out(config: ExportConfig) -> Path:
    """`out/MODEL-DEVICE` under the current folder."""
    name = Path(config.model).stem if Path(config.model).suffix else config.model.partition(":")[2] or config.model
    return Path("out") / f"{name}-{config.device}"


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
    with stages.step("convert float"):
        float_path = scratch / f"float-{exporter.file_name}"
        graph = adapter.loaded.graph
        exporter.emit(graph, candidates.example_of(graph), None, float_path)
        threads = config.threads or target_threads(target)
        reference = float_outputs(adapter, float_path, samples, threads)
    session = Session(
        config, adapter, target, exporter, exporter.prepare(graph), samples, {}, float_path, reference, threads
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


def build_scheme(session: Session, scheme: str, scratch: Path, stages: Stages) -> Candidate:
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


def measure(session: Session, candidate: Candidate, stages: Stages) -> Candidate:
    """Fidelity and latency of one candidate, and whether it may ship."""
    if candidate.rejected and not session.config.force:
        return candidate
    loaded, held_out = session.adapter.loaded, session.samples.held_out
    with stages.step(f"measure {candidate.scheme}"):
        candidate = candidates.measure_fidelity(
            candidate, session.graph, loaded.output_names, held_out, session.reference, session.threads
        )
        candidate = candidates.measure_latency(
            candidate, session.float_path, held_out[0], session.threads, session.config.runs, SECONDS_PER_TIMING
        )
    return candidates.judge(candidate, session.config.min_sqnr_db)


def choose(
    session: Session, measured: list[Candidate], stages: Stages
) -> tuple[Candidate, tuple[Candidate, ...], Evaluation | None]:
    """The first of the ranked candidates that passes every gate; with `--force`, the first of all when none passes.

    Raises:
        GateError: None passes.
    """
    judged = {c.scheme: c for c in measured}
    limit = session.config.max_drop
    for candidate in ranked([c for c in measured if not c.rejected]):
        scored = _evaluate(session, candidate, stages)
        if scored is None or scored.drop <= limit:
            return candidate, tuple(judged.values()), scored
        reason = f"{scored.metric} falls by {scored.drop:.2f} points, more than --max-drop {limit:g}"
        judged[candidate.scheme] = replace(candidate, rejected=(reason,))
    if session.config.force:
        best = ranked(list(judged.values()))[0]
        return best, tuple(judged.values()), _evaluate(session, best, stages)
    reasons = "; ".join(f"{c.scheme}: {', '.join(c.rejected)}" for c in judged.values())
    raise GateError(
        f"no candidate may ship. {reasons}",
        code="EQ-G001",
        place=session.adapter.loaded.name,
        hint="lower the floor (--min-sqnr-db, --max-drop), bring more --calib images, or insist with --force",
    )


def ranked(measured: Sequence[Candidate]) -> list[Candidate]:
    """Candidates from the fastest on; of those that cannot be told apart in speed, the most faithful first.

    Two candidates are apart when the 95 % intervals of their latency ratios do not overlap.
    """
    left = sorted(measured, key=lambda c: c.latency.ratio if c.latency else float("inf"))
    order: list[Candidate] = []
    while left:
        bound = left[0].latency.high if left[0].latency else float("inf")
        tied = [c for c in left if c is left[0] or c.latency is None or c.latency.low <= bound]
        tied.sort(key=lambda c: -c.worst_output.median if c.worst_output else float("inf"))
        order.append(tied[0])
        left.remove(tied[0])
    return order


def _evaluate(session: Session, candidate: Candidate, stages: Stages) -> Evaluation | None:
    """The task metric of float and candidate on labelled data, if there is any."""
    if session.config.data is None:
        return None
    with stages.step(f"evaluate {candidate.scheme}") as advance:
        return evaluate(
            session.config,
            session.adapter,
            session.samples,
            session.float_path,
            candidate.path,
            session.threads,
            advance,
        )


def peak_mb() -> int:
    """Peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
