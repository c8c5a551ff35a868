"""How much of an artifact's score is luck: the same export with other calibration draws."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

from edgeq.artifact import Artifact, model_files
from edgeq.cache import cache_key, work_folder
from edgeq.config import ExportConfig
from edgeq.data import Source
from edgeq.errors import DataError, UsageError
from edgeq.journal import Journal
from edgeq.metrics import points_lost
from edgeq.models.base import Composite, ModelAdapter, parts_of
from edgeq.origin import recorded_config
from edgeq.probe import ARTIFACT, FIDELITY, FLOAT, Probe, files_of
from edgeq.progress import Progress
from edgeq.reproduce import build_again
from edgeq.session import Stages

CONFIDENCE = 0.95
SHIPPED = "shipped"
_DONE = "calibration.json"


@dataclass(frozen=True)
class Rebuilt:
    """One export with another seed.

    Args:
        seed: Of the calibration draw, and of everything else that is drawn.
        files: Its model files, by network.
        calibration: SHA-256 of the samples it was calibrated with.
    """

    seed: int
    files: Mapping[str, Path]
    calibration: tuple[str, ...]

    @property
    def name(self) -> str:
        """For progress and records."""
        return f"seed {self.seed}"


@dataclass(frozen=True)
class Variance:
    """Scores of several builds of one artifact, on samples that none of them was calibrated with.

    Args:
        metric: Its name.
        unit: Its unit.
        higher_is_better: False for errors.
        n: Samples.
        exact: Score of float; None for fidelity.
        shipped: Score of the artifact itself.
        scores: Of the rebuilds, by seed.
        shared: Largest share of calibration samples that a rebuild has in common with the artifact.
    """

    metric: str
    unit: str
    higher_is_better: bool
    n: int
    exact: float | None
    shipped: float
    scores: Mapping[int, float]
    shared: float

    @property
    def all(self) -> list[float]:
        """Every score, the artifact's first."""
        return [self.shipped, *self.scores.values()]

    @property
    def deviation(self) -> float:
        """Standard deviation between builds."""
        return float(np.std(self.all, ddof=1))

    @property
    def interval(self) -> tuple[float, float]:
        """Where the score of one more build lies with 95 % (Student's t, normal scores)."""
        count = len(self.all)
        reach = self._quantile * self.deviation * math.sqrt(1 + 1 / count)
        mean = float(np.mean(self.all))
        return mean - reach, mean + reach

    @property
    def luck(self) -> float:
        """Differences of two builds up to this happen by the draw alone (95 %)."""
        return self._quantile * self.deviation * math.sqrt(2)

    @property
    def rank(self) -> int:
        """Place of the artifact among all builds, 1 for the best."""
        better = [
            points_lost(self.shipped, s, higher_is_better=self.higher_is_better) < 0 for s in self.scores.values()
        ]
        return 1 + sum(better)

    @property
    def _quantile(self) -> float:
        return float(stats.t.ppf((1 + CONFIDENCE) / 2, len(self.all) - 1))

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "metric": self.metric,
            "unit": self.unit,
            "n": self.n,
            "float": None if self.exact is None else round(self.exact, 4),
            "shipped": round(self.shipped, 4),
            "rebuilds": [{"seed": seed, "score": round(score, 4)} for seed, score in self.scores.items()],
            "mean": round(float(np.mean(self.all)), 4),
            "deviation": round(self.deviation, 4),
            "spread": [round(min(self.all), 4), round(max(self.all), 4)],
            "interval": [round(v, 4) for v in self.interval],
            "luck": round(self.luck, 4),
            "rank": self.rank,
            "shared_calibration": round(self.shared, 4),
        }


def measure_variance(
    artifact: Artifact,
    model: ModelAdapter | Composite,
    source: Source[Any],
    inputs: Mapping[str, Path | None],
    count: int,
    threads: int,
    progress: Progress,
) -> Variance:
    """Export an artifact again with other seeds, and score every build by its runtime on the same samples.

    What was built or measured is kept, so that the same call after an interruption continues.

    Args:
        artifact: The bundle.
        model: The float model.
        source: Samples to score on; those that a build was calibrated with are left out.
        inputs: Where to find `model`, `weights` and `calib` now, see `edgeq.origin.recorded_config`.
        count: Rebuilds.
        threads: Of the runtime.
        progress: Where to show the stages.

    Raises:
        UsageError: EQ-U950 for an artifact for a microcontroller.
        DataError: EQ-D951 when no sample is left.
        EdgeqError: The bundle's inputs cannot be found or used.
    """
    if any(file.suffix == ".intgraph" for file in files_of(artifact).values()):
        raise UsageError(
            "programs for microcontrollers are not rebuilt",
            code="EQ-U950",
            place="--rebuild",
            hint="export for --device rpi with --scheme integer to see what the draw of samples does",
        )
    recorded = tuple(item["sha256"] for item in artifact.manifest.calibration)
    config = recorded_config(artifact.manifest, artifact.folder, inputs)
    pool = _pool(config, model)
    seeds = [(artifact.manifest.seed + k) % 2**32 for k in range(1, count + 1)]
    with ExitStack() as stack:
        kept = work_folder("rebuild")
        place = kept or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeq-")))
        builds = [_built(artifact, replace(config, seed=seed), pool, place, progress) for seed in seeds]
        left = _unused(source, [recorded, *(b.calibration for b in builds)])
        files = {SHIPPED: files_of(artifact), **{b.name: b.files for b in builds}}
        probes = {name: Probe(model, left, paths, threads=threads) for name, paths in files.items()}
        records = _records(probes, _journal(artifact, builds, left, kept), progress)
    scores, facts = _scores(model, records, labelled=probes[SHIPPED].labelled)
    shared = max(len(set(b.calibration) & set(recorded)) for b in builds) / max(1, len(recorded))
    rebuilt = {b.seed: scores[b.name] for b in builds}
    return Variance(*facts, len(left), scores.get(FLOAT), scores[SHIPPED], rebuilt, shared)


def _pool(config: ExportConfig, model: ModelAdapter | Composite) -> list[str]:
    """SHA-256 of the samples that calibration chooses from."""
    first = next(iter(parts_of(model).values()))
    path = config.calib or first.sample_file
    return [] if path is None else [item.sha256 for item in first.open(path, "calibration").items]


def _built(artifact: Artifact, config: ExportConfig, pool: list[str], place: Path, progress: Progress) -> Rebuilt:
    """A build of a configuration, from where an earlier call left it or new."""
    settings = {k: v for k, v in artifact.manifest.config.items() if k != "seed"}
    shipped = [[name, Artifact.open(artifact.folder / name).manifest.scheme] for name in files_of(artifact)]
    weights, versions = artifact.manifest.weights_sha256, dict(artifact.manifest.versions)
    folder = place / cache_key("rebuild", settings, shipped, weights, versions, pool, config.seed)
    if not (folder / _DONE).is_file():
        progress.say(f"rebuild with seed {config.seed}")
        with tempfile.TemporaryDirectory(dir=place) as scratch:
            job, candidates = build_again(artifact.folder, config, Path(scratch), Stages(progress))
            made = Path(scratch) / "made"
            for name, candidate in candidates.items():
                (made / name).mkdir(parents=True, exist_ok=True)
                for file in model_files(candidate.path):
                    shutil.copyfile(file, made / name / file.name)
            used = [item.sha256 for item in job.first.samples.calibration_items]
            paths = {name: f"{name}/{c.path.name}".strip("/") for name, c in candidates.items()}
            (made / _DONE).write_text(json.dumps({"files": paths, "calibration": used}), encoding="utf-8")
            made.replace(folder)
    done = json.loads((folder / _DONE).read_bytes())
    files = {name: folder / path for name, path in done["files"].items()}
    return Rebuilt(config.seed, files, tuple(done["calibration"]))


def _unused(source: Source[Any], used: Sequence[Sequence[str]]) -> Source[Any]:
    """The samples that no build was calibrated with."""
    seen = {sha256 for hashes in used for sha256 in hashes}
    kept = [i for i, item in enumerate(source.items) if item.sha256 not in seen]
    if not kept:
        raise DataError(
            "one build or another was calibrated with every item",
            code="EQ-D951",
            place=source.place,
            hint="give --data other items than the export was given with --calib, or fewer rebuilds",
        )
    return source.subset(kept)


def _journal(artifact: Artifact, builds: Sequence[Rebuilt], source: Source[Any], folder: Path | None) -> Journal:
    items = [[item.sha256, repr(item.label)] for item in source.items]
    files = sorted([str(f["path"]), str(f["sha256"])] for f in artifact.manifest.files)
    builds_of = [next(iter(b.files.values())).parent.as_posix() for b in builds]
    key = cache_key("scores of rebuilds", files, artifact.manifest.weights_sha256, builds_of, items)
    return Journal("edgeq.rebuild/1", key, None if folder is None else folder / f"{key}.jsonl")


def _records(probes: Mapping[str, Probe], journal: Journal, progress: Progress) -> dict[str, list[Any]]:
    """What the metric needs to know of every sample, by build; without labels its fidelity in dB."""
    first = probes[SHIPPED]
    names = [*([FLOAT] if first.labelled else []), *probes]
    count = len(first.source)
    with progress.step("score rebuilds", count * len(names)) as advance:
        for index in range(count):
            for name in names:
                if (name, index) not in journal:
                    journal[name, index] = (
                        _record(first, FLOAT, index) if name == FLOAT else _record(probes[name], ARTIFACT, index)
                    )
                advance(1)
    return {name: [journal[name, index] for index in range(count)] for name in names}


def _record(probe: Probe, who: str, index: int) -> Any:
    return probe.record(who, index) if probe.labelled else probe.records(index, None)[1]


def _scores(
    model: ModelAdapter | Composite, records: Mapping[str, Sequence[Any]], *, labelled: bool
) -> tuple[dict[str, float], tuple[str, str, bool]]:
    """Score of each build, and the metric's name, its unit and whether higher is better."""
    if not labelled:
        return {name: float(np.median(found)) for name, found in records.items()}, (FIDELITY, "dB", True)
    metric = model.metric
    scores = {name: metric.total([metric.from_plain(r) for r in found]) for name, found in records.items()}
    return scores, (metric.name, metric.unit, metric.higher_is_better)
