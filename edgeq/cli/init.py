"""`edgeq init [FOLDER]`: a commented `edgeq.toml` to start from."""

from __future__ import annotations

from pathlib import Path

import click

from edgeq.cli.console import Console
from edgeq.cli.options import command
from edgeq.config import FILE_NAME
from edgeq.config_keys import template
from edgeq.errors import UsageError


@command("init", examples="edgeq init\nedgeq init boards/kitchen --exist replace")
@click.argument("folder", default=".", type=click.Path(path_type=Path))
@click.option("--exist", type=click.Choice(["fail", "replace"]), default="fail", help="When the file exists.")
def init(console: Console, folder: Path, exist: str) -> None:
    """Write a commented edgeq.toml.

    It goes into FOLDER (default: here).

    Raises:
        UsageError: EQ-U005 when the file exists or FOLDER is no folder.
    """
    path = folder / FILE_NAME
    if not folder.is_dir():
        message, hint = f"{folder} is not a folder", f"mkdir -p {folder}"
        raise UsageError(message, code="EQ-U005", place=str(folder), hint=hint)
    if exist == "fail" and (path.exists() or path.is_symlink()):
        raise UsageError(f"{path} exists", code="EQ-U005", place=str(path), hint="edgeq init --exist replace")
    path.write_text(template(), encoding="utf-8")
    console.result(f"wrote {path}")
    console.emit_json({"schema": "edgeq.init/1", "ok": True, "path": path})
