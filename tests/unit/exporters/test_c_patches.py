"""Operations in patches: the C gives the integers of the whole network, in less memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeq.exporters.c.project import write_project
from edgeq.graph.intgraph.file import load, save
from edgeq.graph.intgraph.graph import IntGraph, Patches
from edgeq.graph.intgraph.memory import arena_bound, plan_arena
from edgeq.graph.intgraph.patches import bands, image_rows, moved_bytes, patched, reach
from tests.unit.exporters.test_c_project import COMPILERS, hostile, selftest
from tests.unit.graph.intgraphs import SmallCnn, codes_of, lowered, noise


class Stem(nn.Module):
    """What a first stage may hold: strides, dilation, even kernels, a residual sum, a branch, pools, tables."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 5, padding=2, groups=8)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.side = nn.Conv2d(8, 4, 3, padding=2, dilation=2)
        self.down = nn.Conv2d(12, 6, 2, stride=2)
        self.last = nn.Conv2d(6, 5, 3, stride=3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.stem(image))
        y = nn.functional.hardswish(self.depthwise(x))
        x = nn.functional.relu6(self.pointwise(y) + x)
        x = torch.cat((nn.functional.max_pool2d(x, 3, 1, 1), nn.functional.silu(self.side(x))), dim=1)
        x = torch.sigmoid(self.down(x)) * 0.5
        x = self.last(nn.functional.avg_pool2d(x, 2, 1))
        return x.mean((2, 3))


@pytest.fixture(scope="module")
def stem() -> IntGraph:
    return lowered(Stem().eval(), noise(1, 3, 41, 30))


@pytest.mark.parametrize("line", COMPILERS)
def test_patches_give_the_same_integers(stem: IntGraph, line: str, tmp_path: Path) -> None:
    assert reach(stem) > 8
    inputs = codes_of(stem, noise(1, 3, 41, 30, count=2)) + hostile(stem, 1)
    for patches in (Patches(reach(stem), 5), Patches(4, 2)):
        folder = tmp_path / f"{patches.count}"
        made = write_project(patched(stem, patches), folder, inputs)
        assert made.arena.bytes <= plan_arena(stem).bytes
        assert selftest(folder, line) == "small: 0 of 25 codes differ\n"


@settings(max_examples=8)
@given(
    height=st.integers(9, 24),
    count=st.integers(2, 9),
    share=st.floats(0.1, 1),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 1),
)
def test_any_first_stage_in_any_number_of_patches(
    tmp_path_factory: pytest.TempPathFactory,
    height: int,
    count: int,
    share: float,
    kernel: int,
    stride: int,
    padding: int,
) -> None:
    torch.manual_seed(kernel)
    padding = min(padding, kernel // 2)
    layers = [nn.Conv2d(3, 4, kernel, stride, padding), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1, groups=4), nn.Hardswish()]
    module = nn.Sequential(*layers, nn.MaxPool2d(2, 1, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 3, 3, 2, 1))
    graph = lowered(module.eval(), noise(1, 3, height, 7))
    patches = Patches(max(1, round(share * reach(graph))), count)
    folder = tmp_path_factory.mktemp("patches")
    write_project(patched(graph, patches), folder, codes_of(graph, noise(1, 3, height, 7, count=1)) + hostile(graph, 1))
    assert " 0 of " in selftest(folder, "gcc -O1")


def test_every_row_is_written_once_and_held_while_it_is_read(stem: IntGraph) -> None:
    patches = Patches(reach(stem), 6)
    found = bands(stem, patches)
    for name, done in found.done.items():
        assert list(done) == sorted(done) and 0 < done[-1] <= image_rows(stem.tensors[name])
        base = found.base[name]
        assert all(0 <= b <= d and d - b <= found.rows[name] for b, d in zip(base, done, strict=True))


def test_memory_shrinks_with_more_patches_and_the_bound_holds(stem: IntGraph) -> None:
    graphs = [stem, *(patched(stem, Patches(reach(stem), n)) for n in (2, 4, 8))]
    sizes = [arena_bound(g) for g in graphs]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.6 * sizes[0]
    for graph in graphs:
        plan = plan_arena(graph)
        assert plan.bound == arena_bound(graph) <= plan.bytes and len(plan.live) == len(graph.ops)
    assert moved_bytes(graphs[1]) > 0 == moved_bytes(graphs[0])


def test_a_file_keeps_its_patches(stem: IntGraph, tmp_path: Path) -> None:
    save(patched(stem, Patches(5, 3)), tmp_path / "a.intgraph")
    assert load(tmp_path / "a.intgraph").patches == Patches(5, 3)


def test_what_is_no_image_ends_the_first_stage() -> None:
    graph = lowered(SmallCnn().eval(), noise(1, 3, 20, 20))
    assert type(graph.ops[reach(graph)]).__name__ == "Requantize"  # a crop
