"""`edgeq methods [NAME]`: the names that options take and the methods of the library, with source and figures."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from edgeq.cli.catalogue import Method
from edgeq.cli.catalogue import methods as catalogue
from edgeq.cli.console import Console
from edgeq.cli.options import command
from edgeq.errors import UsageError, nearest


def complete_method(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of methods that begin with `incomplete`."""
    del ctx, param
    names = {m.name: m.summary for m in catalogue() if m.name.startswith(incomplete)}
    return [CompletionItem(name, help=summary) for name, summary in names.items()]


@command("methods", examples="edgeq methods\nedgeq methods gptq\nedgeq methods percentile:0.9999")
@click.argument("name", required=False, shell_complete=complete_method)
def methods(console: Console, name: str | None) -> None:
    """List schemes, methods, roundings, widths and what else the library has, or explain NAME.

    Raises:
        UsageError: EQ-U007 for an unknown name.
    """
    known = catalogue()
    if name is None:
        _list(console, known)
    else:
        wanted = name.partition(":")[0]
        found = tuple(m for m in known if m.name == wanted and (":" not in name or m.spelled != m.name))
        if not found:
            close = nearest(wanted, [m.name for m in known])
            hint = f"did you mean {close!r}? " if close else ""
            hint += "`edgeq methods` lists all"  # seventy names would bury the one that is meant
            raise UsageError(f"unknown method {name!r}", code="EQ-U007", hint=hint)
        known = found
        for index, method in enumerate(found):
            if index:
                console.result()
            _explain(console, method)
    console.emit_json(
        {
            "schema": "edgeq.methods/1",
            "ok": True,
            "methods": [m.to_dict() for m in known if m.option],
            "library": [m.to_dict() for m in known if not m.option],
        }
    )


def _list(console: Console, known: tuple[Method, ...]) -> None:
    console.result_table(
        ("option", "name", "what it does"), [(m.option, m.spelled, m.summary) for m in known if m.option]
    )
    console.result_table(
        ("concept", "name", "part of", "what it does"),
        [(m.concept, m.name, m.within, m.summary) for m in known if not m.option],
        title="\nlibrary: no option of their own, for code that imports edgeq",
    )
    console.result("\n`edgeq methods NAME`: source, deviations and figures")


def _explain(console: Console, method: Method) -> None:
    if method.option:
        use = f"edgeq export {method.option} {method.spelled}"
    else:
        use = f"library; part of {method.within}" if method.within else "library only: no option includes it"
    rows = [
        ("use", use),
        ("concept", method.concept),
        ("what it does", method.summary),
        ("source", ", ".join(filter(None, (method.source, method.part)))),
        ("code", method.code),
        ("deviation", method.deviation),
        ("measured", method.measured or "not measured"),
    ]
    console.result_table(("", method.spelled), [row for row in rows if row[1]])
