"""`edgeq inspect BUNDLE`: what is in the file, layer by layer, from the bundle's evidence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeq.cli.console import Console
from edgeq.cli.options import command

if TYPE_CHECKING:
    from edgeq.artifact import Artifact
    from edgeq.diagnosis import Diagnosis
    from edgeq.spec import TensorPlan

_PATH = click.Path(path_type=Path)

WORST = 15
"""Layers that `--diff` shows."""


@command("inspect", examples="edgeq inspect out/vit_nano-rpi\nedgeq inspect out/vit_nano-rpi --diff")
@click.argument("bundle", type=_PATH)
@click.option("--layers", is_flag=True, help="Every quantized operation, the largest own error first.")
@click.option("--diff", is_flag=True, help="Against float, simulated and in the file: the worst layers, and why.")
@click.option("--tensors", is_flag=True, help="Every grid: bits, scale, zero point, where it comes from.")
def inspect(console: Console, bundle: Path, layers: bool, diff: bool, tensors: bool) -> int:
    """Show what BUNDLE contains, after checking every file against its hash.

    Raises:
        InputError: Not a bundle, or a file is damaged.
    """
    from edgeq.artifact import Artifact  # imports numpy

    artifact = Artifact.open(bundle.parent if bundle.name == "manifest.json" else bundle)
    artifact.verify_files()
    manifest = artifact.manifest
    console.result(f"{manifest.model['name']} for {manifest.target}: {manifest.scheme}, {manifest.config['bits']}")
    console.result_table(
        ("file", "bytes", "sha256"), [(f["path"], f["bytes"], f["sha256"][:16]) for f in manifest.files]
    )
    found: dict[str, Any]
    if manifest.networks:
        found = {}
        for name in manifest.networks:
            console.result(f"\n{name}")
            found[name] = _network(console, Artifact.open(artifact.folder / name), layers, diff, tensors)
        found = {"networks": found, "evidence": artifact.evidence()}
    else:
        found = _network(console, artifact, layers, diff, tensors)
    console.emit_json({"schema": "edgeq.inspect/1", "ok": True, "manifest": manifest.to_dict(), **found})
    return 0


def _network(console: Console, artifact: Artifact, layers: bool, diff: bool, tensors: bool) -> dict[str, Any]:
    """Show what the file of one network holds, and return it for the JSON object."""
    from edgeq.diagnosis import diagnose

    evidence, plan = artifact.evidence(), artifact.plan()
    shipped = next(c for c in evidence["candidates"] if c["scheme"] == evidence["shipped"])
    console.result_table(("operation kernel", "count"), list(shipped["file"]["census"].items()), title="in the file")
    share = 100 * shipped["file"]["integer_mac_share"]
    console.result(f"integer multiply-accumulates: {share:.1f} % of {shipped['file']['macs'] / 1e6:.1f} M")
    console.result(f"weights equal to the plan: {shipped['file']['weights_equal_plan']} of {len(plan.weights())}")
    floats = [(f["op"], f["count"], f["reason"]) for f in shipped["float_ops"]]
    console.result_table(("float operation", "count", "reason"), floats, title="\nfloat islands")
    if layers:
        rows = [(r["name"], r["op"], r["mode"], _db(r["own_db"]), _db(r["total_db"])) for r in shipped["layers"]]
        console.result_table(("layer", "op", "mode", "own error dB", "with all before dB"), rows, title="\nlayers")
    found = diagnose(evidence, artifact.manifest.config) if diff else []
    if diff:
        _show_diff(console, shipped, found, tuple(plan.ops))
    if tensors:
        grids = [(t.name, t.role, t.bits, *_scales(t), t.provenance) for t in plan.tensors.values()]
        console.result_table(("tensor", "role", "bits", "scales", "largest scale", "from"), grids, title="\ngrids")
    return {
        "candidate": shipped,
        "diff": [row.to_dict() for row in found] if diff else None,
        "plan": plan.to_dict() if tensors else None,
    }


def _show_diff(console: Console, shipped: Mapping[str, Any], rows: Sequence[Diagnosis], order: Sequence[str]) -> None:
    """Float against quantized, layer by layer, simulated and in the file, and what of it is no matter of rounding."""
    from edgeq.diagnosis import first_lowered

    worst = min((f["median"] for f in shipped["fidelity_sqnr_db"].values()), default=None)
    predicted = shipped["simulated_sqnr_db"]
    shown = [
        (
            row.layer,
            row.op,
            row.weight_bits,
            _db(row.own_db),
            _db(row.network_db),
            _db(row.file_db),
            f"{row.cause or 'none'}{', mostly inherited' if row.inherited else ''}",
            row.advice,
        )
        for row in rows[:WORST]
    ]
    headers = ("layer", "op", "bits", "alone dB", "simulation dB", "file dB", "cause", "would help")
    console.result_table(headers, shown, title="\nfloat against quantized, the largest own error first")
    if len(rows) > WORST:
        console.result(f"{len(rows) - WORST} layers more: edgeq inspect --diff --json")
    unknown = Counter(row.op for row in rows if row.file_db is None)
    if unknown:
        kinds = ", ".join(f"{count} {op}" for op, count in unknown.most_common())
        console.result(
            f"file dB of {len(rows) - sum(unknown.values())} of {len(rows)}; not told apart in the file: {kinds}"
        )
    lowered = first_lowered((row.layer for row in rows if row.lowered), order)
    if lowered is not None:
        console.result(f"the file is far below its simulation, first at {lowered}: it computes something else there")
    if worst is not None and predicted is not None:
        console.result(
            f"outputs: the file reaches {worst:.1f} dB; its simulation, of which all but file dB is, {predicted:.1f} dB"
        )


def _db(value: Any) -> float | None:
    return None if value is None or math.isinf(value) else round(float(value), 1)


def _scales(tensor: TensorPlan) -> tuple[int, float | None]:
    """Number of scales and the largest one; a table of levels has none."""
    from edgeq.spec import QParams  # imports numpy

    grid = tensor.qparams
    return (grid.scale.size, float(grid.scale.max())) if isinstance(grid, QParams) else (0, None)
