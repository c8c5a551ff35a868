"""One candidate, from its recipe to its file, with what budgets buy on the way: narrow weights, learned roundings."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import fx

from edgeq import candidate as candidates
from edgeq.cache import cache_key, work_folder
from edgeq.candidate import Candidate, Learn
from edgeq.config_keys import MIXED
from edgeq.errors import UsageError, unknown_name
from edgeq.firmware import misfits, run_in_patches
from edgeq.graph.islands import IslandChoice, choose_islands, tried_units
from edgeq.graph.kinds import op_kind
from edgeq.graph.learn import Learned, blocks_to_learn, learn, steps_within
from edgeq.graph.legalize import Legalized, legalize
from edgeq.graph.placement import Placement, weight_of
from edgeq.graph.solve import Rounding
from edgeq.graph.widths import (
    NARROW,
    WIDE,
    Damage,
    Loss,
    Study,
    choose_widths,
    largest,
    prediction_loss,
    relative_error,
    share_budget,
    weight_losses,
)
from edgeq.models.base import Sensitive
from edgeq.recipe import Recipe, place_scheme, width_problem
from edgeq.session import SOLVED, Fitted, Session, Stages, batches_of, data_key, recipe_of, schemes
from edgeq.spec import QuantConfig

TRIED = 16  # calibration samples that widths are tried on
CHOSEN = 3  # times that widths are chosen until the file fits
FREED_ON = 2  # calibration samples on which operations are tried in float
OTHER_WORK = "EQ-U284"
"""A checkpoint that cannot be continued."""

_LOSSES: Mapping[bool, Loss] = {True: prediction_loss, False: relative_error}
"""Of the outputs of a classifier, and of others."""

LEARNABLE = ("static", "integer")
"""Schemes with grids that are known before the network runs."""


def build_scheme(session: Session, scheme: str, scratch: Path, stages: Stages) -> tuple[Candidate, Legalized]:
    """Build one candidate.

    Args:
        session: Model, data and float reference.
        scheme: The scheme.
        scratch: Folder for its file.
        stages: Takes the time.

    Raises:
        UsageError: EQ-U332 where the budget of bytes cannot be kept.
        EdgeqError: Whatever stops rounding, learning or writing.
    """
    recipe = recipe_of(session.config, session.adapter, scheme)
    fitted = session.fitted[recipe.transform]
    _require_narrow(session, recipe, fitted)
    islands, recipe = _with_islands(session, scheme, recipe, fitted, stages)
    if session.config.bits != MIXED:
        candidate, legalized = _build(session, scheme, recipe, fitted, scratch, stages)
        return replace(candidate, islands=islands), legalized
    study, readers = _study(session, scheme, recipe, fitted, scratch, stages)
    budget = room = study.problem.budget
    for _ in range(CHOSEN):
        # What a narrow weight costs a file beside its codes differs from layer to layer, and rounders add biases: the
        # size of the file itself decides, and the next choice leaves room for what the last one was over.
        widths = choose_widths(study.graph, replace(study.problem, budget=room), study.losses)
        narrow = tuple(name for path in widths.narrow for name in readers[path])
        own = replace(recipe, precision=replace(recipe.precision, narrow=narrow))
        candidate, legalized = _build(session, scheme, own, fitted, scratch, stages)
        if candidate.bytes <= budget:
            break
        room -= candidate.bytes - budget
    return replace(candidate, widths=widths, islands=islands), legalized


def _build(
    session: Session, scheme: str, recipe: Recipe, fitted: Fitted, scratch: Path, stages: Stages
) -> tuple[Candidate, Legalized]:
    """Build one candidate by a recipe that is complete, over what an earlier one has left."""
    shutil.rmtree(scratch / scheme, ignore_errors=True)
    layers = sum(op_kind(n) in session.exporter.rules.weighted for n in fitted.graph.graph.nodes)
    with stages.step(f"build {scheme}", layers) as advance:
        rounding = Rounding(
            recipe.rounding, lambda: list(batches_of(session.samples, SOLVED, degraded=True)()), advance=advance
        )
        candidate, legalized = candidates.build(
            fitted.graph,
            session.exporter,
            scheme,
            recipe,
            fitted.statistics,
            rounding,
            [str(a) for a in fitted.applied],
            scratch / scheme,
            _learning(session, scheme, stages),
        )
    if candidate.read_back.memory and run_in_patches(candidate.path, session.target, session.config.patches):
        candidate = replace(candidate, read_back=session.exporter.read_back(candidate.path, legalized))
    rejected = (*candidate.rejected, *misfits(session.target, candidate.read_back.memory))
    return replace(candidate, rejected=rejected), legalized


def _require_narrow(session: Session, recipe: Recipe, fitted: Fitted) -> None:
    """Refuse names of `--narrow` that are of no layer whose weight the format holds in 4 bits.

    Raises:
        UsageError: EQ-U881 names the first.
    """
    kinds = session.exporter.rules.int4
    known = {n.name for n in fitted.graph.graph.nodes if op_kind(n) in kinds and weight_of(n) is not None}
    _require_known("layer with a weight that can have 4 bits", recipe.precision.narrow, known, "EQ-U881")


def _require_known(kind: str, names: Sequence[str], known: set[str], code: str) -> None:
    """Refuse the first of `names`, which may hold wildcards, that matches nothing `known`."""
    for name in names:
        if not fnmatch.filter(known, name):
            raise unknown_name(kind, name, known, code=code)


def _with_islands(
    session: Session, scheme: str, recipe: Recipe, fitted: Fitted, stages: Stages
) -> tuple[IslandChoice | None, Recipe]:
    """Which operations stay float, and the recipe that says so; tried on the network with everything else quantized.

    Raises:
        UsageError: EQ-U334 names the first that is none.
    """
    wish = session.config.keep_float
    integers_only = session.exporter.float_format != session.exporter.name
    if wish == "none" or (wish == "auto" and (integers_only or session.adapter.loaded.network != "convolution")):
        return None, recipe
    if wish != "auto" and not wish.isdigit():
        names = tuple(wish.split(","))
        known = {n.name for n in fitted.graph.graph.nodes if n.op == "call_function"}
        _require_known("operation", names, known, "EQ-U334")
        return None, replace(recipe, precision=replace(recipe.precision, keep_float=names))
    if scheme not in LEARNABLE:
        return None, recipe
    graph, exporter = fitted.graph, session.exporter

    always = recipe.precision.keep_float

    def kept(ops: tuple[str, ...]) -> tuple[QuantConfig, Placement]:
        return place_scheme(graph, exporter, scheme, replace(recipe.precision, keep_float=(*always, *ops)))

    config, placement = kept(())
    plain = legalize(graph, placement, config, exporter.rules, fitted.statistics, scheme)
    grids = [[t.name, t.provenance] for t in plain.plan.tensors.values()]
    key = _key(session, graph, scheme, exporter.name, FREED_ON, grids, always)
    folder = work_folder("islands")
    with stages.step(f"try {scheme}", len(tried_units(graph, placement))) as advance:
        choice = choose_islands(
            graph,
            plain,
            lambda ops: kept(ops)[1],
            list(batches_of(session.samples, FREED_ON)()),
            count=None if wish == "auto" else int(wish),
            journal=None if folder is None else folder / f"{key}.jsonl",
            key=key,
            advance=advance,
        )
    return choice, replace(recipe, precision=replace(recipe.precision, keep_float=(*always, *choice.ops)))


def share_bytes(sessions: Mapping[str, Session], scratch: Path, stages: Stages) -> dict[str, Session]:
    """Of several networks within one budget of bytes, each with its share: the one that the best widths of all need.

    Widths by a few recordings of one person under a budget are the idea of myQASR (Fish, Michieli, Ozay 2023, arXiv
    2307.12659, section 3); deviations: widths are 4 and 8, sensitivity is what each weight alone does to the
    predicted tokens, not the median of activations, and an integer program picks the set.

    Args:
        sessions: By name of the network.
        scratch: Folder for files.
        stages: Takes the time.

    Raises:
        UsageError: EQ-U332 where the budget cannot be kept.
    """
    first = next(iter(sessions.values()))
    if first.config.bits != MIXED or len(sessions) == 1:
        return dict(sessions)
    assert first.config.budget_kb is not None
    studies = {}
    for name, session in sessions.items():
        scheme, *_ = schemes(session.config, session.target, session.exporter, session.adapter.loaded)
        recipe = recipe_of(session.config, session.adapter, scheme)
        own = (session.fitted[recipe.transform], scratch / name, stages.of(name))
        studies[name] = _study(session, scheme, recipe, *own)[0]
    budget = 1000 * first.config.budget_kb
    shares = {name: choice.expected_bytes for name, choice in share_budget(studies, budget).items()}
    spare = (budget - sum(shares.values())) / len(shares)
    return {
        name: replace(session, config=replace(session.config, budget_kb=(shares[name] + spare) / 1000))
        for name, session in sessions.items()
    }


def _study(
    session: Session, scheme: str, recipe: Recipe, fitted: Fitted, scratch: Path, stages: Stages
) -> tuple[Study, dict[str, list[str]]]:
    """What 4 bits do to each weight, and the layers that read it; done once for all budgets.

    What was tried is kept, so that another budget or an interrupted run finds it.
    """
    graph = fitted.graph
    assert session.config.budget_kb is not None
    budget = 1000 * session.config.budget_kb
    asked = scheme, recipe.precision
    if asked in session.studies:
        study, readers = session.studies[asked]
        return replace(study, problem=replace(study.problem, budget=budget)), readers
    with stages.step(f"size of {scheme}"):  # what a converter adds to the weights only its file tells
        wide = _size(session, scheme, _of_width(recipe, WIDE), fitted, scratch / f"{scheme}-wide")
        narrow = _size(session, scheme, _of_width(recipe, NARROW), fitted, scratch / f"{scheme}-narrow")
    problem, readers = width_problem(graph, session.exporter, scheme, recipe.precision, wide, budget, narrow)
    adapter = session.adapter
    classifier = adapter.loaded.classes is not None
    offered = {path: sorted(specs) for path, specs in problem.weights.items()}
    key = _key(session, graph, sorted(problem.weights), TRIED, classifier, offered, isinstance(adapter, Sensitive))
    folder = work_folder("widths")
    with stages.step("try widths", sum(NARROW in specs for specs in problem.weights.values())) as advance:
        losses = weight_losses(
            graph,
            problem,
            list(batches_of(session.samples, TRIED, degraded=True)()),
            _damage(adapter) if isinstance(adapter, Sensitive) else largest(_LOSSES[classifier]),
            journal=None if folder is None else folder / f"{key}.jsonl",
            key=key,
            advance=advance,
        )
    session.studies[asked] = Study(graph, problem, losses), readers
    return session.studies[asked]


def _of_width(recipe: Recipe, bits: int) -> Recipe:
    """A recipe with other weights."""
    return replace(recipe, precision=replace(recipe.precision, weight_bits=bits))


def _size(session: Session, scheme: str, recipe: Recipe, fitted: Fitted, folder: Path) -> int:
    """Bytes of a file with weights rounded to nearest; other rounders may add biases."""
    statistics = fitted.statistics
    built, _ = candidates.build(fitted.graph, session.exporter, scheme, recipe, statistics, Rounding(), (), folder)
    return built.bytes


def _damage(adapter: Sensitive) -> Damage:
    """What the family knows of outputs, of tensors."""
    return lambda reference, outputs: adapter.damage([t.numpy() for t in reference], [t.numpy() for t in outputs])


def _learning(session: Session, scheme: str, stages: Stages) -> Learn | None:
    """What the budget of minutes or steps buys this scheme; its share of the minutes where there are several."""
    config = session.config
    minutes, steps = config.budget_minutes or 0.0, config.learn_steps
    if scheme not in LEARNABLE or not (minutes or steps):
        return None
    sharing = sum(s in LEARNABLE for s in schemes(config, session.target, session.exporter, session.adapter.loaded))

    def run(graph: fx.GraphModule, legalized: Legalized, placement: Placement) -> tuple[Legalized, Learned]:
        samples = torch.cat([batch[0] for batch in batches_of(session.samples, degraded=True)()])
        count = steps
        if count is None:
            with stages.step("time learning"):
                count = steps_within(graph, legalized, placement, samples, 60 * minutes / sharing)
        weights = [t.codes_sha256 for t in legalized.plan.weights()]
        key = _key(session, graph, weights, scheme, count)
        folder = work_folder("learning")
        state = None if folder is None else folder / key
        with stages.step(f"learn {scheme}", count * blocks_to_learn(graph, placement)) as advance:

            def attempt() -> tuple[Legalized, Learned]:
                return learn(graph, legalized, placement, samples, count, folder=state, progress=advance)

            try:
                result = attempt()
            except UsageError as error:
                if error.code != OTHER_WORK or state is None:
                    raise
                shutil.rmtree(state)  # left by another version of edgeq
                result = attempt()
        if state is not None:
            shutil.rmtree(state, ignore_errors=True)  # finished: who asks again wants to see it done again
        return result

    return run


def _key(session: Session, graph: fx.GraphModule, *parts: object) -> str:
    """Hash of graph, data and `parts`."""
    degraded = [c.name for c in session.samples.conditions]
    return cache_key(data_key(session, graph, []), degraded, session.samples.seed if degraded else 0, *parts)
