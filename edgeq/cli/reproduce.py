"""`edgeq reproduce BUNDLE`: the same bytes again."""

from __future__ import annotations

from pathlib import Path

import click

from edgeq.cli.console import Console
from edgeq.cli.options import command

_PATH = click.Path(path_type=Path)


@command(
    "reproduce", examples="edgeq reproduce out/vit_nano-rpi\nedgeq reproduce out/my-rpi --model my.onnx --calib photos"
)
@click.argument("bundle", type=_PATH)
@click.option("--model", type=_PATH, metavar="FILE", help="The model file, if it is elsewhere now.")
@click.option("--weights", type=_PATH, metavar="FILE", help="The checkpoint, if it is elsewhere now.")
@click.option("--calib", type=_PATH, metavar="PATH", help="The calibration images, if they are elsewhere now.")
def reproduce(console: Console, bundle: Path, **inputs: Path | None) -> int:
    """Build BUNDLE (a folder, or its manifest.json) again from its manifest and compare every file by hash.

    Exit code 1 when a file differs.

    Raises:
        EdgeqError: The bundle or its inputs cannot be read.
    """
    from edgeq.reproduce import reproduce as rebuild  # imports torch

    folder = bundle.parent if bundle.name == "manifest.json" else bundle
    done = rebuild(folder, inputs, console)
    rows = [(p, "same bytes") for p in done.equal] + [(p, "DIFFERENT") for p in done.different]
    rows += [(p, "not written") for p in done.missing]
    console.result_table(("file", "rebuilt"), rows)
    console.emit_json(
        {
            "schema": "edgeq.reproduce/1",
            "ok": done.passed,
            "equal": list(done.equal),
            "different": list(done.different),
            "missing": list(done.missing),
        }
    )
    return 0 if done.passed else 1
