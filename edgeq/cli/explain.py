"""`edgeq explain [CODE]`: the long text behind an error code."""

from __future__ import annotations

import textwrap

import click

from edgeq.cli.console import Console
from edgeq.cli.options import command
from edgeq.explain import explanations, get_explanation


@command("explain", examples="edgeq explain EQ-U001\nedgeq explain")
@click.argument("code", required=False)
def explain(console: Console, code: str | None) -> None:
    """Explain the error CODE, or list all codes.

    Raises:
        UsageError: EQ-U008 for an unknown code.
    """
    if code is None:
        console.result_table(("code", "meaning"), [(key, entry.title) for key, entry in explanations().items()])
        entries = [{"code": key, "title": entry.title} for key, entry in explanations().items()]
        console.emit_json({"schema": "edgeq.codes/1", "ok": True, "codes": entries})
        return
    key, entry = get_explanation(code)
    console.result(f"{key}: {entry.title}\n\n{textwrap.fill(entry.text, 100)}\n\nTry: {entry.action}")
    console.emit_json({"schema": "edgeq.explain/1", "ok": True, "code": key, **entry.to_dict()})
