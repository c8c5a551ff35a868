"""A loaded model with its data and its float reference: what every candidate is built from and compared with."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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
from edgeq.config_keys import MIXED, split_bits
from edgeq.data import Copy, Source
from edgeq.devices import get_target, open_model
from edgeq.devices.base import Target
from edgeq.errors import ModelError, UsageError
from edgeq.exporters import get_exporter
from edgeq.exporters.base import Exporter
from edgeq.graph.legalize import observed
from edgeq.graph.transforms.report import Applied
from edgeq.graph.widths import Study
from edgeq.models import load_any
from edgeq.models.base import Composite, LoadedModel, ModelAdapter, parse_model, parts_of
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
    network: str = ""

    def of(self, network: str) -> Stages:
        """The same, with the name of a network before that of every stage."""
        return replace(self, network=network)

    @contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Time a stage and show its progress."""
        name = f"{self.network}: {name}" if self.network else name
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
    """A loaded network with its data and its float reference, from which candidates are built."""

    config: ExportConfig
    adapter: ModelAdapter
    target: Target
    exporter: Exporter
    graph: fx.GraphModule
    samples: Samples
    fitted: dict[str, Fitted]
    float_path: Path
    reference: list[Arrays]
    threads: int
    part: str = ""
    studies: dict[tuple[str, Precision], tuple[Study, dict[str, list[str]]]] = field(default_factory=dict)  # of widths

    @property
    def floor_db(self) -> float:
        """Least median fidelity to float, in dB, of what may ship.

        What the family knows to be enough unless the user says; none for a part of a model whose task metric is
        measured: the metric is of the whole, and says more.
        """
        if self.config.min_sqnr_db is not None:
            return self.config.min_sqnr_db
        return -math.inf if self.part and self.config.data else self.adapter.loaded.floor_db


@dataclass(frozen=True)
class Job:
    """What an export works on: a model, the sessions of its networks, and the data that judges the whole.

    Args:
        config: What was asked for.
        model: The model.
        sessions: One a network, by its name, which is empty for the only one.
        labelled: Items for the task metric, None without `--data`.
    """

    config: ExportConfig
    model: ModelAdapter | Composite
    sessions: Mapping[str, Session]
    labelled: Source[Any] | None

    @property
    def first(self) -> Session:
        """The session of the first network, or of the only one."""
        return next(iter(self.sessions.values()))

    @property
    def name(self) -> str:
        """Short name of the model."""
        return name_of(self.model)


def name_of(model: ModelAdapter | Composite) -> str:
    """Short name of a model, for tables and messages."""
    return model.name if isinstance(model, Composite) else model.loaded.name


def resolve(config: ExportConfig) -> tuple[Target, Exporter, ModelAdapter | Composite]:
    """Target, exporter and model of a configuration; cheap questions first.

    Raises:
        UsageError: A name is unknown, or the scheme for the format; EQ-U600, the target does not run the format;
            EQ-U604, something should stay float where nothing can.
        ModelError: The model cannot be used.
    """
    target = get_target(config.device)
    exporter = get_exporter(target.format if config.format == "auto" else config.format)
    if exporter.name not in target.schemes:
        raise UsageError(
            f"{target.name} does not run the format {exporter.name}",
            code="EQ-U600",
            place="--format",
            hint=f"leave --format out, or give one of: {', '.join(target.schemes)}",
        )
    if exporter.float_format != exporter.name and config.keep_float not in ("auto", "none"):
        raise UsageError(
            f"{exporter.name} projects hold integers only, and {config.keep_float} should stay float",
            code="EQ-U604",
            place="--keep-float",
            hint="leave --keep-float out, or export for a device that runs float: edgeq devices",
        )
    if config.patches.isdigit() and exporter.name != "c":
        message = f"{target.name} runs model files, whose layers the runtime orders"
        hint = "leave --patches out, or export for a microcontroller: --device cortex-m4"
        raise UsageError(message, code="EQ-U923", place="--patches", hint=hint)
    if config.scheme != "auto":
        exporter.config(config.scheme, Precision(*split_bits(config.bits)))
    model = load_any(parse_model(config.model, config.family, config.weights, config.shape, config.preprocess))
    if isinstance(model, Composite):
        require_simple(config, model)
    return target, exporter, model


def require_simple(config: ExportConfig, model: Composite) -> None:
    """Refuse what is defined for one network only.

    Raises:
        UsageError: EQ-U700 naming the option.
    """
    one = ("budget_minutes", "learn_steps", "compare")
    asked = {name: getattr(config, name) for name in (one if config.bits == MIXED else ("budget_kb", *one))}
    names = [f"--{name.replace('_', '-')}" for name, value in asked.items() if value]
    if names:
        raise UsageError(
            f"{names[0]} is for models of one network; {model.name} has {', '.join(model.parts)}",
            code="EQ-U700",
            place=names[0],
            hint=f"leave {names[0]} out",
        )


def prepare(config: ExportConfig, scratch: Path, stages: Stages, calibration: Sequence[str] | None = None) -> Job:
    """Load the model and its data; of each network convert the float reference, calibrate what the schemes need.

    Args:
        config: What to work on.
        scratch: Folder for float files.
        stages: Takes the time.
        calibration: SHA-256 of the calibration items where they are known; otherwise they are chosen.
    """
    torch.manual_seed(config.seed)
    with stages.step("load"):
        target, exporter, model = resolve(config)
        parts = parts_of(model)
        collected = collect_samples(config, list(parts.values()), calibration)
        samples = dict(zip(parts, collected, strict=True))
        _tell_copies(collected[0].copies, stages.progress)
        if any(adapter.loaded.assumed for adapter in parts.values()):
            stages.progress.say("photos are prepared as for ImageNet, which the file does not tell; else: --preprocess")
        labelled = open_labelled(config, next(iter(samples.values())))
    sessions = {}
    for name, adapter in parts.items():
        folder = scratch / name
        folder.mkdir(exist_ok=True)
        own = config_for(config, adapter.loaded)
        opened = open_session(own, (target, exporter), adapter, samples[name], folder, stages.of(name))
        sessions[name] = replace(opened, part=name)
    return Job(config, model, sessions, labelled)


def _tell_copies(copies: Sequence[Copy], progress: Progress) -> None:
    """Say what does not calibrate, and why."""
    for leak, what in ((True, "labelled data"), (False, "other samples")):
        named = [f"{c.item} of {c.of}" for c in copies if c.leak == leak]
        if named:
            more = f" and {len(named) - 3} more" if len(named) > 3 else ""
            progress.say(f"{len(named)} samples do not calibrate, copies of {what}: {', '.join(named[:3])}{more}")


def config_for(config: ExportConfig, loaded: LoadedModel) -> ExportConfig:
    """What a configuration means for one network of a model: some keep 8-bit weights whatever is asked of the model."""
    narrow = split_bits(config.bits)[0] < loaded.least_weight_bits
    return replace(config, bits=f"w{loaded.least_weight_bits}a{split_bits(config.bits)[1]}") if narrow else config


def open_session(
    config: ExportConfig,
    backend: tuple[Target, Exporter],
    adapter: ModelAdapter,
    samples: Samples,
    scratch: Path,
    stages: Stages,
) -> Session:
    """Convert the float reference of a network, and calibrate what the schemes need."""
    target, exporter = backend
    with stages.step("convert float"):
        writer = exporter if exporter.float_format == exporter.name else get_exporter(exporter.float_format)
        float_path = scratch / f"float-{writer.file_name}"
        graph = adapter.loaded.graph
        writer.emit(graph, candidates.example_of(graph), None, float_path)
        threads = config.threads or target_threads(target)
        reference = float_outputs(adapter, float_path, samples, threads)
    session = Session(
        config, adapter, target, exporter, exporter.prepare(graph), samples, {}, float_path, reference, threads
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


def schemes(config: ExportConfig, target: Target, exporter: Exporter, loaded: LoadedModel) -> tuple[str, ...]:
    """The schemes to try: all that the target and the family allow, or the one that was asked for."""
    if config.scheme != "auto":
        return (config.scheme,)
    allowed = [s for s in exporter.schemes if s in target.schemes[exporter.name]]
    return tuple(s for s in allowed if loaded.schemes is None or s in loaded.schemes)


def recipe_of(config: ExportConfig, adapter: ModelAdapter, scheme: str) -> Recipe:
    """The recipe that the configuration means for a model and a scheme."""
    recipe = recipe_for(config.method, config.rounding, config.bits, scheme, adapter.loaded.network)
    if config.narrow:
        recipe = replace(recipe, precision=replace(recipe.precision, narrow=tuple(config.narrow.split(","))))
    calibrated = scheme in ("static", "integer")  # at run time every row has its own range, which costs little
    if not calibrated or (config.keep_float != "auto" and not config.keep_float.isdigit()):
        return recipe
    return replace(recipe, precision=replace(recipe.precision, keep_float=adapter.loaded.float_ops))


def fit_all(session: Session, stages: Stages) -> None:
    """Transform and calibrate the graph, once for all schemes whose recipes transform it alike."""
    wanted: dict[str, list[str]] = {}
    for scheme in schemes(session.config, session.target, session.exporter, session.adapter.loaded):
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
    key = data_key(session, graph, sorted(names))
    cached = load(key)
    if cached is not None:
        stages.progress.say("calibration statistics taken from the cache: same weights, data and configuration")
        return cached
    with stages.step("calibrate") as advance:
        statistics = calibrate(graph, sorted(names), batches_of(session.samples)(), progress=advance)
    store(key, statistics)
    return statistics


def data_key(session: Session, graph: fx.GraphModule, names: Sequence[str]) -> str:
    """Hash of a graph and of everything that its calibration inputs are made from."""
    items = [item.sha256 for item in session.samples.calibration_items]
    loaded = session.adapter.loaded
    if loaded.preprocess is None:  # inputs may come from another network of the checkpoint
        items.append(loaded.weights_sha256)
    return calibration_key(graph, names, items, loaded.preprocess)
