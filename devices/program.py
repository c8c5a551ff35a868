"""Programs made of a generated C project: what its files are called, commands with a limit, what they print."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeq.errors import DeviceError

TEMPLATES = Path(__file__).with_name("templates")
LAYER_HOOK = "-DEDGEQ_LAYER=edgeq_layer_done"
SOURCES = ("", "_kernels", "_weights", "_vectors")
"""Of a project, behind its prefix."""
BOARD = "_board"
"""What reports to the outside of a board, likewise."""


@dataclass(frozen=True)
class Outcome:
    """The golden vectors on a device.

    Args:
        vectors: How many.
        different: Codes of the outputs that differ from the expected ones.
        largest: By how many steps, at most.
    """

    vectors: int
    different: int
    largest: int


def prefix_of(project: Path) -> str:
    """Prefix of the names of a C project.

    Raises:
        DeviceError: EQ-X500, `project` holds none.
    """
    found = sorted(project.glob("*_selftest.c"))
    if len(found) != 1:
        raise broken(project.name, f"{len(found)} self tests in {project} instead of one")
    return found[0].name.removesuffix("_selftest.c")


def outcome(project: Path, prefix: str, said: str) -> Outcome:
    """What a program printed about its golden vectors.

    Raises:
        DeviceError: EQ-X500, it printed nothing about them.
    """
    numbers = [re.search(rf"^{word} (\d+)$", said, re.MULTILINE) for word in ("DIFFERENT", "LARGEST")]
    header = (project / f"{prefix}_vectors.h").read_text(encoding="ascii")
    vectors = re.search(rf"{prefix}_VECTORS (\d+)", header)
    if None in numbers or vectors is None:
        raise broken(prefix, said)
    different, largest = (int(found[1]) for found in numbers if found is not None)
    return Outcome(int(vectors[1]), different, largest)


def numbers(said: str, word: str) -> list[int]:
    """Every `WORD number` that a program printed."""
    return [int(n) for n in re.findall(rf"^{word} (\d+)$", said, re.MULTILINE)]


def fill(template: str, prefix: str, values: Mapping[str, object], folder: Path) -> Path:
    """Write a template of this folder with its names and values filled in; returns the file."""
    text = (TEMPLATES / template).read_text(encoding="ascii").replace("NAME", prefix)
    for key, value in {"UPPER": prefix.upper(), **values}.items():
        text = text.replace(f"@{key}@", str(value))
    path = folder / template
    path.write_text(text, encoding="ascii")
    return path


def command(words: Sequence[str], seconds: float, codes: tuple[int, ...] = (0,)) -> str:
    """Output of a command, both streams.

    Raises:
        DeviceError: EQ-X500, it does not end in time or with one of `codes`.
    """
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
        raise broken(words[0], f"no answer within {seconds:g} s") from error
    said = done.stdout.decode("ascii", "replace")
    if done.returncode not in codes:
        raise broken(words[0], said)
    return said


def broken(what: str, said: str) -> DeviceError:
    """The error for a program that does not build, run or answer."""
    lines = [line for line in said.splitlines() if "error" in line] or said.splitlines() or ["nothing was said"]
    message = f"{what} failed: {lines[0][:200]}"
    hint = "run `make test` in the project, and report what it says"
    return DeviceError(message, code="EQ-X500", place=what, hint=hint)
