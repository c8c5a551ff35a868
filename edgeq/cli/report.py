"""`edgeq report BUNDLE`: one HTML page to hand on."""

from __future__ import annotations

from pathlib import Path

import click

from edgeq.cli.console import Console
from edgeq.cli.options import command
from edgeq.errors import InputError, UsageError

_PATH = click.Path(path_type=Path)


@command(
    "report",
    examples="""
    edgeq report out/vit_nano-rpi
    edgeq validate out/vit_nano-rpi --data test.npz --json > v.json; edgeq report out/vit_nano-rpi --validation v.json
    """,
)
@click.argument("bundle", type=_PATH)
@click.option("--validation", type=_PATH, multiple=True, metavar="FILE", help="What `edgeq validate --json` printed.")
@click.option("--out", type=_PATH, metavar="FILE", help="Page to write (default BUNDLE.html beside it).")
def report(console: Console, bundle: Path, validation: tuple[Path, ...], out: Path | None) -> int:
    """Write what is known about BUNDLE as one HTML page that needs nothing else.

    Raises:
        EdgeqError: The bundle or a validation cannot be read, or the page cannot be written.
    """
    from edgeq.report import open_validation, write_report  # imports numpy

    folder = bundle.parent if bundle.name == "manifest.json" else bundle
    page = out or folder.resolve().with_suffix(".html")
    if page.is_dir():
        raise UsageError(f"{page} is a folder", code="EQ-U770", place=str(page), hint="name a file with --out")
    try:
        write_report(folder, [open_validation(path) for path in validation], page)
    except OSError as error:
        raise InputError(
            f"{page} cannot be written: {error.strerror or error}",
            code="EQ-I771",
            place=str(page),
            hint="name another file with --out",
        ) from error
    size = page.stat().st_size
    console.result(f"{page} ({size / 1000:.0f} kB)")
    console.emit_json({"schema": "edgeq.report/1", "ok": True, "page": str(page), "bytes": size})
    return 0
