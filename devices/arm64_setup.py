"""Building an emulated Arm board: Debian's Python for Arm, the runtimes' wheels, and files that describe the CPU.

Nothing is installed on this machine: apt works on lists of its own, packages are only unpacked. Each part is made in a
folder beside its own and renamed when it is whole, so that an interrupted set-up goes on where it was.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from edgeq.devices.arm64 import BOARDS, CORES, EMULATOR, INSTALL, Core, arm64_dir, python_of, root_of
from edgeq.errors import DeviceError, MissingError

DEBS = ("python3", "python3-minimal", "libstdc++6", "libgomp1")
WHEELS = ("ai-edge-litert", "numpy", "openvino", "onnxruntime")
_PLATFORMS = (*tuple(f"manylinux_2_{n}_aarch64" for n in range(17, 36)), "manylinux2014_aarch64")
_SECONDS = 900


def set_up(board: str, step: Callable[[str], None]) -> Path:
    """Build a board, or what it still lacks; afterwards no network is needed.

    Args:
        board: Key of `edgeq.devices.arm64.BOARDS`.
        step: Told what is done.

    Returns:
        Its root folder.

    Raises:
        MissingError: EQ-P873, the emulator, apt or dpkg is absent.
        DeviceError: EQ-X880, something cannot be fetched.
    """
    for tool, hint in ((EMULATOR, INSTALL), ("apt-get", "use Debian or Ubuntu"), ("dpkg-deb", "use Debian or Ubuntu")):
        if shutil.which(tool) is None:
            raise MissingError(f"{tool} not found", code="EQ-P873", hint=hint)
    folder = arm64_dir()
    folder.mkdir(parents=True, exist_ok=True)
    base, site = folder / "base", folder / "site"
    if python_of(base) is None:
        step("Debian's Python for arm64")
        _whole(base, lambda partial: _unpack(folder / "apt", partial))
    if not site.is_dir():
        step("wheels for aarch64")
        python = python_of(base)
        assert python is not None
        _whole(site, lambda partial: _wheels(partial, python.name.removeprefix("python").replace(".", "")))
    step(f"the CPU of {BOARDS[board].board}")
    root = root_of(board)
    shutil.rmtree(root, ignore_errors=True)
    _whole(root, lambda partial: _describe_cpu(partial, base, BOARDS[board]))
    return root


def _whole(final: Path, make: Callable[[Path], None]) -> None:
    """Make a folder aside and give it its name last."""
    partial = final.with_name(f"{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    make(partial)
    partial.rename(final)


def _unpack(apt: Path, target: Path) -> None:
    """Fetch Debian packages with what they depend on, and unpack them."""
    for part in ("state/lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    settings: Mapping[str, object] = {
        "Dir::State": apt / "state",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",  # its own user could not write here
        "Debug::NoLocking": "true",
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    _command(["apt-get", *options, "-qq", "update"])
    _command(["apt-get", *options, "-qq", "-y", "--download-only", "install", *DEBS])
    for package in sorted((apt / "cache/archives").glob("*.deb")):
        _command(["dpkg-deb", "-x", str(package), str(target)])
    shutil.rmtree(apt, ignore_errors=True)
    _absolute_links(target)


def _absolute_links(root: Path) -> None:
    """Let links such as `/lib/...` stay inside: nothing changes the root here."""
    for link in [p for p in root.rglob("*") if p.is_symlink()]:
        to = os.readlink(link)  # noqa: PTH115
        if to.startswith("/"):
            link.unlink()
            link.symlink_to(os.path.relpath(root / to[1:], link.parent))


def _wheels(target: Path, version: str) -> None:
    """Fetch the runtimes, in the versions that are installed here, for an Arm Python `version` (`311`)."""
    wanted = []
    for name in WHEELS:
        with suppress(importlib.metadata.PackageNotFoundError):
            wanted.append(f"{name}=={importlib.metadata.version(name)}")
    if not wanted:
        raise MissingError("no runtime is installed here", code="EQ-P873", hint="pip install 'edgeq[tflite]'")
    platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
    kind = ["--python-version", version, "--implementation", "cp", "--only-binary=:all:"]
    _command([sys.executable, "-m", "pip", "-q", "install", "--target", str(target), *platforms, *kind, *wanted])


def _describe_cpu(root: Path, base: Path, core: Core) -> None:
    """A root folder of links to the shared one, with a `/proc` and a `/sys` that describe the core."""
    for entry in sorted(base.iterdir()):
        if entry.name not in ("proc", "sys"):
            (root / entry.name).symlink_to(Path("..") / base.name / entry.name)
    all_cores, mask = f"0-{CORES - 1}\n", f"{(1 << CORES) - 1:x}\n"
    cpus, node = "sys/devices/system/cpu", "sys/devices/system/node"
    files = {
        "proc/cpuinfo": core.cpuinfo,
        "proc/device-tree/model": f"{core.board}, emulated\0",
        **{f"{cpus}/{name}": all_cores for name in ("possible", "present", "online")},
        f"{cpus}/offline": "\n",
        f"{cpus}/kernel_max": f"{CORES - 1}\n",
        **{f"{node}/{name}": "0\n" for name in ("possible", "online")},
        f"{node}/node0/cpulist": all_cores,
        f"{node}/node0/cpumap": mask,
    }
    for n in range(CORES):
        one = f"{n}\n"
        topology = {
            "core_id": one,
            "physical_package_id": "0\n",
            **dict.fromkeys(("thread_siblings_list", "core_cpus_list"), one),
            **dict.fromkeys(("thread_siblings", "core_cpus"), f"{1 << n:x}\n"),
            **dict.fromkeys(("core_siblings_list", "package_cpus_list"), all_cores),
            **dict.fromkeys(("core_siblings", "package_cpus"), mask),
        }
        files |= {f"{cpus}/cpu{n}/topology/{name}": text for name, text in topology.items()}
        files |= {f"{cpus}/cpu{n}/regs/identification/midr_el1": core.midr, f"{cpus}/cpu{n}/online": "1\n"}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="ascii")


def _command(words: Sequence[str]) -> None:
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False)
        said = done.stderr.decode(errors="replace").strip().splitlines()
        if done.returncode == 0:
            return
    except subprocess.TimeoutExpired:
        said = [f"no end within {_SECONDS} s"]
    what = next((line for line in said if line.startswith(("E:", "ERROR"))), said[-1] if said else "nothing was said")
    message = f"{Path(words[0]).name} cannot fetch a part of the board: {what[:300]}"
    hint = "see whether there is a network, and run the same command again: it goes on where it was"
    raise DeviceError(message, code="EQ-X880", hint=hint)
