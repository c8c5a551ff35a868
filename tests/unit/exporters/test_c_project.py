"""Generated C gives the interpreter's integers: gcc, clang, and clang with sanitizers, warnings as errors."""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeq.errors import UsageError
from edgeq.exporters.c.names import identifier
from edgeq.exporters.c.project import CProject, write_project
from edgeq.graph.intgraph.graph import IntGraph
from edgeq.graph.intgraph.interpret import interpret
from edgeq.graph.intgraph.memory import plan_arena
from edgeq.spec import Precision
from tests.unit.exporters.odd_kernels import OddKernels
from tests.unit.graph.intgraphs import Sample, SmallAttention, SmallCnn, codes_of, lowered, noise

SANITIZERS = "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all"
COMPILERS = (
    "gcc -O2",
    f"clang {SANITIZERS}",
    *(pytest.param(line, marks=pytest.mark.slow) for line in ("gcc -Os", "clang -O2", f"gcc {SANITIZERS}")),
)


def compiler(line: str) -> tuple[str, str]:
    """Compiler and flags of a test; skipped where it cannot link a program."""
    name, _, flags = line.partition(" ")
    if shutil.which(name) is None or shutil.which("make") is None:
        pytest.skip(f"{name} or make is not installed: apt-get install {name} make")
    probe = [name, *flags.split(), "-x", "c", "-", "-o", "/dev/null"]
    done = subprocess.run(probe, input=b"int main(void) { return 0; }", capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"{line} cannot link: apt-get install libclang-rt-14-dev")
    return name, flags


def selftest(folder: Path, line: str) -> str:
    """What `make test` says; it must succeed."""
    name, flags = compiler(line)
    subprocess.run(["make", "-s", "clean"], cwd=folder, check=True)
    words = ["make", "-s", f"CC={name}", f"CFLAGS={flags} -Werror", "test"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def hostile(graph: IntGraph, count: int = 3) -> list[list[np.ndarray[Any, Any]]]:
    """Inputs of extreme codes: what is proved at lowering holds for every input, not only for likely ones."""
    chance = np.random.default_rng(0)
    tensors = [graph.tensors[port.tensor] for port in graph.inputs]
    ends = [[chance.choice([t.low, t.high], t.size).astype(t.dtype) for t in tensors] for _ in range(count)]
    return [
        *ends,
        [np.full(t.size, t.low, t.dtype) for t in tensors],
        [np.full(t.size, t.high, t.dtype) for t in tensors],
    ]


def project(graph: IntGraph, samples: list[Sample], folder: Path) -> CProject:
    return write_project(graph, folder, codes_of(graph, samples) + hostile(graph))


class Mlp(nn.Module):
    """Linear layers of odd sizes, 4-bit weights inside."""

    def __init__(self, sizes: tuple[int, ...] = (13, 11, 9, 6, 3)) -> None:
        super().__init__()
        torch.manual_seed(3)
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.layers = nn.Sequential(*(part for layer in layers for part in (layer, nn.GELU())))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Gate(nn.Module):
    """A squeeze-and-excitation block: a product of two computed tensors, one of which repeats; 4-bit convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.inner = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.gate = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.inner(torch.relu(self.first(x))))
        x = nn.functional.interpolate(x, size=(14, 15))  # each pixel twice, three times
        return x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))


NETWORKS = {
    "cnn": (SmallCnn, (1, 3, 20, 20), None),
    "attention": (SmallAttention, (1, 7, 12), None),
    "mlp_w4": (Mlp, (5, 13), Precision(4, 8)),
    "gate_w4": (Gate, (1, 2, 7, 5), Precision(4, 8)),
}


@pytest.fixture(scope="module", params=list(NETWORKS))
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[IntGraph, Path, CProject]:
    made, shape, precision = NETWORKS[request.param]
    samples = noise(*shape)
    graph = lowered(made().eval(), samples, precision)
    folder = tmp_path_factory.mktemp(request.param)
    return graph, folder, project(graph, samples, folder)


@pytest.mark.parametrize("line", COMPILERS)
def test_c_gives_the_integers_of_the_interpreter(written: tuple[IntGraph, Path, CProject], line: str) -> None:
    graph, folder, _ = written
    codes = sum(graph.tensors[port.tensor].size for port in graph.outputs)
    assert selftest(folder, line) == f"small: 0 of {9 * codes} codes differ\n"


@pytest.mark.parametrize("line", COMPILERS)
def test_kernels_of_odd_shapes_are_exact(line: str, tmp_path: Path) -> None:
    odd = OddKernels(7)
    write_project(odd.graph, tmp_path, odd.vectors())
    assert selftest(tmp_path, line).startswith("odd: 0 of ")


def test_a_changed_vector_fails_the_self_test(written: tuple[IntGraph, Path, CProject]) -> None:
    _, folder, made = written
    compiler("gcc -O2")
    subprocess.run(["make", "-s", "clean"], cwd=folder, check=True)
    vectors = folder / f"{made.prefix}_vectors.c"
    kept = vectors.read_text()
    head, tail = kept.split("expected0", 1)
    vectors.write_text(head + "expected0" + re.sub(r"\{(-?\d+)", lambda m: f"{{{int(m[1]) ^ 1}", tail, count=1))
    try:
        done = subprocess.run(["make", "-s", "CC=gcc", "test"], cwd=folder, capture_output=True, text=True, check=False)
    finally:
        vectors.write_text(kept)
    assert done.returncode != 0 and "1 of" in done.stdout


def test_the_arena_is_the_bound_and_buffers_never_meet(written: tuple[IntGraph, Path, CProject]) -> None:
    graph, folder, made = written
    assert made.arena.bytes == made.arena.bound == max(made.arena.live)
    assert f"arena, bound      {made.arena.bound} " in (folder / "memory.txt").read_text()
    last = {name: index for index, op in enumerate(graph.ops) for name in op.inputs}
    born = {op.output: index for index, op in enumerate(graph.ops)}
    placed = [(name, at) for name, at in made.arena.offsets.items() if not name.startswith("scratch")]
    for name, at in placed:
        for other, place in placed:
            together = born[name] <= last[other] and born[other] <= last[name]
            if name < other and together:
                sizes = graph.tensors[name].bytes, graph.tensors[other].bytes
                assert at + sizes[0] <= place or place + sizes[1] <= at, (name, other)


def test_only_used_kernels_are_written_and_names_have_the_prefix(written: tuple[IntGraph, Path, CProject]) -> None:
    graph, folder, made = written
    source = (folder / f"{made.prefix}_kernels.c").read_text()
    kinds = {type(op).__name__ for op in graph.ops}
    for kernel, kind in (("softmax", "Softmax"), ("norm", "Norm"), ("depthwise", "Depthwise"), ("concat", "Concat")):
        assert (f"void small_{kernel}(" in source) == (kind in kinds)
    for path in folder.glob("*.[ch]"):
        text = path.read_text()
        assert not re.search(r"\b(malloc|calloc|free|float|double|alloca)\b", text.replace("no allocation", "")), path
        assert "NAME" not in text and "@" not in text, path


def test_two_models_link_into_one_program(tmp_path: Path) -> None:
    name, _ = compiler("gcc -O2")
    samples = noise(3, 6)
    for prefix, seed in (("first", 0), ("second", 1)):
        torch.manual_seed(seed)
        graph = lowered(nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 2)).eval(), samples)
        write_project(graph, tmp_path, codes_of(graph, samples), prefix)
    main = (
        '#include "first.h"\n#include "second.h"\n#include <stdalign.h>\n'
        "static alignas(8) uint8_t arena[FIRST_ARENA_BYTES + SECOND_ARENA_BYTES];\n"
        "static const int8_t x[FIRST_INPUT0_CODES]; static int16_t y[FIRST_OUTPUT0_CODES];\n"
        "int main(void)\n{\n    const int misaligned = second_run(x, y, arena + 1);\n"
        "    return first_run(x, y, arena) | second_run(x, y, arena) | (misaligned != -1);\n}\n"
    )
    (tmp_path / "both.c").write_text(main)
    parts = [f"{p}{suffix}.c" for p in ("first", "second") for suffix in ("", "_kernels", "_weights")]
    words = [name, "-std=c11", "-Wall", "-Werror", "both.c", *parts, "-o", "both"]
    subprocess.run(words, cwd=tmp_path, check=True)
    assert subprocess.run([str(tmp_path / "both")], check=False).returncode == 0


def test_equal_networks_give_equal_bytes(tmp_path: Path) -> None:
    samples = noise(3, 6)
    graph = lowered(nn.Linear(6, 4), samples)
    for folder in ("a", "b"):
        project(graph, samples, tmp_path / folder)
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


class Drawn(nn.Module):
    """A random chain of operations on an image."""

    def __init__(self, steps: list[tuple[str, int, int]], channels: int) -> None:
        super().__init__()
        torch.manual_seed(len(steps))
        self.steps, self.layers = steps, nn.ModuleList()
        for kind, size, width in steps:
            layer: nn.Module = nn.Identity()
            if kind == "conv":
                layer, channels = nn.Conv2d(channels, width, size, padding=size // 2), width
            elif kind == "depthwise":
                layer = nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels)
            elif kind == "norm":
                layer = nn.LayerNorm(channels)
            self.layers.append(layer)
        self.head = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.gelu(x)
        for (kind, size, _), layer in zip(self.steps, self.layers, strict=True):
            if kind == "norm":
                x = layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            elif kind == "pool":
                x = nn.functional.max_pool2d(x, size, 1, size // 2)
            elif kind == "softmax":
                x = x.softmax(-1)
            elif kind == "twice":
                x = torch.cat((x, nn.functional.gelu(x)), 2)
            else:
                x = nn.functional.silu(layer(x))
        return self.head(x.flatten(2).transpose(1, 2))


STEPS = st.tuples(
    st.sampled_from(["conv", "depthwise", "norm", "pool", "softmax", "twice"]),
    st.sampled_from([1, 3]),
    st.integers(1, 5),
)


@pytest.mark.slow
@settings(max_examples=20, phases=(Phase.reuse, Phase.generate))  # every example is compiled
@given(
    steps=st.lists(STEPS, min_size=1, max_size=4),
    shape=st.tuples(st.integers(1, 4), st.integers(3, 6), st.integers(3, 6)),
    bits=st.sampled_from([4, 8]),
)
def test_random_networks_are_bit_exact(
    steps: list[tuple[str, int, int]], shape: tuple[int, int, int], bits: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    samples = noise(1, *shape, count=2)
    graph = lowered(Drawn(steps, shape[0]).eval(), samples, Precision(bits, 8))
    folder = tmp_path_factory.mktemp("drawn")
    project(graph, samples, folder)
    assert "small: 0 of" in selftest(folder, f"gcc {SANITIZERS}")


def test_names_become_identifiers() -> None:
    assert identifier("ViT nano/8") == "vit_nano_8"
    assert identifier("8bit") == "m_8bit"
    assert identifier("while") == "m_while"
    with pytest.raises(UsageError) as refused:
        identifier("日本")
    assert refused.value.code == "EQ-U500"


def test_a_network_that_returns_its_input_copies_it(tmp_path: Path) -> None:
    class Same(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = torch.relu(x)
            return y, y

    samples = noise(1, 6)
    graph = lowered(Same(), samples)
    assert len({port.tensor for port in graph.outputs}) == 2
    first, second = interpret(graph, codes_of(graph, samples)[0])
    assert np.array_equal(first, second)
    assert plan_arena(graph).bytes == 0
    project(graph, samples, tmp_path)
    assert "0 of" in selftest(tmp_path, "gcc -O2")
