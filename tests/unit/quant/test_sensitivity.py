"""Sensitivities against closed forms, and against what really happens to a small trained network."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from edgeq.errors import DataError, InternalError, ModelError, UsageError
from edgeq.quant.sensitivity import (
    fisher_diagonal,
    hessian_trace,
    kl_divergence,
    mean_squared_error,
    measured,
    perturbation,
    rank_correlation,
    relevance,
)
from edgeq.quant.uniform import fake_quantize
from edgeq.quant.weights import weight_qparams
from edgeq.spec import PerChannel, QuantSpec

LAYERS = ("0", "2", "4", "6", "8")
WIDTHS = (2, 3, 4, 8)
Batch = tuple[Tensor, Tensor]


def quantized(weight: Tensor, bits: int) -> Tensor:
    return fake_quantize(weight, weight_qparams(weight, QuantSpec(bits, True, PerChannel(0), narrow=True)))


@contextmanager
def stored_at(net: nn.Module, bits: Mapping[str, int]) -> Iterator[None]:
    """The network with some weights on coarser grids."""
    before = {name: net.get_submodule(name).weight for name in bits}
    for name, width in bits.items():
        net.get_submodule(name).weight = nn.Parameter(quantized(before[name].detach(), width))
    yield
    for name, weight in before.items():
        net.get_submodule(name).weight = weight


def cross_entropy(net: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(net(batch[0]), batch[1])


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Sequential, Batch]:
    """Five layers that tell rings apart, trained in a moment, and fresh data."""
    torch.manual_seed(0)
    sizes = (8, 32, 24, 24, 16, 4)
    parts: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        parts += [nn.Linear(inputs, outputs), nn.Tanh()]
    net = nn.Sequential(*parts[:-1])
    x = torch.randn(768, 8)
    y = (x[:, :3].norm(dim=1) > 1.5).long() * 2 + (x[:, 3] * x[:, 4] > 0).long()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        cross_entropy(net, (x[:512], y[:512])).backward()
        optimizer.step()
    return net, (x[512:], y[512:])


def test_scores_order_what_really_happens(
    trained: tuple[nn.Sequential, Batch], record_property: Callable[[str, float], None]
) -> None:
    net, (x, y) = trained
    with torch.no_grad():
        reference = net(x)

    def loss(bits: Mapping[str, int]) -> float:
        with stored_at(net, bits), torch.no_grad():
            return kl_divergence(reference, net(x))

    one = measured(dict.fromkeys(LAYERS, WIDTHS), lambda name, bits: loss({name: bits}))
    traces = hessian_trace(net, cross_entropy, [(x, y)], [f"{n}.weight" for n in LAYERS], probes=10)
    curvature = {}
    for name in LAYERS:
        weight = net.get_submodule(name).weight
        for bits in WIDTHS:
            curvature[name, bits] = perturbation(traces[f"{name}.weight"], weight, quantized(weight.detach(), bits))
    generator = torch.Generator().manual_seed(3)
    draws = [torch.randint(0, len(WIDTHS), (len(LAYERS),), generator=generator).tolist() for _ in range(40)]
    assignments = [dict(zip(LAYERS, (WIDTHS[i] for i in draw), strict=True)) for draw in draws]
    truth = {i: loss(bits) for i, bits in enumerate(assignments)}

    def against_truth(scores: Mapping[tuple[str, int], float]) -> float:
        return rank_correlation({i: sum(scores[item] for item in a.items()) for i, a in enumerate(assignments)}, truth)

    found = {"measured": against_truth(one), "hessian": against_truth(curvature)}
    for score, correlation in found.items():
        record_property(score, correlation)
    assert found["measured"] >= 0.8
    assert found["hessian"] >= 0.5
    assert rank_correlation(one, curvature) >= 0.8


def test_measurements_resume_where_they_stopped(tmp_path: Path) -> None:
    journal, calls, ticks = tmp_path / "journal", [], []
    widths = {"a": (8, 4), "b": (8,)}

    def loss(name: str, bits: int) -> float:
        if name == "b" and len(calls) == 2:
            calls.append("stop")
            raise KeyboardInterrupt
        calls.append(name)
        return 0.1 / bits

    with pytest.raises(KeyboardInterrupt):
        measured(widths, loss, journal=journal, key="k")
    with journal.open("a") as file:
        file.write('["b", 8, 0.0')  # killed while writing
    found = measured(widths, loss, journal=journal, key="k", progress=ticks.append)
    assert calls == ["a", "a", "stop", "b"]
    assert found == {("a", 8): 0.1 / 8, ("a", 4): 0.1 / 4, ("b", 8): 0.1 / 8}
    assert ticks == [1, 1, 1]
    assert measured(widths, lambda name, bits: math.nan, journal=journal, key="k") == found
    assert len(journal.read_text().splitlines()) == 4


@pytest.mark.parametrize("cut", [0, 5])
def test_a_journal_cut_short_in_its_first_line_starts_again(tmp_path: Path, cut: int) -> None:
    journal = tmp_path / "journal"
    journal.write_text('{"schema": "edgeq'[:cut])
    assert measured({"a": (8,)}, lambda name, bits: 1.0, journal=journal) == {("a", 8): 1.0}
    assert measured({"a": (8,)}, lambda name, bits: 2.0, journal=journal) == {("a", 8): 1.0}


@pytest.mark.parametrize(
    "text",
    ["nonsense\n", '{"schema": "edgeq.sensitivity/1"}\n', '{"schema": "edgeq.sensitivity/1", "key": "k"}\n[1]\n'],
)
def test_a_damaged_journal_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "journal").write_text(text)
    with pytest.raises(DataError, match="damaged") as caught:
        measured({"a": (8,)}, lambda name, bits: 1.0, journal=tmp_path / "journal", key="k")
    assert caught.value.code == "EQ-D240"


def test_a_journal_of_another_model_is_refused(tmp_path: Path) -> None:
    measured({"a": (8,)}, lambda name, bits: 1.0, journal=tmp_path / "journal", key="one")
    assert json.loads((tmp_path / "journal").read_text().splitlines()[0])["key"] == "one"
    with pytest.raises(DataError, match="another model"):
        measured({"a": (8,)}, lambda name, bits: 1.0, journal=tmp_path / "journal", key="two")


def test_a_loss_that_is_not_finite_names_the_tensor() -> None:
    with pytest.raises(ModelError, match="head alone at 2 bits") as caught:
        measured({"head": (2,)}, lambda name, bits: math.inf)
    assert (caught.value.code, caught.value.place) == ("EQ-M241", "head")
    with pytest.raises(UsageError):
        measured({"head": ()}, lambda name, bits: 0.0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.1, 30), st.floats(-50, 50))
def test_kl_is_zero_for_equal_distributions_and_never_negative(seed: int, spread: float, offset: float) -> None:
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(seed)) * spread
    assert kl_divergence(logits, logits) == 0
    assert kl_divergence(logits, logits.double() + offset) == pytest.approx(0, abs=1e-9)
    assert kl_divergence(logits, logits.flip(-1)) >= 0


def test_kl_and_mse_by_hand() -> None:
    p, q = torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert kl_divergence(p, q) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert mean_squared_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])) == 2.0


@pytest.mark.parametrize("error", [kl_divergence, mean_squared_error])
def test_outputs_that_cannot_be_compared(error: object) -> None:
    assert callable(error)
    good = torch.zeros(2, 3)
    assert error(good, good / 0) == math.inf
    with pytest.raises(ModelError):
        error(good / 0, good)
    for bad in (torch.zeros(3, 2), torch.zeros(0)):
        with pytest.raises(InternalError) as caught:
            error(good, bad)
        assert caught.value.code == "EQ-Z240"


class Quadratic(nn.Module):
    """Two parameters with a known Hessian, one that is linear, one that is unused."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(4))
        self.linear, self.unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        half = torch.randn(10, 10, generator=torch.Generator().manual_seed(0))
        self.matrix = half @ half.T

    def loss(self, factor: float) -> Tensor:
        w = torch.cat([self.a.flatten(), self.b])
        return factor * w @ self.matrix @ w / 2 + self.linear.sum()


def loss(module: nn.Module, batch: float) -> Tensor:
    assert isinstance(module, Quadratic)
    return module.loss(batch)


def test_traces_of_a_quadratic() -> None:
    net, ticks = Quadratic().train(), []
    net.b.requires_grad_(False)
    found = hessian_trace(net, loss, [1.0, 3.0], ["a", "b", "linear", "unused"], probes=400, progress=ticks.append)
    for name, part in (("a", slice(0, 6)), ("b", slice(6, 10))):
        exact = 2 * float(net.matrix.diagonal()[part].sum())
        assert found[name].error > 0
        assert found[name].mean == pytest.approx(exact, abs=4 * found[name].error)
        assert found[name].error < 0.2 * exact
    assert found["linear"].mean == found["unused"].mean == 0
    assert found["a"].parameters == 6
    assert len(ticks) == 800
    assert net.training
    assert not net.b.requires_grad
    assert net.a.grad is None
    net.matrix = torch.eye(10)
    assert hessian_trace(net, loss, [1.0], ["a"], probes=1)["a"].mean == pytest.approx(6)
    assert hessian_trace(net, loss, [1.0], ["linear"], probes=1)["linear"].mean == 0


def test_perturbation_scales_with_the_error() -> None:
    net = Quadratic()
    net.matrix = torch.eye(10)
    trace = hessian_trace(net, loss, [1.0], ["b"], probes=1)["b"]
    weight = torch.randn(4, generator=torch.Generator().manual_seed(0))
    assert perturbation(trace, weight, weight) == 0
    assert perturbation(trace, weight, weight + 2) == pytest.approx(16)
    with pytest.raises(InternalError):
        perturbation(trace, torch.zeros(5), torch.zeros(5))
    net.matrix = -torch.eye(10)
    assert perturbation(hessian_trace(net, loss, [1.0], ["b"], probes=1)["b"], weight, weight + 2) == 0


def test_traces_that_cannot_be_estimated() -> None:
    net = Quadratic()
    with pytest.raises(UsageError, match="unknown parameter 'aa'"):
        hessian_trace(net, loss, [1.0], ["aa"])
    for batches, names, probes in (([], ["a"], 1), ([1.0], [], 1), ([1.0], ["a"], 0)):
        with pytest.raises(UsageError, match="no trace"):
            hessian_trace(net, loss, batches, names, probes=probes)
    with pytest.raises(ModelError, match="finite number"):
        hessian_trace(net, loss, [math.inf], ["a"], probes=1)
    assert hessian_trace(net, lambda m, b: torch.ones(()), [1.0], ["a"], probes=2)["a"].mean == 0


class Attention(nn.Module):
    """Fused attention, which has no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(x)[:, None]
        return nn.functional.scaled_dot_product_attention(y, y, y)


def test_fused_operations_without_second_derivative_are_explained() -> None:
    with pytest.raises(ModelError, match="differentiated twice") as caught:
        hessian_trace(Attention(), lambda m, b: m(b).square().sum(), [torch.ones(1, 3, 4)], ["project.weight"])
    assert caught.value.code == "EQ-M242"


class Classifier(nn.Module):
    """A dead path beside the live one, and an operation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dead, self.head = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stem(x).relu_() + 0 * self.dead(x))
        return logits


def classifier() -> tuple[Classifier, list[tuple[Tensor, ...]]]:
    torch.manual_seed(0)
    return Classifier(), [(torch.randn(8, 5),), (torch.randn(4, 5),)]


def test_fisher_of_logits_is_p_times_one_minus_p() -> None:
    net, batches = classifier()
    p = torch.cat([net(x).softmax(-1) for (x,) in batches])
    ticks: list[int] = []
    found = fisher_diagonal(net, batches, ["head", "stem"], draws=3000, progress=ticks.append)
    assert ticks == [1, 1]
    torch.testing.assert_close(found["head"], (p * (1 - p)).mean(0).double(), atol=0.01, rtol=0.02)
    # through one linear layer and the rectifier, sample by sample: diag(W^T F W)
    fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    alive = torch.cat([(net.stem(x) > 0).float() for (x,) in batches])
    w = net.head.weight
    exact = (torch.einsum("ci,ncd,di->ni", w, fisher, w) * alive).mean(0)
    torch.testing.assert_close(found["stem"], exact.double(), atol=0.01, rtol=0.05)


def test_importance_of_a_graph_equals_that_of_its_module() -> None:
    net, batches = classifier()
    names = ["stem", "head"]
    graph = fx.symbolic_trace(net)
    expected = fisher_diagonal(net, batches, names, seed=5)
    found = fisher_diagonal(graph, batches, names, seed=5)
    for name in names:
        torch.testing.assert_close(found[name], expected[name])
    assert relevance(graph, batches, ["x", *names])["head"] > 0


def test_importance_leaves_inputs_and_buffers_as_they_are() -> None:
    net, batches = classifier()
    graph = torch.fx.symbolic_trace(net)
    (name,) = (n.name for n in graph.graph.nodes if n.op == "placeholder")
    found = fisher_diagonal(graph, batches, [name])[name]
    assert found.shape == batches[0][0].shape[1:]
    assert float(found.sum()) > 0
    assert not any(x.requires_grad for batch in batches for x in batch)


def test_importance_needs_no_parameters_that_can_be_trained() -> None:
    net, batches = classifier()
    expected = fisher_diagonal(net, batches, ["stem"])["stem"]
    net.requires_grad_(False).train()
    torch.testing.assert_close(fisher_diagonal(net, batches, ["stem"])["stem"], expected)
    assert net.training
    assert all(p.grad is None for p in net.parameters())


def test_relevance_finds_the_live_path() -> None:
    net, batches = classifier()
    ticks: list[int] = []
    found = relevance(net, batches, ["stem", "dead"], progress=ticks.append)
    assert found == {"stem": 1.0, "dead": 0.0}
    assert ticks == [1, 1]
    assert relevance(net, batches, ["dead"]) == {"dead": 0.0}


def test_importance_that_cannot_be_estimated() -> None:
    net, batches = classifier()
    with pytest.raises(UsageError, match="unknown layer 'stemm'"):
        fisher_diagonal(net, batches, ["stemm"])
    for given_batches, names, draws in (([], ["stem"], 1), (batches, [], 1), (batches, ["stem"], 0)):
        with pytest.raises(UsageError, match="no importance"):
            fisher_diagonal(net, given_batches, names, draws=draws)
    with pytest.raises(ModelError, match="logits"):
        relevance(net, [(torch.full((2, 5), math.nan),)], ["stem"])
    with pytest.raises(ModelError, match="one entry a sample"):
        relevance(nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (2, 5))), [(torch.ones(2, 5),)], ["0"])
    net.spare = nn.Linear(1, 1)
    with pytest.raises(ModelError, match="never computed") as caught:
        fisher_diagonal(net, batches, ["spare"])
    assert caught.value.code == "EQ-M243"


def test_rank_correlation() -> None:
    first = {"a": 1.0, "b": 2.0, "c": 30.0, "d": 4.0}
    assert rank_correlation(first, {k: v**3 for k, v in first.items()}) == pytest.approx(1)
    assert rank_correlation(first, {k: -v for k, v in first.items()}) == pytest.approx(-1)
    for other in ({"a": 1.0, "b": 2.0}, dict.fromkeys(first, 1.0), {**first, "d": math.nan}):
        with pytest.raises(UsageError) as caught:
            rank_correlation(first, other)
        assert caught.value.code == "EQ-U246"
