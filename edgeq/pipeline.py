"""`edgeq export`, top to bottom: load, calibrate, build the candidates, measure them, ship the best one."""

from __future__ import annotations

import resource
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import fx

from edgeq import candidate as candidates
from edgeq.artifact import check_out, staged
from edgeq.build import build_scheme
from edgeq.bundle import BundleParts, write_bundle
from edgeq.candidate import Candidate
from edgeq.compare import Comparison, Contender, Inputs, compare
from edgeq.config import ExportConfig
from edgeq.config_keys import SUFFIXES
from edgeq.devices.base import Target
from edgeq.errors import GateError, UsageError
from edgeq.exporters import get_exporter
from edgeq.graph.legalize import Legalized
from edgeq.peers import quantize_by_peers
from edgeq.progress import Progress
from edgeq.recipe import place_scheme, transform_graph
from edgeq.samples import Evaluation, collect_samples, evaluate
from edgeq.session import Session, Stages, batches_of, prepare, recipe_of, resolve, schemes

SCRATCH = ".scratch"
DRY_RUN_SAMPLES = 1
SECONDS_PER_TIMING = 20.0
TOO_SMALL = "EQ-U332"
"""A budget of bytes that one scheme cannot keep; another may."""

ALIKE = 1.05
"""Ratio of times that nobody notices on a device, while decibels of fidelity are lost for good."""


@dataclass(frozen=True)
class ExportResult:
    """What an export produced.

    Args:
        summary: The JSON contract `edgeq.export/1`.
        artifact: The bundle's folder.
        shipped: The chosen candidate.
        judged: All candidates, with the reasons against those that may not ship.
        target: Where it is meant to run.
        comparison: Float, shipped candidate and other quantizers side by side, with `--compare`.
    """

    summary: dict[str, Any]
    artifact: Path
    shipped: Candidate
    judged: tuple[Candidate, ...]
    target: Target
    comparison: Comparison | None = None


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
        measured = build_all(session, scratch, stages)
        shipped, judged, scored = choose(session, measured, stages)
        rivals = compare_with_peers(session, shipped, scratch, stages) if config.compare else None
        parts = BundleParts(config, session.adapter, session.target, session.samples, shipped, judged, scored, rivals)
        with stages.step("write"):
            summary = write_bundle(folder, out, parts, session.float_path, command, stages.seconds)
            shutil.rmtree(scratch)
    summary["seconds"] = dict(stages.seconds)
    summary["peak_mb"] = peak_mb()
    return ExportResult(summary, out, shipped, judged, session.target, rivals)


def build_all(session: Session, scratch: Path, stages: Stages) -> list[Candidate]:
    """Build and measure a candidate of every scheme to try; a scheme that cannot keep the budget is left out.

    Raises:
        UsageError: EQ-U332 when none can.
        EdgeqError: Whatever else stops a build.
    """
    measured: list[Candidate] = []
    names = schemes(session.config, session.target, session.exporter)
    for name in names:
        try:
            candidate, legalized = build_scheme(session, name, scratch, stages)
        except UsageError as error:
            if error.code != TOO_SMALL or (name == names[-1] and not measured):
                raise
            stages.progress.say(f"{name} is left out: {error.message}")
            continue
        measured.append(measure(session, candidate, legalized, stages))
    return measured


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
    graphs: dict[str, fx.GraphModule] = {}
    for scheme in schemes(config, target, exporter):
        recipe = recipe_of(config, adapter, scheme)
        if recipe.transform not in graphs:
            few = batches_of(samples, DRY_RUN_SAMPLES)  # the transforms find their places; the numbers do not matter
            graphs[recipe.transform] = transform_graph(recipe.transform, graph, few, config.seed)[0]
        placement = place_scheme(graphs[recipe.transform], exporter, scheme, recipe.precision)[1]
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


def measure(session: Session, candidate: Candidate, legalized: Legalized, stages: Stages) -> Candidate:
    """Fidelity and latency of one candidate, and whether it may ship."""
    if candidate.rejected and not session.config.force:
        return candidate
    held_out, floor = session.samples.held_out, session.config.min_sqnr_db
    graph = session.fitted[candidate.recipe.transform].graph
    with stages.step(f"measure {candidate.scheme}"):
        candidate = candidates.measure_fidelity(
            candidate, legalized, graph, session.adapter, held_out, session.reference, session.threads
        )
        candidate = candidates.measure_latency(
            candidate, session.float_path, held_out[0], session.threads, session.config.runs, SECONDS_PER_TIMING
        )
    floor = session.adapter.loaded.floor_db if floor is None else floor
    return candidates.judge(candidate, floor, session.config.budget_kb)


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
    """Candidates from the fastest on; of those about as fast as the fastest left, the most faithful first.

    About as fast: the 95 % intervals of the latency ratios overlap, or the ratios are within `ALIKE` of each other.
    """
    left = sorted(measured, key=lambda c: c.latency.ratio if c.latency else float("inf"))
    order: list[Candidate] = []
    while left:
        tied = [c for c in left if c is left[0] or _alike(left[0], c)]
        tied.sort(key=lambda c: -c.worst_output.median if c.worst_output else float("inf"))
        order.append(tied[0])
        left.remove(tied[0])
    return order


def _alike(fastest: Candidate, other: Candidate) -> bool:
    if fastest.latency is None or other.latency is None:
        return True
    return other.latency.low <= fastest.latency.high or other.latency.ratio <= ALIKE * fastest.latency.ratio


def _evaluate(session: Session, candidate: Candidate, stages: Stages) -> Evaluation | None:
    """The task metric of float and candidate on labelled data, if there is any."""
    if session.labelled is None:
        return None
    with stages.step(f"evaluate {candidate.scheme}") as advance:
        return evaluate(
            session.config,
            session.adapter,
            session.labelled,
            session.float_path,
            candidate.path,
            session.threads,
            advance,
        )


def compare_with_peers(session: Session, shipped: Candidate, scratch: Path, stages: Stages) -> Comparison:
    """The float files, the shipped candidate and what other quantizers make of the same model and calibration data."""
    graph, own = session.adapter.loaded.graph, session.exporter.name
    floats = {own: Contender(f"float {own}", session.float_path)}

    def float_file(name: str) -> Path:
        if name not in floats:
            exporter = get_exporter(name)
            path = scratch / "floats" / name / exporter.file_name  # apart: what belongs to a file has its stem
            path.parent.mkdir(parents=True)
            exporter.emit(graph, candidates.example_of(graph), None, path)
            floats[name] = Contender(f"float {name}", path)
        return floats[name].path

    names = (session.config.compare or "").split(",")
    calibration = list(session.samples.calibration())
    peers = quantize_by_peers(names, float_file, calibration, scratch / "peers", stages.progress)
    for peer in peers:  # each is seen beside the float model of its own runtime, too
        if not peer.failed:
            float_file(SUFFIXES[peer.path.suffix])
    first, *others = floats.values()
    ours = Contender(f"edgeq {shipped.scheme}", shipped.path)
    return compare(
        (first, ours, *others, *peers),
        _shared_inputs(session),
        threads=session.threads,
        runs=session.config.runs,
        progress=stages.progress,
    )


def _shared_inputs(session: Session) -> Inputs:
    """The labelled items where there are any that top-1 can score, else those that fidelity is measured on."""
    labelled, adapter = session.labelled, session.adapter
    if labelled is None or adapter.metric.name != "top1":
        held_out = session.samples.held_out
        return Inputs("held-out items", len(held_out), lambda i: held_out[i])
    count = min(len(labelled), session.config.limit or len(labelled))
    labels = tuple(item.label for item in labelled.items[:count] if item.label is not None)
    return Inputs("labelled items", count, lambda i: adapter.inputs(labelled.read(i)), labels)


def peak_mb() -> int:
    """Peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
