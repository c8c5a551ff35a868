"""Residual streams: what belongs to them, and why some cannot be rotated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgeq.graph.capture import capture
from edgeq.graph.rewrite import aten, calls
from edgeq.graph.transforms.stream import Constant, Stream, axis_after, residual_streams
from tests.unit.graph.transforms.small_vits import Form, vit


def only(module: nn.Module, *shape: int) -> Stream:
    (stream,) = residual_streams(capture(module.eval(), (torch.randn(shape),)))
    return stream


def test_everything_of_a_vision_transformer_is_found() -> None:
    graph, _ = vit(Form(scaled=True, token="before", end="token", depth=2))
    (stream,) = residual_streams(graph)
    assert (stream.channels, stream.reason) == (8, "")
    branches = [f"blocks_{i}_{name}" for i in (0, 1) for name in ("attn_proj", "fc2")]
    assert stream.writers == ("stem", *branches)
    assert [(c.node, c.axis) for c in stream.constants] == [("token", 2), ("position", 2)]
    reads = {norm: [r.node for r in found] for norm, found in stream.norms.items()}
    assert reads["blocks_0_norm1"] == ["blocks_0_attn_qkv"]
    assert reads["blocks_1_norm2"] == ["blocks_1_fc1"]
    assert reads["norm"] == ["head"]
    assert stream.axes["stem"] == 1
    assert stream.axes["transpose"] == 2
    assert all(r.factor == 1 and not r.padded for found in stream.norms.values() for r in found)


@pytest.mark.parametrize("end", ["padded", "plain"])
def test_a_convolution_tells_whether_it_pads(end: str) -> None:
    graph, _ = vit(Form(qkv="three", token="after", end=end))
    (stream,) = residual_streams(graph)
    assert [r.padded for r in stream.norms["norm"]] == [end == "padded"]
    assert [r.node for r in stream.norms["blocks_0_norm1"]] == [f"blocks_0_attn_{n}" for n in "qkv"]


class Small(nn.Module):
    """A stream written by two linears, with `between` on it and `behind` its norm."""

    def __init__(
        self, between: Callable[[Tensor], Tensor] = lambda x: x, behind: Callable[[Tensor], Tensor] = lambda x: x
    ) -> None:
        super().__init__()
        self.first, self.twin = nn.Linear(4, 6), nn.Linear(4, 6)
        self.norm, self.second = nn.LayerNorm(6), nn.Linear(6, 3)
        self.between, self.behind = between, behind

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.behind(self.norm(self.between(self.first(x) + self.twin(x)))))


CONSTANT, LONE = torch.randn(5, 6), torch.randn(1)


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda x: x + 1.5, "adds a number"),
        (lambda x: torch.add(x, CONSTANT, alpha=2), "scales a term"),
        (lambda x: x + LONE, "adds the same constant to all channels"),
        (lambda x: x + torch.relu(x), "relu"),
        (lambda x: torch.tanh(x), "(tanh) writes into it"),
        (lambda x: torch.cat([x[..., :3], x[..., 3:]], -1) + x, "tears its channels apart"),
        (lambda x: x.flip(-1) + x, "tears its channels apart"),
        (lambda x: x + x.mean(1, keepdim=True), "(mean) writes into it"),
        (lambda x: x + x.transpose(0, 1).transpose(0, 2)[:, :5, :5].reshape(1, 5, -1)[..., :6], "tears"),
    ],
)
def test_a_stream_that_cannot_be_rotated_says_why(between: Callable[[Tensor], Tensor], reason: str) -> None:
    stream = only(Small(between), 1, 5, 4)
    assert reason in stream.reason
    assert list(stream.norms) == ["norm"]


@pytest.mark.parametrize(
    ("behind", "reason"),
    [
        (torch.relu, "(relu) reads norm"),
        (lambda x: x.flip(-1), "reads norm"),
        (lambda x: x.mean(-1, keepdim=True) + x, "reads norm"),
    ],
)
def test_a_norm_that_others_read_says_so(behind: Callable[[Tensor], Tensor], reason: str) -> None:
    assert reason in only(Small(behind=behind), 1, 5, 4).reason


def test_a_norm_that_is_an_output_is_no_norm_to_fold() -> None:
    class Ends(Small):
        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.first(x))

    assert "output" in only(Ends(), 1, 5, 4).reason


def test_a_stream_that_is_an_output_or_an_input_stays() -> None:
    class Shown(Small):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            y = self.first(x)
            return self.second(self.norm(y)), y

    assert "reads it" in only(Shown(), 1, 5, 4).reason
    assert "writes into it" in only(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)), 1, 5, 4).reason


def test_a_norm_over_tokens_too_is_left_alone() -> None:
    class Wide(Small):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm((5, 6))

    assert "does not normalize over the channels alone" in only(Wide(), 1, 5, 4).reason


def test_a_norm_whose_readers_multiply_by_a_number_keeps_the_factor() -> None:
    stream = only(Small(behind=lambda x: (x * 0.25)[:, 1:]), 1, 5, 4)
    assert [r.factor for r in stream.norms["norm"]] == [0.25]
    pooled = only(Small(behind=lambda x: x.mean(1) / 2), 1, 5, 4)
    assert [r.factor for r in pooled.norms["norm"]] == [0.5]


def test_constants_of_lower_rank_have_their_own_axis() -> None:
    stream = only(Small(lambda x: x + CONSTANT), 1, 5, 4)
    (constant,) = stream.constants
    assert isinstance(constant, Constant)
    assert (constant.axis, stream.axes["add_1"]) == (1, 2)


def test_two_streams_are_two() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Small(), Small()
            self.join = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.join(self.a(x)))

    streams = residual_streams(capture(Two().eval(), (torch.randn(1, 5, 4),)))
    assert [s.writers for s in streams] == [("a_first", "a_twin"), ("b_first", "b_twin")]


def test_a_network_without_layer_norm_has_none() -> None:
    graph = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval(), (torch.randn(1, 3, 8, 8),))
    assert residual_streams(graph) == []


def test_where_a_move_puts_an_axis() -> None:
    class Moves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x.transpose(1, 2)) + torch.relu(x.reshape(1, 3, 10)).sum() + torch.relu(x[:, :, 1:]).sum()

    graph = capture(Moves(), (torch.randn(1, 5, 6),))
    source = next(n for n in graph.graph.nodes if n.op == "placeholder")
    (turn,) = calls(graph, aten.transpose.int)
    (part,) = calls(graph, aten.slice.Tensor)
    (shape,) = calls(graph, aten.reshape.default)
    assert axis_after(turn, source, 2) == 1
    assert axis_after(part, source, 1) == 1
    assert axis_after(part, source, 2) is None
    assert axis_after(shape, source, 2) is None
