"""Render the README's tables from the JSON in `results/`: everything between `<!-- NAME -->` and `<!-- end -->`.

python tools/bench/tables.py [--check]
"""

from __future__ import annotations

import argparse
import json
import re
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


TABLES: dict[str, Callable[[], str]] = {"export": export_table}


def main() -> None:
    """Rewrite the README, or with `--check` fail when it is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    fresh = text
    for name, render in TABLES.items():
        pattern = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", re.DOTALL)
        body = f"{render()}\n"
        fresh = pattern.sub(lambda _, body=body: body, fresh)  # type: ignore[misc]
    if args.check and fresh != text:
        sys.exit("README.md is out of date: python tools/bench/tables.py")
    README.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
