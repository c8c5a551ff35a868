"""The emulated boards: what is missing is said, and every core gives the interpreter's integers."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeq.devices import cortex_m
from edgeq.devices.cortex_m import MACHINES, missing_tools, run_emulated
from edgeq.errors import DeviceError, MissingError
from edgeq.exporters.c.project import write_project
from edgeq.spec import Precision
from tests.unit.exporters.odd_kernels import OddKernels
from tests.unit.exporters.test_c_project import NETWORKS, hostile
from tests.unit.graph.intgraphs import codes_of, lowered, noise


def test_a_missing_tool_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cortex_m, "COMPILER", "no-such-compiler")
    with pytest.raises(MissingError, match="no-such-compiler") as lacking:
        run_emulated(tmp_path, "cortex-m4")
    assert lacking.value.code == "EQ-P500" and "apt-get install" in str(lacking.value.hint)


ALL = [(name, core) for name in NETWORKS for core in MACHINES]
QUICK = (("attention", "cortex-m4"), ("gate_w4", "cortex-m55"))


@pytest.mark.skipif(bool(missing_tools()), reason=missing_tools())
@pytest.mark.parametrize("name, core", [pytest.param(*c, marks=() if c in QUICK else pytest.mark.slow) for c in ALL])
def test_every_core_gives_the_integers_of_the_interpreter(name: str, core: str, tmp_path: Path) -> None:
    made, shape, precision = NETWORKS[name]
    samples = noise(*shape, count=2)
    graph = lowered(made().eval(), samples, precision or Precision())
    write_project(graph, tmp_path, codes_of(graph, samples) + hostile(graph, 1))
    run = run_emulated(tmp_path, core, "-O2")
    assert run.outcome.different == 0
    assert len(run.layers) == len(graph.ops) and min(run.layers) > 0
    assert abs(run.total - sum(run.layers)) <= 60 * len(run.layers)


LEVELS = [(0, "cortex-m4", "-O3"), (1, "cortex-m55", "-Os")] + [
    pytest.param(seed, core, level, marks=pytest.mark.slow)
    for seed, level in ((2, "-O3"), (3, "-O2"), (4, "-Os"), (5, "-Og"), (6, "-O0"))
    for core in MACHINES
]


@pytest.mark.skipif(bool(missing_tools()), reason=missing_tools())
@pytest.mark.parametrize("seed, core, level", LEVELS)
def test_kernels_of_odd_shapes_are_exact_at_every_level(seed: int, core: str, level: str, tmp_path: Path) -> None:
    odd = OddKernels(seed)
    write_project(odd.graph, tmp_path, odd.vectors())
    assert run_emulated(tmp_path, core, level).outcome.different == 0


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_tools()), reason=missing_tools())
def test_counts_are_the_same_every_time_and_smaller_with_vector_instructions(tmp_path: Path) -> None:
    made, shape, _ = NETWORKS["cnn"]
    samples = noise(*shape, count=1)
    graph = lowered(made().eval(), samples)
    write_project(graph, tmp_path, codes_of(graph, samples))
    runs = [run_emulated(tmp_path, "cortex-m4"), run_emulated(tmp_path, "cortex-m4")]
    assert runs[0] == runs[1]
    plain = run_emulated(tmp_path, "cortex-m4", plain=True)
    assert plain.outcome.different == 0 and plain.total > runs[0].total


@pytest.mark.skipif(bool(missing_tools()), reason=missing_tools())
def test_a_program_that_does_not_build_says_why(tmp_path: Path) -> None:
    made, shape, _ = NETWORKS["mlp_w4"]
    graph = lowered(made().eval(), noise(*shape, count=1))
    write_project(graph, tmp_path, codes_of(graph, noise(*shape, count=1)))
    (tmp_path / "small_weights.c").write_text("#error broken\n")
    with pytest.raises(DeviceError, match="broken") as failed:
        run_emulated(tmp_path, "cortex-m4")
    assert failed.value.code == "EQ-X500"
