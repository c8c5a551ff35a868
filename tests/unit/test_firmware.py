"""Programs for microcontrollers: what does not fit says by how much, and what runs is the interpreter's integers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgeq import firmware
from edgeq.devices import get_target, host
from edgeq.devices.host import missing_compiler, run_on_host
from edgeq.errors import DeviceError, InternalError, MissingError
from edgeq.exporters.base import Memory
from edgeq.exporters.c.memory import memory_of
from edgeq.graph.intgraph.file import load, save
from tests.unit.graph.intgraphs import SmallAttention, SmallCnn, lowered, noise

MEMORY = Memory(600 * 1024, 100 * 1024, 90 * 1024, 90 * 1024, ("head", 300 * 1024), ("stem", 80 * 1024))


def test_what_does_not_fit_says_by_how_much_and_which_layer_decides() -> None:
    board = get_target("nucleo-f446re")
    (flash,) = firmware.misfits(board, MEMORY)
    assert "512 KiB of flash: 112 KiB too much" in flash and "head (300 KiB)" in flash
    (ram,) = firmware.misfits(board, replace(MEMORY, flash=1, ram=125 * 1024))
    assert "128 KiB of RAM: 1 KiB too much" in ram and "stem (80 KiB)" in ram
    assert not firmware.misfits(get_target("cortex-m4"), MEMORY)  # a bare core: its memory varies
    assert not firmware.misfits(get_target("nrf52840-dk"), MEMORY)
    assert not firmware.misfits(board, None)


def test_patches_are_taken_where_ram_is_short_and_only_there(tmp_path: Path) -> None:
    network, wide = tmp_path / "model.intgraph", get_target("nucleo-f446re")
    graph = lowered(SmallCnn().eval(), noise(1, 3, 64, 64))
    save(graph, network)
    plain = memory_of(graph)
    assert not firmware.run_in_patches(network, wide, "auto") and not firmware.run_in_patches(network, wide, "none")
    assert not firmware.run_in_patches(network, get_target("cortex-m4"), "auto")
    short = replace(wide, ram_kb=(plain.ram + firmware.STACK) // 1024 - 1)
    assert firmware.misfits(short, plain) and firmware.run_in_patches(network, short, "auto")
    made = memory_of(load(network))
    assert not firmware.misfits(short, made) and made.patches is not None
    assert made.patches.ram_whole == plain.ram and made.patches.count == 2
    assert firmware.run_in_patches(network, wide, "7")
    seven = memory_of(load(network)).patches
    assert seven is not None and seven.count == 7 and seven.moved > made.patches.moved
    assert firmware.run_in_patches(network, replace(wide, ram_kb=5), "auto")  # too small anyway: as small as it gets
    assert memory_of(load(network)).ram < made.ram


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    samples = noise(1, 7, 12)
    save(lowered(SmallAttention().eval(), samples), tmp_path / "model.intgraph")
    inputs = [tuple(x.numpy() for x in sample) for sample in samples]
    firmware.write_firmware(tmp_path, "small net", tmp_path / "model.intgraph", inputs)
    return tmp_path


@pytest.mark.skipif(bool(missing_compiler()), reason=missing_compiler())
def test_the_c_is_run_and_compared(bundle: Path) -> None:
    found = firmware.measured(bundle, replace(get_target("cortex-m4"), machine=""))
    assert found["host"]["different"] == 0 and found["host"]["vectors"] == 4
    assert found["emulated"] is None and "QEMU has no machine" in found["not_measured"][0]
    run = run_on_host(bundle / "c", runs=3)
    assert len(run.runs) == 3 and len(run.layers) > 10 and min(run.runs) > 0


@pytest.mark.skipif(bool(missing_compiler()), reason=missing_compiler())
def test_c_that_differs_is_a_bug(bundle: Path) -> None:
    weights = bundle / "c" / "small_net_weights.c"
    text = weights.read_text()
    place = text.index("{\n    ", text.index("weight")) + 6
    weights.write_text(text[:place] + "99, " + text[text.index(", ", place) + 2 :])
    run = run_on_host(bundle / "c")
    assert run.outcome.different > 0 and run.outcome.largest > 0
    with pytest.raises(InternalError) as bug:
        firmware.measured(bundle, get_target("cortex-m4"))
    assert bug.value.code == "EQ-Z601"


def test_without_tools_the_reasons_stand_in_the_evidence(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = firmware.measured(bundle, get_target("cortex-m4"))
    assert found["host"] is None and found["emulated"] is None
    assert len(found["not_measured"]) == 2 and all("apt-get install" in reason for reason in found["not_measured"])
    with pytest.raises(MissingError) as lacking:
        run_on_host(bundle / "c")
    assert lacking.value.code == "EQ-P600" and lacking.value.hint == host.INSTALL


@pytest.mark.skipif(bool(missing_compiler()), reason=missing_compiler())
def test_programs_that_do_not_build_or_end_are_errors(bundle: Path) -> None:
    with pytest.raises(DeviceError, match="no answer within"):
        run_on_host(bundle / "c", seconds=0.001)
    with pytest.raises(DeviceError, match="0 self tests"):
        run_on_host(bundle)
    (bundle / "c" / "small_net.c").write_text("#error broken\n")
    with pytest.raises(DeviceError, match="broken") as failed:
        run_on_host(bundle / "c")
    assert failed.value.code == "EQ-X500"
