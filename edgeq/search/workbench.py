"""Files built by the session of an export, and measured on a device: what a search works with."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeq import candidate as candidates
from edgeq.artifact import Artifact, model_bytes, staged
from edgeq.build import build_scheme
from edgeq.bundle import BundleParts, Choice, write_bundle
from edgeq.cache import cache_key, work_folder
from edgeq.candidate import Candidate
from edgeq.config import ExportConfig
from edgeq.devices.attached import Device
from edgeq.errors import DeviceError
from edgeq.graph.solve import Rounding
from edgeq.graph.widths import NARROW, WIDE
from edgeq.recipe import Recipe, place_scheme
from edgeq.samples import Evaluation, records_of, score
from edgeq.search.layers import find_layers, kept_float, layer_losses
from edgeq.search.problem import FLOAT, FLOAT_FILE, Layer, Measured, Variant
from edgeq.search.table import Cell
from edgeq.session import Job, Session, Stages, batches_of, data_key, recipe_of, schemes
from edgeq.spec import Precision, QuantPlan

TRIED = 8
"""Calibration samples on which layers are tried alone."""


class DeviceBench:
    """A `edgeq.search.engine.Workbench` for one network and one device.

    Args:
        job: The model, its data and its float reference; of one network.
        device: Where files are measured.
        narrow: Whether layers are offered 4 bits.
        folder: Where built bundles are kept until the search ends.
        out: Where the best one is published.
        command: The command line, for manifests.
        stages: Takes the time.
    """

    def __init__(
        self, job: Job, device: Device, narrow: bool, folder: Path, out: Path, command: Sequence[str], stages: Stages
    ) -> None:
        self._job, self._device, self._narrow = job, device, narrow
        self._folder, self._out, self._command, self._stages = folder, out, command, stages
        self._reference: list[Any] = []
        self._layers: dict[str, tuple[Layer, ...]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def _session(self) -> Session:
        return self._job.first

    def uniforms(self) -> Sequence[Variant]:
        """See `Workbench`."""
        session = self._session
        names = schemes(session.config, session.target, session.exporter, session.adapter.loaded)
        found = [] if session.exporter.float_format != session.exporter.name else [Variant("float", FLOAT_FILE)]
        return [*found, *(Variant(f"{n} w8a8", n, {a.name: WIDE for a in self.layers(n)}) for n in names)]

    def layers(self, scheme: str) -> Sequence[Layer]:
        """See `Workbench`."""
        if scheme not in self._layers:
            recipe = self._recipe(scheme)
            graph = self._session.fitted[recipe.transform].graph
            exporter = self._session.exporter
            self._layers[scheme] = find_layers(graph, exporter, scheme, recipe.precision, narrow=self._narrow)
        return self._layers[scheme]

    def losses(self, scheme: str) -> Mapping[Cell, float]:
        """See `Workbench`; kept in the cache, for other budgets and other devices too."""
        session, recipe, layers = self._session, self._recipe(scheme), self.layers(scheme)
        fitted = session.fitted[recipe.transform]
        offered = [[layer.name, list(layer.bits)] for layer in layers]
        parts = (scheme, session.exporter.name, recipe.precision.observer, recipe.precision.products_only)
        key = cache_key(data_key(session, fitted.graph, []), TRIED, offered, *parts)
        folder = work_folder("losses")
        with self._stages.step("try layers alone", sum(len(set(n.bits) - {FLOAT}) for n in layers)) as advance:
            return layer_losses(
                fitted.graph,
                session.exporter,
                scheme,
                recipe.precision,
                fitted.statistics,
                layers,
                list(batches_of(session.samples, TRIED)()),
                journal=None if folder is None else folder / f"{key}.jsonl",
                key=key,
                advance=advance,
            )

    def measure(self, variant: Variant, judged: bool) -> Measured:
        """See `Workbench`.

        Raises:
            DeviceError: EQ-X881, the device does not time; whatever else keeps it from measuring.
        """
        folder = self._folder / f"{variant.key}{'' if judged else '-probe'}"
        quality = self._build(variant, judged, folder)
        bundle = Artifact.open(folder)
        reference = None
        if variant.scheme != FLOAT_FILE and any(v.scheme == FLOAT_FILE for v in self.uniforms()):
            reference = Artifact.open(self._ready(Variant("float", FLOAT_FILE)))
        profile = self._device.profile(bundle, "auto", reference)
        if profile.error is not None:
            raise profile.error
        if profile.p50 is None:
            message, hint = f"{self._device.name} does not time", "--on local, ssh://..., or qemu://mps2-an386 for C"
            raise DeviceError(message, code="EQ-X881", place="--on", hint=hint)
        if not judged:
            shutil.rmtree(folder)
        interval = profile.details.get("interval") or {"low": profile.p50, "high": profile.p50}
        against = profile.details.get("against") or {"paired": False}
        return replace(
            quality,
            cost=profile.p50,
            low=interval["low"],
            high=interval["high"],
            unit=profile.unit,
            layers={c.name: c.value for c in profile.layers} if profile.unit != "ms" else {},
            paired=(against["ratio"], against["low"], against["high"]) if against["paired"] else None,
        )

    def publish(self, variant: Variant) -> None:
        """See `Workbench`."""
        source = self._ready(variant)
        with staged(self._out, "replace") as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)

    def _ready(self, variant: Variant) -> Path:
        """Folder of a judged bundle; built again where it is gone."""
        folder = self._folder / variant.key
        if not (folder / "manifest.json").is_file():
            self._build(variant, True, folder)
        return folder

    def _recipe(self, scheme: str) -> Recipe:
        """The recipe of a scheme with every layer quantized."""
        config = replace(self._session.config, scheme=scheme, keep_float="auto", narrow=None)
        return recipe_of(config, self._session.adapter, scheme)

    def _config(self, variant: Variant) -> ExportConfig:
        """The configuration of the export that builds a variant."""
        recipe = self._recipe(variant.scheme)
        graph = self._session.fitted[recipe.transform].graph
        placement = place_scheme(graph, self._session.exporter, variant.scheme, recipe.precision)[1]
        freed = {name for name, bits in variant.bits.items() if bits == FLOAT}
        kept = (*recipe.precision.keep_float, *kept_float(graph, placement, set(variant.bits), freed))
        return replace(
            self._session.config,
            scheme=variant.scheme,
            keep_float=",".join(dict.fromkeys(kept)) or "none",
            narrow=",".join(name for name, bits in variant.bits.items() if bits == NARROW) or None,
        )

    def _build(self, variant: Variant, judged: bool, folder: Path) -> Measured:
        """Build a bundle and judge it; the cost is left to the device."""
        scratch = Path(tempfile.mkdtemp(dir=self._folder, prefix=".build-"))
        try:
            if variant.scheme == FLOAT_FILE:
                session, candidate = self._session, self._float_candidate()
            else:
                session = replace(self._session, config=self._config(variant))
                build = self._judged if judged else self._plain
                candidate = build(session, variant, scratch)
            job = replace(self._job, config=session.config, sessions={"": session})
            scored = self._scored(candidate) if judged else None
            if scored is not None and scored.drop > session.config.max_drop:
                reason = f"{scored.metric} is {scored.drop:.2f} points worse, more than {session.config.max_drop:g}"
                candidate = replace(candidate, rejected=(*candidate.rejected, reason))
            parts = BundleParts(job, Choice({"": candidate}, {"": (candidate,)}, scored))
            with staged(folder, "replace") as work:
                write_bundle(work, folder, parts, self._command, self._stages.seconds)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        worst = candidate.worst_output
        exact = variant.scheme == FLOAT_FILE
        return Measured(
            cost=math.nan,
            low=math.nan,
            high=math.nan,
            unit="",
            bytes=candidate.bytes,
            sqnr_db=math.inf if exact else None if worst is None else worst.median,
            worst_db=math.inf if exact else None if worst is None else worst.worst,
            metric=None if scored is None else scored.quantized_score,
            missed=candidate.rejected if judged else (),
        )

    def _judged(self, session: Session, variant: Variant, scratch: Path) -> Candidate:
        """In its final form, with its fidelity."""
        candidate, legalized = build_scheme(session, variant.scheme, scratch, self._stages)
        if not candidate.rejected:
            graph = session.fitted[candidate.recipe.transform].graph
            with self._stages.step("fidelity"):
                candidate = candidates.measure_fidelity(
                    candidate,
                    legalized,
                    graph,
                    session.adapter,
                    session.samples.held_out,
                    session.reference,
                    session.threads,
                )
        return candidates.judge(candidate, session.floor_db)

    def _plain(self, session: Session, variant: Variant, scratch: Path) -> Candidate:
        """With weights rounded to nearest: as fast as any."""
        recipe = recipe_of(session.config, session.adapter, variant.scheme)
        kept = tuple(session.config.keep_float.split(","))
        recipe = replace(recipe, precision=replace(recipe.precision, keep_float=kept))
        fitted = session.fitted[recipe.transform]
        with self._stages.step(f"build {variant.scheme}"):
            return candidates.build(
                fitted.graph,
                session.exporter,
                variant.scheme,
                recipe,
                fitted.statistics,
                Rounding(),
                (),
                scratch / variant.scheme,
            )[0]

    def _float_candidate(self) -> Candidate:
        session, path = self._session, self._session.float_path
        plan = QuantPlan(FLOAT_FILE, {}, {})
        recipe = Recipe("none", "nearest", Precision())
        return Candidate(FLOAT_FILE, path, model_bytes(path), plan, session.exporter.read_back(path, None), recipe)

    def _scored(self, candidate: Candidate) -> Evaluation | None:
        """The task metric beside float's, where there are labels."""
        job, labelled = self._job, self._job.labelled
        if labelled is None:
            return None

        def run(path: Path, title: str) -> list[Any]:
            with self._stages.step(f"evaluate {title}") as advance:
                return records_of(job.config, job.model, labelled, {"": path}, job.first.threads, advance)

        if not self._reference:
            self._reference += run(self._session.float_path, "float")
        quantized = self._reference if candidate.scheme == FLOAT_FILE else run(candidate.path, candidate.scheme)
        return score(job.model.metric, self._reference, quantized, seed=job.config.seed)
