"""`edgeq verify ARTIFACT --on DEVICE`: whether a device computes what it should."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgeq.cli.console import Console
from edgeq.cli.options import command

if TYPE_CHECKING:
    from edgeq.artifact import Artifact
    from edgeq.devices.attached import Device

_PATH = click.Path(path_type=Path)
_Body = TypeVar("_Body", bound=Callable[..., Any])
_ON = """Device: local, ssh://[user@]host[:port], adb://[SERIAL], qemu://rpi4 or rpi5 for ARM64 in an emulator, qemu://BOARD
for generated C (mps2-an385, -an386, -an500, -an505, mps3-an547), or serial://PORT[?baud=N] for a board that runs it."""


@dataclass(frozen=True)
class Way:
    """How a device is used.

    Args:
        threads: Of the runtime.
        python: Interpreter of devices over ssh and adb.
        wait: Seconds to wait for another profiler.
    """

    threads: int
    python: str
    wait: float


def way_options(several: bool) -> Callable[[_Body], _Body]:
    """The options `--on`, which may be given several times, and those of `Way`."""
    on = {"multiple": True, "default": ("local",)} if several else {"default": "local"}
    options: Sequence[Callable[[_Body], _Body]] = (
        click.option("--on", metavar="DEVICE", help=" ".join(_ON.split()), **on),
        click.option(
            "--threads", type=click.IntRange(1, 1024), metavar="N", default=1, help="CPU threads (default 1)."
        ),
        click.option("--python", metavar="PATH", default="python3", help="Interpreter of a device over ssh or adb."),
        click.option(
            "--wait",
            type=click.FloatRange(0),
            metavar="S",
            default=60.0,
            help="Seconds to wait for another profiler (60).",
        ),
    )

    def declare(body: _Body) -> _Body:
        for option in reversed(options):
            body = option(body)
        return body

    return declare


def opened(path: Path, on: Sequence[str], way: Way, seconds: float, console: Console) -> tuple[Artifact, list[Device]]:
    """The artifact, every file checked against its hash, and the devices.

    Raises:
        InputError: Not an artifact, or a damaged one.
        UsageError: No such device.
    """
    from edgeq.artifact import Artifact  # imports numpy
    from edgeq.devices.attached import open_device

    told = lambda holder: console.say(f"waiting for {holder}, who measures there")  # noqa: E731
    devices = [
        open_device(address, way.threads, python=way.python, wait=way.wait, seconds=seconds, waiting=told)
        for address in on
    ]
    artifact = Artifact.open(path)
    artifact.verify_files()
    return artifact, devices


@command(
    "verify",
    examples="""
    edgeq verify out/vit_nano-rpi
    edgeq verify out/vit_nano-rpi --on ssh://pi@raspberrypi
    edgeq verify out/vit_micro-cortex-m4 --on qemu://mps3-an547
    edgeq verify out/vit_micro-cortex-m4 --on serial:///dev/ttyACM0
    """,
)
@click.argument("artifact", type=_PATH)
@way_options(several=False)
def verify(console: Console, artifact: Path, on: str, **way: Any) -> int:
    """Run ARTIFACT's golden vectors on a device and compare.

    Generated C must give every integer. Model files must reach the limits in the manifest: integer kernels differ
    between runtimes by single steps. Exit code 1 when they do not.

    Raises:
        EdgeqError: The artifact or the device cannot be used.
    """
    bundle, (device,) = opened(artifact, (on,), Way(**way), 1.0, console)
    with console.step(f"verify on {device.name}"):
        found = device.verify(bundle)
    result = found.to_dict()
    console.emit_json(result)
    name = bundle.manifest.model["name"]
    if found.max_lsb is not None:
        said = (
            "every integer equal" if found.exact else f"{result['different']} codes differ, by {found.max_lsb} at most"
        )
    elif found.exact:
        said = "every value equal"
    else:
        quality = result["sqnr_db"]
        median = "equal" if quality["median"] == math.inf else f"{quality['median']:.1f} dB"
        said = f"SQNR median {median}, worst {quality['worst']:.1f} dB"
        said += "" if result["agreement"] is None else f", same class in {100 * result['agreement']:.0f} %"
    console.result(f"{name} on {found.device}: {found.vectors} golden vectors, {said}")
    for note in result.get("notes", ()):
        console.result(f"note: {note}")
    console.result("passed" if found.passed else "FAILED")
    return 0 if found.passed else 1
