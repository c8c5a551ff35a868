"""`edgeq devices [NAME]`: which targets are known, what each can run, and which devices are in reach."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from edgeq.cli.console import Console
from edgeq.cli.options import command
from edgeq.devices import get_target, targets
from edgeq.errors import UsageError


def complete_device(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of targets that begin with `incomplete`."""
    del ctx, param
    return [CompletionItem(n, help=t.description) for n, t in targets().items() if n.startswith(incomplete)]


@command(
    "devices",
    examples="""
    edgeq devices
    edgeq devices rpi4 --json
    edgeq devices --scan
    edgeq devices --setup qemu://rpi4
    edgeq devices --clean ssh://pi@raspberrypi
    """,
)
@click.argument("name", required=False, shell_complete=complete_device)
@click.option("--scan", "look", is_flag=True, help="List what could be a device for --on; nothing is connected to.")
@click.option("--setup", metavar="DEVICE", help="Fetch what qemu://rpi4 or qemu://rpi5 needs, once.")
@click.option("--clean", metavar="DEVICE", help="Remove what was stored on a device over ssh or adb.")
@click.option("--python", metavar="PATH", default="python3", help="Its interpreter, for --clean.")
def devices(console: Console, name: str | None, look: bool, setup: str | None, clean: str | None, python: str) -> None:
    """List the targets, or describe NAME; or look for, set up and clean the devices that --on takes.

    Each figure of a target comes with its source.

    Raises:
        UsageError: EQ-U046 for an unknown name, EQ-U873 for a device that cannot be set up or cleaned.
        DeviceError: Parts cannot be fetched, or the device cannot be reached.
    """
    if sum(bool(x) for x in (name, look, setup, clean)) > 1:
        message = "NAME, --scan, --setup and --clean are four different things to do"
        raise UsageError(message, code="EQ-U001", hint="edgeq devices --help")
    if look:
        _scan(console)
    elif setup is not None:
        _set_up(console, setup)
    elif clean is not None:
        _clean(console, clean, python)
    else:
        _targets(console, name)


def _scan(console: Console) -> None:
    from edgeq.devices.scan import scan

    found = scan()
    console.result_table(
        ("kind", "address", "usable", "description"),
        [(s.kind, s.address, "yes" if s.usable else "no", s.description) for s in found],
    )
    console.emit_json({"schema": "edgeq.scan/1", "ok": True, "found": [s.to_dict() for s in found]})


def _set_up(console: Console, device: str) -> None:
    from edgeq.devices.arm64 import BOARDS
    from edgeq.devices.arm64_setup import set_up

    board = device.removeprefix("qemu://")
    if board not in BOARDS:
        message, hint = f"{device!r} needs no setting up", f"one of: {', '.join(f'qemu://{b}' for b in BOARDS)}"
        raise UsageError(message, code="EQ-U873", place="--setup", hint=hint)
    with console.step(f"set up qemu://{board}"):
        root = set_up(board, console.say)
    console.result(f"ready: edgeq verify ARTIFACT --on qemu://{board}")
    console.emit_json({"schema": "edgeq.setup/1", "ok": True, "device": f"qemu://{board}", "folder": root})


def _clean(console: Console, device: str, python: str) -> None:
    from edgeq.devices.attached import open_device
    from edgeq.devices.computer import Computer

    opened = open_device(device, python=python)
    if not isinstance(opened, Computer) or not device.startswith(("ssh://", "adb://")):
        message, hint = f"nothing is ever stored on {device}", "give a device over ssh or adb"
        raise UsageError(message, code="EQ-U873", place="--clean", hint=hint)
    with console.step(f"clean {opened.name}"):
        removed = opened.clean()
    console.result(f"{opened.name}: {removed['artifacts']} artifacts removed, {removed['bytes'] / 1e6:.1f} MB")
    console.emit_json({"schema": "edgeq.clean/1", "ok": True, "device": opened.name, **removed})


def _targets(console: Console, name: str | None) -> None:
    if name is None:
        table = targets()
        rows = [(t.name, ", ".join(t.aliases) or None, ", ".join(t.runtimes), t.description) for t in table.values()]
        console.result_table(("device", "also", "runs", "description"), rows)
        console.emit_json(
            {"schema": "edgeq.devices/1", "ok": True, "devices": [target.to_dict() for target in table.values()]}
        )
        return
    details = get_target(name).to_dict()
    console.emit_json({"schema": "edgeq.device/1", "ok": True, **details})
    sources = details.pop("sources")
    console.result_table(
        ("figure", "value", "source"),
        [(key.replace("_", " "), _readable(value), sources.get(key)) for key, value in details.items()],
    )


def _readable(value: object) -> str | None:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_readable(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or None
    if isinstance(value, bool):
        return "yes" if value else "no"
    return None if value in ("", 0) else str(value)
