"""Models side by side on the same inputs: fidelity to the first one, task metric, size, and paired latency.

What is compared are files: bundles, or model files of any runtime here. No torch, so it runs on the boards.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgeq.artifact import Artifact, model_bytes
from edgeq.config_keys import SUFFIXES
from edgeq.data import Source, open_images, preprocess
from edgeq.devices import RuntimeModel, open_model
from edgeq.devices.base import Array
from edgeq.devices.timing import PairedLatency, Runs, paired_latency
from edgeq.errors import DataError, InputError, UsageError
from edgeq.metrics import Summary, bootstrap_difference, sqnr_db, summarize, top1
from edgeq.progress import Progress
from edgeq.spec import Preprocess

MAX_SAME_SHAPE = 6  # outputs of one shape whose order is searched
SECONDS_PER_TIMING = 20.0


@dataclass(frozen=True)
class Contender:
    """A model to compare.

    Args:
        name: For tables; unique.
        path: The model file.
        artifact: Its bundle, None for a bare file.
        failed: Why there is no file, where a tool was to make one; empty otherwise.
    """

    name: str
    path: Path
    artifact: Artifact | None = None
    failed: str = ""


@dataclass(frozen=True)
class Inputs:
    """What the models are run on.

    Args:
        place: Where the inputs come from.
        count: Number of items.
        read: Network inputs of an item, by index.
        labels: Class of each item, None when unlabelled.
    """

    place: str
    count: int
    read: Callable[[int], tuple[Array, ...]]
    labels: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Score:
    """Top-1 of one model in points of 100, and the 95 % paired bootstrap interval of its difference to the first."""

    value: float
    difference: tuple[float, float]


@dataclass(frozen=True)
class Row:
    """One model's results.

    Args:
        contender: The model.
        bytes: Size of its file and what belongs to it.
        fidelity: SQNR in dB of its worst output to the first model's; None for the first.
        score: Task metric, None without labels.
        latency: Paired with the first model; None for the first, and for what an interpreter runs.
    """

    contender: Contender
    bytes: int = 0
    fidelity: Summary | None = None
    score: Score | None = None
    latency: PairedLatency | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "name": self.contender.name,
            "file": self.contender.path.name,
            "format": SUFFIXES.get(self.contender.path.suffix),
            "failed": self.contender.failed or None,
            "bytes": self.bytes,
            "sqnr_db": self.fidelity.to_dict() if self.fidelity else None,
            "score": self.score and {"value": self.score.value, "difference_interval": list(self.score.difference)},
            "latency": _latency(self.latency) if self.latency else None,
        }


@dataclass(frozen=True)
class Comparison:
    """All rows; the first is what the others are compared with."""

    rows: tuple[Row, ...]
    place: str
    samples: int
    first_ms: float | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract `edgeq.compare/1`."""
        return {
            "schema": "edgeq.compare/1",
            "ok": True,
            "reference": self.rows[0].contender.name,
            "data": self.place,
            "samples": self.samples,
            "metric": "top-1" if self.rows[0].score else None,
            "reference_ms": self.first_ms,
            "rows": [row.to_dict() for row in self.rows],
        }


def _latency(latency: PairedLatency) -> dict[str, Any]:
    found = latency.to_dict()
    keys = {"reference": found["float"], "ms": found["quantized"]}
    return keys | {key: found[key] for key in ("ratio", "low", "high", "runs", "fastest")}


def open_contenders(paths: Sequence[Path]) -> tuple[Contender, ...]:
    """Bundles and model files by their paths; bundles are checked against their hashes.

    Raises:
        UsageError: EQ-U452 for fewer than two.
        InputError: Not a bundle and not a model file, or a damaged bundle.
    """
    if len(paths) < 2:
        message = f"a comparison needs two models or more, not {len(paths)}"
        hint = "edgeq compare BUNDLE_OR_FILE BUNDLE_OR_FILE"
        raise UsageError(message, code="EQ-U452", hint=hint)
    names = _names(paths)
    return tuple(_open_contender(path, name) for path, name in zip(paths, names, strict=True))


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    resolved = [p.parent if p.name == "manifest.json" else p for p in paths]
    for length in range(1, max(len(p.absolute().parts) for p in resolved) + 1):
        names = [str(Path(*p.absolute().parts[-length:])) for p in resolved]
        if len(set(names)) == len(names):
            return names
    return [f"{i} {p.name}" for i, p in enumerate(resolved, 1)]  # the same model twice measures the noise


def _open_contender(path: Path, name: str) -> Contender:
    try:
        exists, is_file = path.exists(), path.is_file()
    except (OSError, ValueError):  # a name too long, or with a null byte
        exists = is_file = False
    if path.suffix in SUFFIXES and is_file:
        return Contender(name, path)
    if not exists or (is_file and path.name != "manifest.json"):
        problem = "is no bundle and no model file" if exists else "does not exist"
        hint = f"give bundles or files ending in {', '.join(SUFFIXES)}"
        raise InputError(f"{path} {problem}", code="EQ-I450", place=str(path), hint=hint)
    artifact = Artifact.open(path)
    artifact.verify_files()
    return Contender(name, artifact.model_file, artifact)


def open_inputs(
    contenders: Sequence[Contender], data: Path | None, like: Path | None = None, limit: int | None = None
) -> Inputs:
    """Items of `data` as network inputs; without `data` the golden vectors of the first bundle.

    Args:
        contenders: The models; the first bundle among them says how an image becomes an input.
        data: Photos, or labelled images: one folder a class, or a packed `.npz`.
        like: A bundle that says so instead.
        limit: Items at most.

    Raises:
        UsageError: EQ-U453 when no bundle is named.
        DataError: `data` cannot be used.
    """
    bundles = [c.artifact for c in contenders if c.artifact]
    artifact = Artifact.open(like) if like is not None else next(iter(bundles), None)
    if artifact is None:
        raise UsageError(
            "bare model files do not say how an image becomes their input",
            code="EQ-U453",
            hint="add --like BUNDLE, or compare with a bundle",
        )
    if data is None:
        vectors = artifact.golden().inputs
        count = min(len(vectors[0]), limit or len(vectors[0]))
        return Inputs("golden vectors", count, lambda i: tuple(v[i] for v in vectors))
    how = artifact.preprocess
    if how is None:
        message = "the bundle's model takes no images"
        raise DataError(message, code="EQ-D451", place=str(data), hint="leave --data out: golden vectors are used")
    source = open_images(data, role="evaluation").for_classes(artifact.manifest.labels)
    count = min(len(source), limit or len(source))
    return Inputs(str(data), count, _reader(source, how), _labels(source, count))


def _reader(source: Source[Image.Image], how: Preprocess) -> Callable[[int], tuple[Array, ...]]:
    return lambda index: (preprocess(source.read(index), how)[None],)


def _labels(source: Source[Image.Image], count: int) -> tuple[int, ...] | None:
    labels = tuple(item.label for item in source.items[:count])
    return None if None in labels else labels


def compare(
    contenders: Sequence[Contender], inputs: Inputs, *, threads: int, runs: Runs, progress: Progress
) -> Comparison:
    """Run every model on every item and time each against the first.

    Outputs are matched by shape, and where shapes are the same by what they hold, so that the order in which a
    runtime lists them does not matter.

    Args:
        contenders: The first is the reference; those that failed keep a row without figures.
        inputs: What to run on.
        threads: Threads of every runtime.
        runs: Timed pairs.
        progress: Where to show the stages.

    Raises:
        InputError: EQ-I451 when the outputs of two models do not correspond.
        EdgeqError: A model cannot be loaded, or does not take the inputs.
    """
    usable = [c for c in contenders if not c.failed]
    models = {c.name: open_model(c.path, threads=threads) for c in usable}
    with progress.step("run", inputs.count) as advance:
        outcomes = _run_all(models, inputs, advance)
    first = usable[0].name
    scores = _scores({name: o.scores for name, o in outcomes.items()}, inputs.labels, first)
    sample = inputs.read(0)
    timed: dict[str, PairedLatency] = {}
    # The time of an interpreter says nothing about the C that it stands for.
    clocked = [c.name for c in usable if SUFFIXES.get(c.path.suffix) != "c"]
    others = [name for name in clocked if name != first] if first in clocked else []
    with progress.step("time", len(others)) as advance:
        for name in others:
            timed[name] = _paired(models[first], models[name], sample, runs)
            advance(1)
    rows = []
    for contender in contenders:
        if contender.failed:
            rows.append(Row(contender))
            continue
        name = contender.name
        fidelity = None if name == first else summarize(outcomes[name].fidelity)
        rows.append(Row(contender, model_bytes(contender.path), fidelity, scores.get(name), timed.get(name)))
    own = float(np.median([t.float_ms for t in timed.values()])) if timed else None
    return Comparison(tuple(rows), inputs.place, inputs.count, own)


@dataclass
class _Outcome:
    """What one model gave: the order of its outputs, and by item the SQNR of its worst output and its class scores."""

    order: tuple[int, ...]
    fidelity: list[float]
    scores: list[Array]


def _run_all(models: Mapping[str, RuntimeModel], inputs: Inputs, advance: Callable[[int], None]) -> dict[str, _Outcome]:
    outcomes: dict[str, _Outcome] = {}
    for index in range(inputs.count):
        arrays = inputs.read(index)
        reference: tuple[Array, ...] = ()
        for name, model in models.items():
            outputs = model.run(*arrays)
            reference = reference or outputs
            if name not in outcomes:
                outcomes[name] = _Outcome(match_outputs(reference, outputs, name), [], [])
            outcome = outcomes[name]
            ordered = [outputs[i] for i in outcome.order]
            outcome.fidelity.append(min(sqnr_db(r, o) for r, o in zip(reference, ordered, strict=True)))
            if inputs.labels is not None and ordered[0].ndim == 2 and len(ordered[0]) == 1:
                outcome.scores.append(ordered[0])
        advance(1)
    return outcomes


def match_outputs(reference: Sequence[Array], outputs: Sequence[Array], name: str) -> tuple[int, ...]:
    """For each reference output the index of the output that stands for it.

    Args:
        reference: Outputs of the first model for one item.
        outputs: Outputs of another model for the same item.
        name: The other model, for messages.

    Raises:
        InputError: EQ-I451 when numbers or shapes differ.
    """
    wanted, found = [o.shape for o in reference], [o.shape for o in outputs]
    if sorted(wanted) != sorted(found):
        message = f"the outputs of {name} have shapes {found}, those of the first model {wanted}"
        raise InputError(message, code="EQ-I451", place=name, hint="compare models of the same task and input size")
    order = [-1] * len(wanted)
    for shape in dict.fromkeys(wanted):
        ours = [i for i, s in enumerate(wanted) if s == shape]
        theirs = [i for i, s in enumerate(found) if s == shape]
        for mine, other in zip(ours, _nearest_order(reference, outputs, ours, theirs), strict=True):
            order[mine] = other
    return tuple(order)


def _nearest_order(
    reference: Sequence[Array], outputs: Sequence[Array], ours: list[int], theirs: list[int]
) -> Sequence[int]:
    """The order of `theirs` that is nearest to `ours`; as it is when there are too many to try."""
    if len(ours) == 1 or len(ours) > MAX_SAME_SHAPE:
        return theirs
    error = {
        (i, j): float(np.mean((reference[i] - outputs[j].astype(np.float64)) ** 2)) / (float(reference[i].var()) or 1)
        for i in ours
        for j in theirs
    }
    return min(
        itertools.permutations(theirs), key=lambda order: sum(error[i, j] for i, j in zip(ours, order, strict=True))
    )


def _scores(logits: Mapping[str, Sequence[Array]], labels: Sequence[int] | None, first: str) -> dict[str, Score]:
    """Top-1 of every model whose first output holds one row of class scores."""
    if labels is None or not logits[first]:
        return {}
    hits = {
        name: np.array([100 * top1(o, [label]) for o, label in zip(outputs, labels, strict=True)])
        for name, outputs in logits.items()
    }
    return {
        name: Score(float(values.mean()), bootstrap_difference(values, hits[first], seed=0))
        for name, values in hits.items()
    }


def _paired(first: RuntimeModel, other: RuntimeModel, sample: Sequence[Array], runs: Runs) -> PairedLatency:
    first.prepare(*sample)
    other.prepare(*sample)
    return paired_latency(first.invoke, other.invoke, runs=runs, max_seconds=SECONDS_PER_TIMING)
