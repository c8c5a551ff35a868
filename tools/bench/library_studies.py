"""One study for each group of methods; see `library_methods.py`.

Each returns `{method: {"what": ..., "value": ..., "unit": ..., "beside": {name: value}, "n": ...}}`.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from statistics import median
from typing import Any
from unittest import mock

import torch
from library_networks import ROWS, CnnBench, Site, VitBench, path_of, record  # beside this file
from torch import Tensor, fx, nn
from torch.nn import functional
from vit_accuracy import Method, measure

from edgeq.graph.batch import batched
from edgeq.graph.blocks import extract
from edgeq.graph.kinds import op_kind
from edgeq.graph.legalize import legalize, observed
from edgeq.graph.rewrite import aten, fetch
from edgeq.graph.transforms.permute import sort_by_range
from edgeq.quant.allocation import Choice, bisect, greedy, ilp, weight_bytes
from edgeq.quant.calibrator import calibrate
from edgeq.quant.datafree import distill_inputs
from edgeq.quant.grids import GRIDS, fit_noisy
from edgeq.quant.losses import fisher_diagonal as block_fisher
from edgeq.quant.losses import perturbation_importance
from edgeq.quant.reconstruct import FitSettings
from edgeq.quant.relu_mlp import MlpWeights, ReluSettings, relu_mlp
from edgeq.quant.repair import correct_bias, eora, reestimate_batch_norm, tune_scales
from edgeq.quant.rounding import LayerMoments
from edgeq.quant.search import SEARCHES, Layer, Operand, search_alternating, search_clip_ends
from edgeq.quant.sensitivity import (
    fisher_diagonal,
    hessian_trace,
    kl_divergence,
    perturbation,
    rank_correlation,
    relevance,
)
from edgeq.quant.sensitivity import measured as measured_alone
from edgeq.quant.uniform import dequantize, fake_quantize
from edgeq.quant.weights import round_weights, weight_qparams
from edgeq.recipe import place_scheme
from edgeq.spec import PerChannel, PerGroup, Precision, QParams, QuantSpec

Found = dict[str, Any]

WEIGHT = QuantSpec(4, symmetric=True, granularity=PerChannel(0), narrow=True)
ACTIVATION = QuantSpec(4, symmetric=False)
GROUPS = QuantSpec(4, symmetric=True, granularity=PerGroup(32), narrow=True)
RANK = 8
TRUTH = 500
"""Test images that decide how much a narrow weight hurts."""

_ESTIMATE = 64
_SEARCHED = 512


def entry(what: str, value: float, beside: Mapping[str, float], n: int, unit: str = "dB") -> Found:
    """One figure with those it is compared with."""
    figures = {name: float(f"{figure:.4g}") for name, figure in beside.items()}
    return {"what": what, "value": float(f"{value:.4g}"), "unit": unit, "beside": figures, "n": n}


def searches(bench: VitBench) -> Found:
    """Scale searches of both operands of each linear layer at 4 bits, nearest rounding."""
    sites = bench.inner()
    names = {
        "search-grid": ("output_mse", "output_mse", 1),
        "search-percentile": ("percentile", "percentile", 1),
        "search-clip": ("clip", "clip", 1),
        "fpcs": ("fpcs", "clip", 1),
        "search-alternating": ("output_mse", "output_mse", 3),
    }

    def output(site: Site, left: QParams, right: QParams) -> float:
        return site.output_db(fake_quantize(site.measured, left), fake_quantize(site.weight, right))

    def searched(site: Site, left: str, right: str, rounds: int) -> float:
        fitted = site.fitted[:: ROWS // _SEARCHED]
        layer = Layer(functional.linear, Operand(fitted, ACTIVATION), Operand(site.weight, WEIGHT, -1))
        found = search_alternating(layer, left=SEARCHES[left], right=SEARCHES[right], rounds=rounds)
        assert found.left is not None
        assert found.right is not None
        return output(site, found.left.qparams, found.right.qparams)

    base = [output(s, weight_qparams(s.fitted, ACTIVATION), weight_qparams(s.weight, WEIGHT)) for s in sites]
    what = "outputs of the linear layers of vit_nano at W4A4, median"
    return {
        name: entry(what, median(searched(site, *how) for site in sites), {"min-max": median(base)}, len(sites))
        for name, how in names.items()
    }


def gelu_grids(bench: VitBench) -> Found:
    """Grids of 4 bits for outputs of GELU, by the next layer's output."""
    sites = [site for site in bench.inner() if site.source == "gelu"]

    def output(kind: str) -> float:
        figures = []
        for site in sites:
            grid = GRIDS[kind].fit(site.fitted, 4)
            figures.append(site.output_db(grid.dequantize(grid.quantize(site.measured))))
        return median(figures)

    base = {"uniform": output("uniform")}
    what = "layers behind GELU in vit_nano, inputs of 4 bits, median"
    return {kind: entry(what, output(kind), base, len(sites)) for kind in ("twin_gelu", "adalog_shifted")}


def input_grids(bench: VitBench) -> Found:
    """Noise and small floats for the inputs of all other linear layers, 4 bits, by the layer's output."""
    sites = [site for site in bench.inner() if site.source != "gelu"]
    symmetric = QuantSpec(4, symmetric=True, narrow=True)

    def uniform(site: Site) -> Tensor:
        fitted = site.fitted[:: ROWS // _SEARCHED]
        layer = Layer(functional.linear, Operand(fitted, symmetric), Operand(site.weight))
        return fake_quantize(site.measured, search_clip_ends(fitted, symmetric, layer.errors(0)).qparams)

    def noisy(site: Site) -> Tensor:
        grid = fit_noisy(site.fitted[:: ROWS // _SEARCHED], site.weight, 4)
        return grid.dequantize(grid.quantize(site.measured))

    def minifloat(site: Site) -> Tensor:
        grid = GRIDS["minifloat"].fit(site.fitted, 4)
        return grid.dequantize(grid.quantize(site.measured))

    base = {"symmetric uniform, searched": median(site.output_db(uniform(site)) for site in sites)}
    what = "other linear layers of vit_nano, inputs of 4 bits, median"
    rows = {"noisy": noisy, "minifloat": minifloat}
    return {
        name: entry(what, median(s.output_db(make(s)) for s in sites), base, len(sites)) for name, make in rows.items()
    }


def repairs(bench: VitBench) -> Found:
    """Repairs of linear layers rounded to the nearest of 4 bits, on inputs of 8 bits."""
    figures: dict[str, list[float]] = {name: [] for name in ("nearest", "bias-correction", "tune-scales", "eora")}
    sites = bench.inner()
    for site in sites:
        inputs = weight_qparams(site.fitted, QuantSpec(8, symmetric=False))
        moments = LayerMoments(site.weight.shape[1])
        for exact in torch.split(site.fitted, ROWS // 16):
            moments.update(fake_quantize(exact, inputs), exact)
        grid = weight_qparams(site.weight, WEIGHT)
        codes = round_weights(site.weight, grid)
        rounded, rough = dequantize(codes, grid), fake_quantize(site.measured, inputs)
        scaled = tune_scales(site.weight, codes, grid, moments, site.bias)
        branch = eora(site.weight, rounded, moments, RANK)
        figures["nearest"].append(site.output_db(rough, rounded))
        figures["bias-correction"].append(
            site.output_db(rough, rounded, correct_bias(site.weight, rounded, moments, site.bias).bias)
        )
        figures["tune-scales"].append(site.output_db(rough, dequantize(codes, scaled.qparams), scaled.bias))
        low_rank = 0 if branch is None else branch.up @ branch.down
        figures["eora"].append(site.output_db(rough, rounded + low_rank))
    base = {"nearest": median(figures.pop("nearest"))}
    what = "outputs of the linear layers of vit_nano at W4A8, median"
    labels = {"eora": f"{what}, branches of rank {RANK}"}
    return {name: entry(labels.get(name, what), median(values), base, len(sites)) for name, values in figures.items()}


def sorted_groups(bench: VitBench) -> Found:
    """Channels sorted by range, weights of 4 bits in groups of 32: relative error of the reordered weights."""
    report = sort_by_range(copy.deepcopy(bench.graph), GROUPS)
    ratio = [site.after / site.before for site in report.sites]
    what = "weights of vit_nano behind GELU in 4 bits and groups of 32, squared error as a share of that in their order"
    return {"sort-by-range": entry(what, median(ratio) if ratio else 1.0, {}, len(ratio), unit="")}


def _narrowed(bench: VitBench) -> dict[str, Tensor]:
    """Every weight alone on a grid of 4 bits, by its path."""
    return {site.path: fake_quantize(site.weight, weight_qparams(site.weight, WEIGHT)) for site in bench.sites}


def sensitivities(bench: VitBench) -> Found:
    """How well scores order what a weight of 4 bits does to the predictions of the test images."""
    narrowed = _narrowed(bench)
    images, few = bench.images[:TRUTH], bench.calibration[:_ESTIMATE]
    truth = _divergences(bench, narrowed, images)
    known = measured_alone(
        {path: (4,) for path in narrowed},
        lambda path, _: kl_divergence(*_both(bench, {path: narrowed[path]}, few)),
    )
    scores = {
        "measured-sensitivity": {path: value for (path, _), value in known.items()},
        "hessian-trace": _by_trace(bench, narrowed, few),
        "fisher-sensitivity": _by_fisher(bench, narrowed, few),
        "relevance": _by_relevance(bench, few),
    }
    plain = {s.path: float((narrowed[s.path] - s.weight).square().sum() / s.weight.square().sum()) for s in bench.sites}
    base = {"relative error of the weight": rank_correlation(truth, plain)}
    what = f"rank correlation with the divergence that a 4-bit weight causes on {TRUTH} test images, vit_nano"
    return {k: entry(what, rank_correlation(truth, v), base, len(truth), unit="") for k, v in scores.items()}


def _both(bench: VitBench, weights: Mapping[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    return bench.with_weights({}, images), bench.with_weights(weights, images)


def _divergences(bench: VitBench, narrowed: Mapping[str, Tensor], images: Tensor) -> dict[str, float]:
    reference = bench.with_weights({}, images)
    return {p: kl_divergence(reference, bench.with_weights({p: w}, images)) for p, w in narrowed.items()}


def _by_trace(bench: VitBench, narrowed: Mapping[str, Tensor], images: Tensor) -> dict[str, float]:
    """HAWQ-V2's score, with the network's own predictions for labels."""
    module = copy.deepcopy(bench.many)
    for path in narrowed:
        owner, _, name = path.rpartition(".")
        value = fetch(module, path).detach().clone()
        delattr(module.get_submodule(owner), name)
        setattr(module.get_submodule(owner), name, nn.Parameter(value))
    labels = bench.with_weights({}, images).argmax(1)

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(network(batch[0])[0], batch[1])

    traces = hessian_trace(module, loss, [(images, labels)], list(narrowed), probes=20)
    return {s.path: perturbation(traces[s.path], s.weight, narrowed[s.path]) for s in bench.sites}


def _by_fisher(bench: VitBench, narrowed: Mapping[str, Tensor], images: Tensor) -> dict[str, float]:
    """Squared change of each output, weighted by its Fisher information."""
    nodes = {n.name: n for n in bench.many.graph.nodes}
    sources = {s.name: nodes[s.name].args[0].name for s in bench.sites}
    seen = record(bench.many, set(sources.values()), images)
    fisher = fisher_diagonal(bench.many, [(images,)], [s.name for s in bench.sites], draws=4)
    scores = {}
    for site in bench.sites:
        change = functional.linear(seen[sources[site.name]], narrowed[site.path] - site.weight)
        scores[site.path] = float((change.double().square().mean(0) * fisher[site.name]).sum())
    return scores


def _by_relevance(bench: VitBench, images: Tensor) -> dict[str, float]:
    shares = relevance(bench.many, [(images,)], [site.name for site in bench.sites])
    return {site.path: shares[site.name] for site in bench.sites}


def allocations(bench: VitBench) -> Found:
    """Weights of 4 and 8 bits in half of the bytes between: what the predictions of the test images lose."""
    few, images = bench.calibration[:_ESTIMATE], bench.images[:TRUTH]
    eight = QuantSpec(8, symmetric=True, granularity=PerChannel(0), narrow=True)
    stored = {
        (s.path, spec.bits): fake_quantize(s.weight, weight_qparams(s.weight, spec))
        for s in bench.sites
        for spec in (WEIGHT, eight)
    }
    reference = bench.with_weights({}, few)

    def loss(bits: Mapping[str, int], on: Tensor, exact: Tensor) -> float:
        return kl_divergence(exact, bench.with_weights({path: stored[path, b] for path, b in bits.items()}, on))

    scores = measured_alone({s.path: (4, 8) for s in bench.sites}, lambda p, b: loss({p: b}, few, reference))
    sizes = {s.path: (s.weight.numel(), len(s.weight)) for s in bench.sites}
    choices = [Choice(p, b, weight_bytes(sizes[p][0], b, sizes[p][1]), max(0.0, v)) for (p, b), v in scores.items()]
    ends = [sum(c.cost for c in choices if c.bits == b) for b in (4, 8)]
    budget = sum(ends) / 2
    best = ilp(choices, budget)
    limit = loss(best.bits, few, reference)
    searched = bisect(choices, lambda bits: loss(bits, few, reference) <= limit)
    exact = bench.with_weights({}, images)
    drawn = [loss(_drawn(choices, budget, seed), images, exact) for seed in range(9)]
    base = {"9 random choices, median": 1e3 * median(drawn)}
    what = f"divergence in thousandths of a nat on {TRUTH} test images, weights of vit_nano in {budget / 1e6:.2f} MB"
    rows = {"greedy": greedy(choices, budget), "ilp": best}
    found = {
        k: entry(what, 1e3 * loss(a.bits, images, exact), base, len(scores) // 2, unit="") for k, a in rows.items()
    }
    what = (
        "bytes of the weights of vit_nano at the divergence that ilp reaches on calibration images, as a share of ilp's"
    )
    found["bisect"] = entry(what, searched.cost / best.cost, {}, len(scores) // 2, unit="")
    return found


def _drawn(choices: list[Choice], budget: float, seed: int) -> dict[str, int]:
    """Widths that fill a budget in random order."""
    cost = {(c.name, c.bits): c.cost for c in choices}
    names = sorted({c.name for c in choices})
    random.Random(seed).shuffle(names)
    left = budget - sum(cost[name, 4] for name in names)
    bits = dict.fromkeys(names, 4)
    for name in names:
        if (more := cost[name, 8] - cost[name, 4]) <= left:
            bits[name], left = 8, left - more
    return bits


def block_importance(bench: VitBench) -> Found:
    """How well importances at the output of a block order what noise in its channels does to the predictions."""
    adds = [n for n in bench.many.graph.nodes if op_kind(n) == "add"]
    middle = adds[len(adds) // 2].name
    result = next(n for n in bench.many.graph.nodes if n.op == "output").args[0][0].name
    images = bench.calibration[:_ESTIMATE]
    outputs = record(bench.many, {middle}, images)[middle]
    suffix = extract(bench.many, [middle], [result]).requires_grad_(False)
    size = 0.5 * float(outputs.square().mean().sqrt())
    noise = size * torch.randn(outputs.shape[:-1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact, truth = suffix(outputs), {}
        for channel in range(outputs.shape[-1]):
            rough = outputs.clone()
            rough[..., channel] += noise
            truth[str(channel)] = kl_divergence(exact, suffix(rough))
    perturbed = perturbation_importance(suffix, outputs)
    drawn = block_fisher(suffix, outputs, draws=4).mean(0)
    what = "rank correlation with the divergence that noise in one channel of the middle block of vit_nano causes"
    spread = outputs.flatten(0, -2).std(0)
    base = {"deviation of the channel": rank_correlation(truth, _by_channel(spread))}
    rows = {"perturbation-importance": perturbed, "fisher": drawn}
    return {
        name: entry(what, rank_correlation(truth, _by_channel(values)), base, len(truth), unit="")
        for name, values in rows.items()
    }


def _by_channel(values: Tensor) -> dict[str, float]:
    means = values.reshape(-1, values.shape[-1]).double().mean(0)
    return {str(i): v for i, v in enumerate(means.tolist())}


def relu_mlps(bench: VitBench) -> Found:
    """Every MLP made one with ReLU: error of its output, and top-1 of the float network with all of them."""
    changed = copy.deepcopy(bench.many)
    nodes = {n.name: n for n in changed.graph.nodes}
    gelus = [n for n in nodes.values() if op_kind(n) == "gelu"]
    replaced, learned = [], []
    for gelu in gelus:
        first, second = gelu.args[0], next(iter(gelu.users))
        source = first.args[0].name
        inputs = record(bench.many, {source}, bench.calibration)[source]
        tensors = [fetch(bench.many, path_of(n, kind)) for n in (first, second) for kind in ("weight", "bias")]
        settings = ReluSettings(FitSettings(iterations=300), clip_quantile=1)
        mlp = relu_mlp(MlpWeights(*tensors), inputs, settings=settings)
        replaced.append(mlp.replaced_error)
        learned.append(mlp.error)
        _apply(changed, (first, second), mlp.weights)
        gelu.target, gelu.args, gelu.kwargs = aten.relu.default, (first,), {}
    changed.recompile()
    with torch.no_grad():
        logits = torch.cat([changed(x)[0] for x in torch.split(bench.images, 100)])
    top1, float_ = (100 * float((z.argmax(1).numpy() == bench.labels).mean()) for z in (logits, bench.float_logits))
    what = (
        f"top-1 % of vit_nano in float with ReLU in all MLPs, 128 images; error of their outputs "
        f"{100 * median(learned):.1f} % of the variance, {100 * median(replaced):.1f} % unlearned"
    )
    return {"relu-mlp": entry(what, top1, {"GELU": float_}, len(bench.labels), unit="")}


@torch.no_grad()
def _apply(gm: fx.GraphModule, layers: tuple[fx.Node, fx.Node], weights: MlpWeights) -> None:
    paths = [path_of(n, kind) for n in layers for kind in ("weight", "bias")]
    for path, value in zip(paths, weights.tensors(), strict=True):
        fetch(gm, path).copy_(value)


def token_weights(bench: VitBench) -> Found:
    """GPTQ with tokens weighted by the attention they receive, and with all tokens alike."""
    method, found = Method("rotate", "gptq", "mse"), {}
    for bits in (4, 3):
        weighted = measure(bench, lambda: bench.legalized(method, bits).simulation)  # noqa: B023 - called at once
        with mock.patch("edgeq.graph.solve.attention_received", lambda p: torch.ones(p.shape[-1])):
            alike = measure(bench, lambda: bench.legalized(method, bits).simulation)  # noqa: B023 - called at once
        found[bits] = (weighted, alike)
    what = "divergence in thousandths of a nat of vit_nano at W3A3, 1,000 test images"
    base = {
        "all tokens alike": 1e3 * found[3][1]["kl"],
        "W4A4": 1e3 * found[4][0]["kl"],
        "W4A4 alike": 1e3 * found[4][1]["kl"],
    }
    return {"token-weights": entry(what, 1e3 * found[3][0]["kl"], base, len(bench.labels), unit="")}


def batch_norm(bench: CnnBench) -> Found:
    """Batch norms re-estimated behind convolutions of 3 and 4 bits, nearest."""
    figures = {}
    batches = [(x,) for x in torch.split(bench.calibration, 64)]
    for bits in (4, 3):
        spec = QuantSpec(bits, symmetric=True, granularity=PerChannel(0), narrow=True)
        coarse = copy.deepcopy(bench.module)
        for layer in coarse.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.data = fake_quantize(layer.weight.data, weight_qparams(layer.weight.data, spec))
        before = bench.top1(coarse)
        reestimate_batch_norm(coarse, bench.module, batches)
        figures[bits] = (before, bench.top1(coarse))
    what = "top-1 % of cifar_cnn with convolutions of 3 bits, nearest"
    base = {"before": figures[3][0], "4 bits": figures[4][1], "4 bits before": figures[4][0]}
    return {"batch-norm": entry(what, figures[3][1], base, len(bench.labels), unit="")}


def distilled(bench: CnnBench) -> Found:
    """Activations of 4 bits calibrated on distilled inputs, on noise, and on photos."""
    shape = tuple(bench.images.shape[1:])
    made = distill_inputs(bench.module, shape, count=64, iterations=300, class_weight=0.1)
    inputs = {
        "distilled": made.inputs,
        "noise": torch.randn(made.inputs.shape, generator=torch.Generator().manual_seed(0)),
        "64 photos": bench.calibration[:64],
    }
    precision = Precision(8, 4, "mse", products_only=True)
    config, placement = place_scheme(bench.graph, bench.exporter, "integer", precision)
    figures = {}
    for name, images in inputs.items():
        samples = [(x,) for x in torch.split(images, 1)]
        statistics = calibrate(bench.graph, observed(bench.graph, placement), iter(samples))
        found = legalize(bench.graph, placement, config, bench.exporter.rules, statistics, "integer")
        figures[name] = bench.top1(batched(found.simulation, (bench.images[:1],)))
    what = "top-1 % of cifar_cnn at W8A4, calibrated without data"
    value = figures.pop("distilled")
    return {"distill-inputs": entry(what, value, figures, len(bench.labels), unit="")}
