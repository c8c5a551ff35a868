"""`edgeq methods [NAME]`: the names that `--method` and `--scheme` take."""

from __future__ import annotations

import click

from edgeq.cli.console import Console
from edgeq.cli.options import command
from edgeq.config_keys import METHODS, SCHEMES
from edgeq.errors import unknown_name


@command("methods", examples="edgeq methods\nedgeq methods percentile")
@click.argument("name", required=False)
def methods(console: Console, name: str | None) -> None:
    """List range methods and schemes, or describe NAME.

    Raises:
        UsageError: EQ-U007 for an unknown name.
    """
    rows = [
        ("--method", "percentile:P" if method == "percentile" else method, text) for method, text in METHODS.items()
    ] + [("--scheme", scheme, text) for scheme, text in SCHEMES.items()]
    if name is not None:
        wanted = name.partition(":")[0]
        known = [row[1] for row in rows]
        rows = [row for row in rows if row[1].partition(":")[0] == wanted]
        if not rows:
            raise unknown_name("method", name, dict.fromkeys(known), code="EQ-U007", command="edgeq methods")
    console.result_table(("option", "name", "what it does"), rows)
    console.emit_json(
        {
            "schema": "edgeq.methods/1",
            "ok": True,
            "methods": [{"option": option, "name": spelled, "summary": text} for option, spelled, text in rows],
        }
    )
