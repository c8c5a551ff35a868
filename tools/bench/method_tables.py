"""The tables of `docs/methods.md`: all methods with their figures, and fidelity by method and width."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from figures import WIDTHS, by_width, decibels, figures, read  # beside this file

from edgeq.cli import catalogue

RESULTS = Path(__file__).parent / "results"
MEASURED = Path(catalogue.__file__).parent / "measured.json"
_ABSENT = "not measured"
_HEADINGS = {"features": "the decoder's first convolution", "logits": "the map before the sigmoid", "map": "the map"}


def measured_json() -> str:
    """Text of `edgeq/cli/measured.json`: figures by their key in `methods.toml`."""
    keys = {m.figure for m in catalogue.methods() if m.figure}
    return json.dumps(figures(keys, RESULTS), indent=1) + "\n"


def methods_table() -> str:
    """Every method: source, code, deviation and figure, one table for each concept."""
    known = catalogue.methods()
    text = figures({m.figure for m in known if m.figure}, RESULTS)
    parts = []
    for concept in catalogue.CONCEPTS:
        lines = [
            f"### {concept}",
            "",
            "| method | what it does | paper | section | file | our deviation | measured here |",
            "|---|---|---|---|---|---|---|",
        ]
        for m in known:
            if m.concept != concept:
                continue
            name = f"`{m.option} {m.spelled}`" if m.option else f"`{m.spelled}`"
            file, _, symbol = m.code.partition(":")
            code = f"[{file}](../{file}) `{symbol}`"
            lines.append(
                _row([name, m.summary, m.source, m.part or "-", code, m.deviation or "-", text.get(m.figure, _ABSENT)])
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def vit_fidelity_table() -> str:
    """Median and worst SQNR of the ViT-S for every row and width, one table for each place."""
    document = read(RESULTS, "vit_fidelity")
    if not document.get("rows"):
        return f"{_ABSENT.capitalize()} yet: `python tools/bench/vit_fidelity.py --images FOLDER`"
    most = max(e["n"] for e in document["rows"])
    entries = [e for e in document["rows"] if e["n"] == most]
    calibration = max(e["calibration"] for e in entries)
    names = dict.fromkeys(e["row"] for e in entries)
    parts = [f"Median / worst SQNR in dB of {most} photos, {calibration} others calibrate; simulation of the integers."]
    for place, node in document["places"].items():
        lines = [
            f"At {_HEADINGS.get(place, place)} ({node}):",
            "",
            _row(["method", *(bits.upper() for bits in WIDTHS), "s", "MB"]),
            _row(["---"] * (len(WIDTHS) + 3)),
        ]
        for name in names:
            figures_of = by_width(RESULTS, name, place)
            cells = [_cell(figures_of, bits) for bits in WIDTHS]
            lines.append(_row([document["labels"][name], *cells, *_cost([e for e in entries if e["row"] == name])]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def vit_files_table() -> str:
    """What LiteRT makes of the whole recipe."""
    files = read(RESULTS, "vit_fidelity").get("files", [])
    if not files:
        return f"{_ABSENT.capitalize()} yet: `python tools/bench/vit_fidelity.py --images FOLDER --file`"
    lines = [
        "| widths | MB | map SQNR dB, median / worst | simulated | time / float (95 %) | integer MACs | partitions |",
        "|---|---|---|---|---|---|---|",
    ]
    for e in files:
        latency, seen, simulated = e["latency"], e["map_sqnr_db"], e["simulated_map_sqnr_db"]
        cells = [
            e["bits"].upper(),
            f"{e['bytes'] / 1e6:.1f} of {e['float_bytes'] / 1e6:.1f}",
            f"{decibels(seen['median'])} / {decibels(seen['worst'])} (n={e['n']})",
            f"{decibels(simulated['median'])} / {decibels(simulated['worst'])}",
            f"{latency['ratio']:.2f} ({latency['low']:.2f} to {latency['high']:.2f})",
            f"{100 * e['integer_mac_share']:.0f} %",
            str(e["partitions"]),
        ]
        lines.append(_row(cells))
    return "\n".join(lines)


def _cell(found: dict[str, Any], bits: str) -> str:
    if bits not in found:
        return "-"
    figure = found[bits]
    return "fails" if figure is None else f"{decibels(figure['median'])} / {decibels(figure['worst'])}"


def _cost(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Seconds (without the measurement) and memory of the dearest width."""
    seconds = [sum(v for k, v in e["seconds"].items() if k != "simulate") for e in entries if "seconds" in e]
    memory = [e["peak_mb"] for e in entries if "peak_mb" in e]
    return [f"{max(seconds):.0f}" if seconds else "-", f"{max(memory):,.0f}" if memory else "-"]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
