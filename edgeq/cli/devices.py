"""`edgeq devices [NAME]`: which targets are known, and what each can run."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from edgeq.cli.console import Console
from edgeq.cli.options import command
from edgeq.devices import get_target, targets


def complete_device(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of targets that begin with `incomplete`."""
    del ctx, param
    return [CompletionItem(n, help=t.description) for n, t in targets().items() if n.startswith(incomplete)]


@command("devices", examples="edgeq devices\nedgeq devices rpi4 --json")
@click.argument("name", required=False, shell_complete=complete_device)
def devices(console: Console, name: str | None) -> None:
    """List the targets, or describe NAME.

    Each figure of a target comes with its source.

    Raises:
        UsageError: EQ-U046 for an unknown name.
    """
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
