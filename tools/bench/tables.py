"""Render the README's tables from the JSON in `results/`: everything between `<!-- NAME -->` and `<!-- end -->`.

python tools/bench/tables.py [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[2] / "README.md"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def export_table() -> str:
    """Every candidate of every benchmarked export."""
    lines = [
        "| model | candidate | MB | SQNR dB, median / worst | time / float | integer MACs | top-1 %: float, file |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted(RESULTS.glob("export_*.json")):
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        summary = result["summary"]
        float_mb = summary["float_bytes"] / 1e6
        for candidate in result["candidates"]:
            shipped = candidate["scheme"] == summary["scheme"]
            sqnr = min(candidate["fidelity_sqnr_db"].values(), key=lambda s: s["median"], default=None)
            metric = summary["metric"] if shipped else None
            score = f"{metric['float']:.1f}, {metric['quantized']:.1f} (n={metric['n']})" if metric else ""
            cells = [
                summary["model"],
                f"**{candidate['scheme']}** (ships)" if shipped else candidate["scheme"],
                f"{candidate['bytes'] / 1e6:.1f} of {float_mb:.1f}",
                f"{_number(sqnr['median'], 1)} / {_number(sqnr['worst'], 1)} (n={sqnr['n']})" if sqnr else "-",
                _number(candidate["latency"]["ratio"], 2) if candidate["latency"] else "-",
                f"{100 * candidate['file']['integer_mac_share']:.0f} %",
                score,
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def vit_nano_table() -> str:
    """How the shipped reference weights came to be, from the note that training wrote."""
    note = json.loads((README.parent / "models" / "weights" / "vit_nano.json").read_text(encoding="utf-8"))
    rows = {
        "parameters": f"{note['parameters']:,}",
        "data": note["data"],
        "training": f"{note['epochs']} epochs on {note['device']}, {note['seconds'] / 60:.0f} minutes",
        "float top-1": f"{100 * note['float_top1']:.1f} % of {note['n']:,} test images never trained or selected on",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def cost_table() -> str:
    """What an export costs in time and memory, and what calibration alone does."""
    lines = ["| what | seconds | peak MB |", "|---|---|---|"]
    for path in sorted(RESULTS.glob("export_*.json")):
        summary = json.loads(path.read_text(encoding="utf-8"))["summary"]
        lines.append(
            f"| export of {summary['model']}, three candidates | {sum(summary['seconds'].values()):.0f} "
            f"| {summary['peak_mb']:,} |"
        )
    path = RESULTS / "calibration_memory.json"
    if path.is_file():
        run = json.loads(path.read_text(encoding="utf-8"))["calibrate"]
        lines.append(
            f"| calibration of ViT-S alone, {run['images']} images, {run['tensors']} tensors | {run['seconds']:.0f} "
            f"| {run['peak_mb']:,.0f} |"
        )
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {"export": export_table, "cost": cost_table, "vit_nano": vit_nano_table}


def main() -> None:
    """Rewrite the README, or with `--check` fail when it is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    fresh = text
    for name, render in TABLES.items():
        start, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, _, rest = fresh.partition(start)
        fresh = before + start + render() + "\n" + end + rest.partition(end)[2]
    if args.check and fresh != text:
        sys.exit("README.md is out of date: python tools/bench/tables.py")
    README.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
