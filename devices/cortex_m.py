"""Generated C on an emulated Cortex-M: golden vectors compared, instructions counted layer by layer.

QEMU with `-icount shift=6` advances its clock by 64 ns an instruction, whatever the host does, so that the SysTick
timer of the guest counts instructions, to about one. They are instructions, not cycles: no wait states of flash, no
dual issue, no beats of vector instructions.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from edgeq.errors import DeviceError, MissingError

_TEMPLATES = Path(__file__).with_name("templates")
_INSTALL = "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm"
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


@dataclass(frozen=True)
class EmulatedRun:
    """What a run gave.

    Args:
        different: Codes of the golden vectors that differ.
        layers: Instructions of each layer for the first vector.
        total: Instructions of the whole network for it.
        text_bytes: Code and constants of the linked program.
    """

    different: int
    layers: tuple[int, ...]
    total: int
    text_bytes: int


def missing_tools() -> str:
    """What an emulated run lacks on this machine; empty when it lacks nothing."""
    lacking = [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]
    return f"{' and '.join(lacking)} not found; {_INSTALL}" if lacking else ""


def run_emulated(
    project: Path, prefix: str, core: str, optimize: str = "-O3", plain: bool = False, seconds: float = 120
) -> EmulatedRun:
    """Build a generated project for a core, run it in QEMU and compare its golden vectors.

    Args:
        project: Folder that `edgeq.exporters.c.project.write_project` wrote.
        prefix: Its prefix.
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
        raise MissingError(lacking, code="EQ-P500", hint=_INSTALL)
    machine = MACHINES[core]
    with tempfile.TemporaryDirectory() as scratch:
        program = _build(project, prefix, machine, Path(scratch), (optimize, *(["-DEDGEQ_PLAIN_C"] if plain else [])))
        text = _command(["arm-none-eabi-size", str(program)], seconds).splitlines()[1].split()[0]
        emulate = [EMULATOR, "-M", machine.board, "-nographic", "-monitor", "none", "-serial", "none"]
        options = ["-semihosting-config", "enable=on,target=native", "-icount", "shift=6", "-kernel", str(program)]
        said = _command([*emulate, *options], seconds, codes=(0, 1))
    ticks, instructions = machine.ticks
    counts = [int(n) * instructions // ticks for n in re.findall(r"^(?:LAYER|TOTAL) (\d+)$", said, re.MULTILINE)]
    different = re.search(r"^DIFFERENT (\d+)$", said, re.MULTILINE)
    if different is None or not counts:
        raise _broken(core, said)
    return EmulatedRun(int(different[1]), tuple(counts[:-1]), counts[-1], int(text))


def _build(project: Path, prefix: str, machine: Machine, scratch: Path, flags: tuple[str, ...]) -> Path:
    """The linked program."""
    selftest = (project / f"{prefix}_selftest.c").read_text(encoding="ascii")
    buffers = "\n".join(re.findall(r"^static u?int\d+_t output.*;$", selftest, re.MULTILINE))
    arguments = re.search(rf"{prefix}_run\((.*), arena\)", selftest)
    compare = re.findall(r"^        for \(int i.*?^        \}", selftest, re.MULTILINE | re.DOTALL)
    values = {
        "UPPER": prefix.upper(),
        "buffers": buffers,
        "arguments": arguments[1] if arguments else "",
        "compare": "\n".join(compare).replace("different += ", "different += (uint32_t)"),
        "code": f"ORIGIN = {machine.code[0]:#x}, LENGTH = {machine.code[1]}K",
        "flash": f"ORIGIN = {machine.flash[0]:#x}, LENGTH = {machine.flash[1]}K",
        "ram": f"ORIGIN = {machine.ram[0]:#x}, LENGTH = {machine.ram[1]}K",
    }
    for name in ("cortex_m.c", "cortex_m.ld"):
        text = (_TEMPLATES / name).read_text(encoding="ascii").replace("NAME", prefix)
        for key, value in values.items():
            text = text.replace(f"@{key}@", str(value))
        (scratch / name).write_text(text, encoding="ascii")
    program = scratch / "program.elf"
    parts = (prefix, f"{prefix}_kernels", f"{prefix}_weights", f"{prefix}_vectors")
    sources = [str(project / f"{part}.c") for part in parts]
    cpu = [*machine.flags, "-mthumb", *flags, "-ffunction-sections", "-DEDGEQ_LAYER=edgeq_layer_done"]
    objects = []
    for source in [*sources, str(scratch / "cortex_m.c")]:
        objects.append(str(scratch / f"{Path(source).stem}.o"))
        strict = WARNINGS if "cortex_m" not in source else ("-std=gnu99",)
        _command([COMPILER, *cpu, *strict, "-I", str(project), "-c", source, "-o", objects[-1]], 120)
    link = ["-nostartfiles", "-Wl,--gc-sections", "-T", str(scratch / "cortex_m.ld")]
    _command([COMPILER, *cpu, *objects, *link, "-o", str(program)], 120)
    return program


def _command(words: list[str], seconds: float, codes: tuple[int, ...] = (0,)) -> str:
    """Output of a command, both streams."""
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _broken(words[0], f"no answer within {seconds:g} s") from error
    said = done.stdout.decode("ascii", "replace")
    if done.returncode not in codes:
        raise _broken(words[0], said)
    return said


def _broken(what: str, said: str) -> DeviceError:
    lines = [line for line in said.splitlines() if "error" in line] or said.splitlines() or ["nothing was said"]
    message = f"{what} failed: {lines[0][:200]}"
    return DeviceError(
        message, code="EQ-X500", place=what, hint="run `make test` in the project, and report what it says"
    )
