"""`edgeq profile ARTIFACT --on DEVICE`: what an inference costs, in all and layer by layer."""

from __future__ import annotations

from pathlib import Path

import click

from edgeq.cli.console import Console
from edgeq.cli.options import command
from edgeq.cli.verify import on_option, opened

MOST = 10
_PATH = click.Path(path_type=Path)


@command(
    "profile",
    examples="""
    edgeq profile out/vit_nano-rpi
    edgeq profile out/vit_micro-cortex-m4 --on qemu://mps2-an386 --per-op
    """,
)
@click.argument("artifact", type=_PATH)
@on_option
@click.option("--runs", type=click.IntRange(1, 100_000), metavar="N", help="Timed runs (default: enough of them).")
@click.option("--per-op", is_flag=True, help="Every layer, not the dearest ten.")
@click.option("--threads", type=click.IntRange(1, 1024), metavar="N", default=1, help="CPU threads (default 1).")
def profile(console: Console, artifact: Path, on: str, runs: int | None, per_op: bool, threads: int) -> int:
    """Measure an inference of ARTIFACT, on its first golden vector.

    Model files are timed on this machine. Generated C is timed here, or its instructions are counted on an emulated
    board; they are the same in every run, and are not cycles.

    Raises:
        EdgeqError: The artifact or the device cannot be used.
    """
    bundle, device = opened(artifact, on, threads)
    with console.step(f"profile on {device.name}"):
        found = device.profile(bundle, runs or "auto")
    result = found.to_dict()
    console.emit_json(result)
    spread = "" if found.runs == 1 else f" median, {found.p90:,.3f} p90, {found.p99:,.3f} p99 of {found.runs} runs"
    figure = f"{found.p50:,.0f}" if found.unit == "instructions" else f"{found.p50:,.3f}"
    console.result(f"{bundle.manifest.model['name']} on {found.device}: {figure} {found.unit}{spread}")
    console.result("memory: " + ", ".join(f"{name} {size / 1024:.1f} KiB" for name, size in found.memory.items()))
    layers = result["layers"] if per_op else sorted(result["layers"], key=lambda c: -c["value"])[:MOST]
    if layers:
        digits = 0 if found.unit == "instructions" else 4
        rows = [(c["name"], c["op"], f"{c['value']:,.{digits}f}", f"{100 * c['share']:.1f} %") for c in layers]
        title = None if per_op else f"\nthe dearest of {len(result['layers'])} layers"
        console.result_table(("layer", "operation", found.unit, "share"), rows, title=title)
    for note in found.notes:
        console.result(f"note: {note}")
    return 0
