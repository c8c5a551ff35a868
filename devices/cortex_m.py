"""Generated C on an emulated Cortex-M: golden vectors compared, instructions counted layer by layer.

QEMU with `-icount shift=6` advances its clock by 64 ns an instruction, whatever the host does, so that the SysTick
timer of the guest counts instructions, to about one. They are instructions, not cycles: no wait states of flash, no
dual issue, no beats of vector instructions.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from edgeq.devices.frames import FrameReader, Report
from edgeq.devices.program import BOARD, SOURCES, Outcome, broken, command, fill, numbers, prefix_of
from edgeq.errors import MissingError, unknown_name

INSTALL = "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm"
COMPILER, EMULATOR = "arm-none-eabi-gcc", "qemu-system-arm"
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-pedantic", "-Werror")


@dataclass(frozen=True)
class Machine:
    """An emulated board.

    Args:
        board: QEMU's name.
        flags: Of the compiler, for its core.
        ticks: SysTick ticks in 64 ns, as a fraction: ticks an instruction.
        code: Address and size in KiB of the memory for code.
        flash: Likewise for constants.
        ram: Likewise for the arena and the stack.
    """

    board: str
    flags: tuple[str, ...]
    ticks: tuple[int, int]
    code: tuple[int, int] = (0, 1024)
    flash: tuple[int, int] = (0x100000, 3072)
    ram: tuple[int, int] = (0x20000000, 4096)


_HARD = "-mfloat-abi=hard"
MACHINES: Mapping[str, Machine] = MappingProxyType(
    {
        "cortex-m3": Machine("mps2-an385", ("-mcpu=cortex-m3",), (8, 5)),
        "cortex-m4": Machine("mps2-an386", ("-mcpu=cortex-m4", _HARD, "-mfpu=fpv4-sp-d16"), (8, 5)),
        "cortex-m7": Machine("mps2-an500", ("-mcpu=cortex-m7", _HARD, "-mfpu=fpv5-d16"), (8, 5)),
        "cortex-m33": Machine(
            "mps2-an505",
            ("-mcpu=cortex-m33", _HARD, "-mfpu=fpv5-sp-d16"),
            (32, 25),
            code=(0x10000000, 1024),
            flash=(0x10100000, 3072),
            ram=(0x38000000, 2048),
        ),
        "cortex-m55": Machine(
            "mps3-an547",
            ("-mcpu=cortex-m55", _HARD),
            (256, 125),
            code=(0, 512),
            flash=(0x01000000, 2048),
            ram=(0x20000000, 512),
        ),
    }
)
"""Emulated cores. SysTick runs at 25 MHz (M3, M4, M7), 20 MHz (M33) and 32 MHz (M55)."""


def machine_named(board: str) -> str:
    """The core of a machine of QEMU, key of `MACHINES`.

    Raises:
        UsageError: EQ-U601, there is no such machine here.
    """
    cores = {machine.board: core for core, machine in MACHINES.items()}
    if board not in cores:
        raise unknown_name("machine", board, cores, code="EQ-U601")
    return cores[board]


@dataclass(frozen=True)
class EmulatedRun:
    """What a run gave.

    Args:
        outcome: The golden vectors.
        machine: QEMU's name of the board.
        layers: Instructions of each layer for the first vector.
        total: Instructions of the whole network for it.
        code: Bytes of the network and its kernels, without constant arrays.
        constants: Bytes of the constant arrays.
        stack: Bytes of stack in use at most, the harness's included.
    """

    outcome: Outcome
    machine: str
    layers: tuple[int, ...]
    total: int
    code: int
    constants: int
    stack: int


def missing_tools() -> str:
    """What an emulated run lacks on this machine; empty when it lacks nothing."""
    lacking = [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]
    return f"{' and '.join(lacking)} not found; {INSTALL}" if lacking else ""


def run_emulated(
    project: Path, core: str, optimize: str = "-O3", plain: bool = False, seconds: float = 120
) -> EmulatedRun:
    """Build a generated project for a core, run it in QEMU and compare its golden vectors.

    Args:
        project: Folder that `edgeq.exporters.c.project.write_project` wrote.
        core: Key of `MACHINES`.
        optimize: Of the compiler.
        plain: Leave out the paths for vector instructions.
        seconds: When to give up.

    Raises:
        MissingError: EQ-P500, no compiler or no emulator.
        DeviceError: EQ-X500, the program does not build, run or answer.
    """
    lacking = missing_tools()
    if lacking:
        raise MissingError(lacking, code="EQ-P500", hint=INSTALL)
    machine, prefix = MACHINES[core], prefix_of(project)
    with tempfile.TemporaryDirectory(prefix="edgeq-") as scratch:
        folder = Path(scratch)
        program = build(project, core, folder, (optimize, *(["-DEDGEQ_PLAIN_C"] if plain else [])))
        sizes = {part: _text_bytes(folder / f"{prefix}{part}.o", seconds) for part in SOURCES}
        emulate = [EMULATOR, "-M", machine.board, "-nographic", "-monitor", "none", "-serial", "none"]
        options = ["-semihosting-config", "enable=on,target=native", "-icount", "shift=6", "-kernel", str(program)]
        said = command([*emulate, *options], seconds)
    ticks, instructions = machine.ticks
    reports = [event for event in FrameReader().feed(said.encode("ascii", "replace")) if isinstance(event, Report)]
    stack = numbers(said, "STACK")
    if not (reports and stack):
        raise broken(core, said)
    report = reports[0]
    return EmulatedRun(
        outcome=Outcome(report.begin.vectors, report.different, report.largest),
        machine=machine.board,
        layers=tuple(n * instructions // ticks for n in report.layers),
        total=report.ticks[0] * instructions // ticks,
        code=sizes[""] + sizes["_kernels"],
        constants=sizes["_weights"],
        stack=stack[0],
    )


def _text_bytes(file: Path, seconds: float) -> int:
    """Code and constants of an object file."""
    return int(command(["arm-none-eabi-size", str(file)], seconds).splitlines()[1].split()[0])


def build(project: Path, core: str, scratch: Path, flags: tuple[str, ...] = ("-O3",)) -> Path:
    """Compile and link a generated project with its start-up for an emulated board.

    Args:
        project: Folder that `edgeq.exporters.c.project.write_project` wrote.
        core: Key of `MACHINES`.
        scratch: Where objects and the program go.
        flags: Further ones of the compiler; `-DEDGEQ_UART=ADDRESS` reports there, for ever, instead of by semihosting.

    Returns:
        The program.

    Raises:
        DeviceError: EQ-X500, it does not build.
    """
    machine, prefix = MACHINES[core], prefix_of(project)
    regions = {"code": machine.code, "flash": machine.flash, "ram": machine.ram}
    values = {name: f"ORIGIN = {start:#x}, LENGTH = {size}K" for name, (start, size) in regions.items()}
    harness, script = (fill(name, prefix, values, scratch) for name in ("cortex_m.c", "cortex_m.ld"))
    program = scratch / "program.elf"
    hooks = [f"-DEDGEQ_LAYER={prefix}_layer_done", "-DEDGEQ_TICKS=edgeq_ticks"]
    cpu = [*machine.flags, "-mthumb", *flags, "-ffunction-sections", *hooks]
    objects = []
    for source in [*(project / f"{prefix}{part}.c" for part in (*SOURCES, BOARD)), harness]:
        objects.append(str(scratch / f"{source.stem}.o"))
        strict = ("-std=gnu99",) if source == harness else WARNINGS
        command([COMPILER, *cpu, *strict, "-I", str(project), "-c", str(source), "-o", objects[-1]], 120)
    link = ["-nostartfiles", "-Wl,--gc-sections", "-T", str(script)]
    command([COMPILER, *cpu, *objects, *link, "-o", str(program)], 120)
    return program
