"""`edgeq export`, top to bottom: load, calibrate, build the candidates, measure them, ship the best one."""

from __future__ import annotations

import itertools
import resource
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import fx

from edgeq import candidate as candidates
from edgeq.artifact import check_out, staged
from edgeq.build import build_scheme, share_bytes
from edgeq.bundle import BundleParts, Choice, write_bundle
from edgeq.candidate import Candidate
from edgeq.compare import Comparison, Contender, Inputs, compare
from edgeq.config import ExportConfig
from edgeq.config_keys import SUFFIXES
from edgeq.devices.base import Target
from edgeq.errors import GateError, UsageError
from edgeq.exporters import get_exporter
from edgeq.exporters.base import Exporter
from edgeq.graph.legalize import Legalized
from edgeq.models.base import FILE_SUFFIXES, ModelAdapter, parts_of
from edgeq.peers import quantize_by_peers
from edgeq.ported import export_ported, is_ported, resolve_ported
from edgeq.progress import Progress
from edgeq.recipe import place_scheme, transform_graph
from edgeq.samples import Evaluation, Samples, collect_samples, records_of, score
from edgeq.session import Job, Session, Stages, batches_of, config_for, name_of, prepare, recipe_of, resolve, schemes

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
        choice: What ships, and all candidates with the reasons against those that may not.
        target: Where it is meant to run.
        comparison: Float, shipped candidate and other quantizers side by side, with `--compare`.
    """

    summary: dict[str, Any]
    artifact: Path
    choice: Choice
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
    if is_ported(config):
        found, ported, target = export_ported(config, command, out, stages)
        found |= {"seconds": dict(stages.seconds), "peak_mb": peak_mb()}
        return ExportResult(found, out, ported, target)
    # Everything is built in the folder that becomes the bundle: a killed run leaves nothing elsewhere.
    with staged(out, config.exist) as folder:
        scratch = folder / SCRATCH
        scratch.mkdir()
        job = prepare(config, scratch, stages)
        job = replace(job, sessions=share_bytes(job.sessions, scratch, stages))
        measured = {name: build_all(s, scratch / name, stages.of(name)) for name, s in job.sessions.items()}
        choice = choose(job, measured, stages)
        rivals = compare_with_peers(job, choice.shipped[""], scratch, stages) if config.compare else None
        with stages.step("write"):
            summary = write_bundle(folder, out, BundleParts(job, choice, rivals), command, stages.seconds)
            shutil.rmtree(scratch)
    summary["seconds"] = dict(stages.seconds)
    summary["peak_mb"] = peak_mb()
    return ExportResult(summary, out, choice, job.first.target, rivals)


def build_all(session: Session, scratch: Path, stages: Stages) -> list[Candidate]:
    """Build and measure a candidate of every scheme to try; a scheme that cannot keep the budget is left out.

    Raises:
        UsageError: EQ-U332 when none can.
        EdgeqError: Whatever else stops a build.
    """
    measured: list[Candidate] = []
    names = schemes(session.config, session.target, session.exporter, session.adapter.loaded)
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
    if is_ported(config):
        resolve_ported(config)
        message, hint = "a file of integers is taken as it is: there is nothing to decide", "leave --dry-run out"
        raise UsageError(message, code="EQ-U924", place="--dry-run", hint=hint)
    with stages.step("load"):
        target, exporter, model = resolve(config)
        parts = parts_of(model)
        samples = collect_samples(config, list(parts.values()))
    plans = []
    for (name, adapter), own in zip(parts.items(), samples, strict=True):
        schemes_of = plan_schemes(config_for(config, adapter.loaded), target, exporter, adapter, own)
        plans += [{**plan, "network": name} if name else plan for plan in schemes_of]
    return {
        "schema": "edgeq.export/1",
        "ok": True,
        "dry_run": True,
        "model": name_of(model),
        "target": target.name,
        "format": exporter.name,
        "calibration_images": len(samples[0].calibration_items),
        "held_out_images": len(samples[0].held_out),
        "schemes": plans,
    }


def plan_schemes(
    config: ExportConfig, target: Target, exporter: Exporter, adapter: ModelAdapter, samples: Samples
) -> list[dict[str, Any]]:
    """The operations of each scheme by mode on one network, and why the float ones are float."""
    plans = []
    graph = exporter.prepare(adapter.loaded.graph)
    graphs: dict[str, fx.GraphModule] = {}
    for scheme in schemes(config, target, exporter, adapter.loaded):
        recipe = recipe_of(config, adapter, scheme)
        if recipe.transform not in graphs:
            few = batches_of(samples, DRY_RUN_SAMPLES)  # the transforms find their places; the numbers do not matter
            graphs[recipe.transform] = transform_graph(recipe.transform, graph, few, config.seed)[0]
        placement = place_scheme(graphs[recipe.transform], exporter, scheme, recipe.precision)[1]
        modes = Counter(f"{op.op} {op.mode}" for op in placement.ops.values())
        reasons = sorted({f"{op.op}: {op.reason}" for op in placement.ops.values() if op.reason})
        plans.append({"scheme": scheme, "ops": dict(sorted(modes.items())), "float_because": reasons})
    return plans


def default_out(config: ExportConfig) -> Path:
    """`out/MODEL-DEVICE` under the current folder."""
    is_file = is_ported(config) or config.model.lower().endswith(FILE_SUFFIXES)
    name = Path(config.model).stem if is_file else config.model.partition(":")[2] or config.model
    return Path("out") / f"{name}-{config.device}"


def measure(session: Session, candidate: Candidate, legalized: Legalized, stages: Stages) -> Candidate:
    """Fidelity and latency of one candidate, and whether it may ship."""
    if candidate.rejected and not session.config.force:
        return candidate
    held_out = session.samples.held_out
    graph = session.fitted[candidate.recipe.transform].graph
    with stages.step(f"measure {candidate.scheme}"):
        candidate = candidates.measure_fidelity(
            candidate, legalized, graph, session.adapter, held_out, session.reference, session.threads
        )
        if session.exporter.float_format == session.exporter.name:
            candidate = candidates.measure_latency(
                candidate, session.float_path, held_out[0], session.threads, session.config.runs, SECONDS_PER_TIMING
            )
    return candidates.judge(candidate, session.floor_db, session.config.budget_kb)


def choose(job: Job, measured: Mapping[str, list[Candidate]], stages: Stages) -> Choice:
    """The first combination of ranked candidates that passes every gate; with `--force`, the first when none passes.

    A model of one network has combinations of one candidate.

    Args:
        job: The model and its data.
        measured: Candidates by network.
        stages: Takes the time.

    Raises:
        GateError: None passes.
    """
    judged = {name: {c.scheme: c for c in found} for name, found in measured.items()}
    reference: list[Any] = []

    def result(shipped: Mapping[str, Candidate], scored: Evaluation | None) -> Choice:
        return Choice(shipped, {name: tuple(found.values()) for name, found in judged.items()}, scored)

    missed = []
    for shipped in combinations({name: [c for c in found if not c.rejected] for name, found in measured.items()}):
        scored = _evaluate(job, shipped, reference, stages)
        if scored is None or scored.drop <= job.config.max_drop:
            return result(shipped, scored)
        reason = f"{scored.metric} is {scored.drop:.2f} points worse, more than --max-drop {job.config.max_drop:g}"
        missed.append(f"{_scheme_names(shipped)}: {reason}")
        if len(shipped) == 1:
            ((name, candidate),) = shipped.items()
            judged[name][candidate.scheme] = replace(candidate, rejected=(reason,))
    if job.config.force:
        best = next(combinations({name: list(found.values()) for name, found in judged.items()}))
        return result(best, _evaluate(job, best, reference, stages))
    rejected = [(name, c) for name, found in judged.items() for c in found.values() if c.rejected]
    reasons = [f"{name} {c.scheme}: {', '.join(c.rejected)}".strip() for name, c in rejected]
    raise GateError(
        f"no candidate may ship. {'; '.join(reasons + (missed if len(judged) > 1 else []))}",
        code="EQ-G001",
        place=job.name,
        hint="lower the floor (--min-sqnr-db, --max-drop), bring more --calib samples, or insist with --force",
    )


def _scheme_names(shipped: Mapping[str, Candidate]) -> str:
    return ", ".join(f"{name} {c.scheme}".strip() for name, c in shipped.items())


def combinations(measured: Mapping[str, list[Candidate]]) -> Iterator[dict[str, Candidate]]:
    """One candidate of each network, the best ranked of all first, then those with the fewest steps down."""
    orders = [ranked(found) for found in measured.values()]
    places = itertools.product(*(range(len(order)) for order in orders))
    for place in sorted(places, key=lambda p: (sum(p), p)):
        yield dict(zip(measured, (order[i] for order, i in zip(orders, place, strict=True)), strict=True))


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


def _evaluate(job: Job, shipped: Mapping[str, Candidate], reference: list[Any], stages: Stages) -> Evaluation | None:
    """The task metric of float and candidates on labelled data, if there is any; `reference` keeps what float gives."""
    if job.labelled is None:
        return None

    def run(paths: Mapping[str, Path], title: str) -> list[Any]:
        assert job.labelled is not None
        with stages.step(f"evaluate {title}") as advance:
            return records_of(job.config, job.model, job.labelled, paths, job.first.threads, advance)

    if not reference:
        reference += run({name: s.float_path for name, s in job.sessions.items()}, "float")
    quantized = run({name: c.path for name, c in shipped.items()}, _scheme_names(shipped))
    return score(job.model.metric, reference, quantized, seed=job.config.seed)


def compare_with_peers(job: Job, shipped: Candidate, scratch: Path, stages: Stages) -> Comparison:
    """The float files, the shipped candidate and what other quantizers make of the same model and calibration data."""
    session = job.first
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
        _shared_inputs(job),
        threads=session.threads,
        runs=session.config.runs,
        progress=stages.progress,
    )


def _shared_inputs(job: Job) -> Inputs:
    """The labelled items where there are any that top-1 can score, else those that fidelity is measured on."""
    session, labelled = job.first, job.labelled
    adapter = session.adapter
    if labelled is None or adapter.metric.name != "top1":
        held_out = session.samples.held_out
        return Inputs("held-out items", len(held_out), lambda i: held_out[i])
    count = min(len(labelled), session.config.limit or len(labelled))
    labels = tuple(item.label for item in labelled.items[:count] if item.label is not None)
    return Inputs("labelled items", count, lambda i: adapter.inputs(labelled.read(i)), labels)


def peak_mb() -> int:
    """Peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
