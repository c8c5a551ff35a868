"""What the benchmarks measured, in a few words for each method: the figures of `edgeq methods` and `docs/methods.md`.

A key in `edgeq/cli/methods.toml` names the benchmark and the entry:

- `vit ROW`: SQNR of the map over all widths (`vit_fidelity.json`)
- `gain ROW ROW`: how much the second row's map is better than the first's
- `file WIDTHS`: the written file of the whole recipe
- `attention KIND`: SQNR of an attention's output at 4 bits (`attention_codes.json`)
- `budget OPTIONS`: a row beside both ends of its table (`budgets.json`)
- `polish ROW`: AbsRel of `depth_nano` with activations on a grid, beside the uniform grid (`depth_grids.json`)
- `library NAME`: a study of `library_methods.py`, beside what it is compared with (`library_methods.json`)
- `accuracy ROW`: top-1 of `vit_nano` over all widths (`vit_accuracy.json`)
- `export SCHEME`, `ships`: the candidates of the ViT-S, and which of them ships (`export_vit_s_focus.json`)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Results = Mapping[str, Any]

WIDTHS = ("w8a8", "w6a6", "w4a8", "w4a4", "w3a3")
"""Widths of weights and activations that `vit_fidelity.py` measures, in the order of the tables."""


def figures(keys: set[str], folder: Path) -> dict[str, str]:
    """Words for each key of which something was measured, in the order of the keys.

    Args:
        keys: As in the module's docstring.
        folder: Of the results.

    Raises:
        KeyError: A key names no benchmark.
    """
    written = {}
    for key in sorted(keys):
        kind, *names = key.split()
        if text := _KINDS[kind](folder, *names):
            written[key] = text
    return written


def read(folder: Path, name: str) -> Any:
    """A result, empty when it is not there."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def by_width(folder: Path, row: str, place: str = "map") -> dict[str, Results | None]:
    """Median, worst and n of a row of `vit_fidelity.json` by width; None where the network failed.

    Only entries over as many photos as the largest one has: trials on a few do not count.
    """
    entries = read(folder, "vit_fidelity").get("rows", [])
    most = max((e["n"] for e in entries), default=0)
    return {
        e["bits"]: e["sqnr_db"][place] if "sqnr_db" in e else None
        for e in entries
        if e["row"] == row and e["n"] == most
    }


def _vit(folder: Path, row: str) -> str:
    found = by_width(folder, row)
    cells = [f"{decibels(v['median']) if v else 'fails'} at {bits.upper()}" for bits, v in found.items()]
    count = {v["n"] for v in found.values() if v}
    return f"map of a ViT-S, dB: {', '.join(cells)} (median of {max(count, default=0)})" if cells else ""


def _gain(folder: Path, without: str, having: str) -> str:
    before, after = by_width(folder, without), by_width(folder, having)
    cells = [
        f"{end['median'] - start['median']:+.1f} at {bits.upper()}"
        for bits, end in after.items()
        if end and (start := before.get(bits)) and None not in (end["median"], start["median"])
    ]
    return f"map of a ViT-S, dB: {', '.join(cells)}" if cells else ""


def _file(folder: Path, bits: str) -> str:
    for entry in read(folder, "vit_fidelity").get("files", []):
        if entry["bits"] == bits:
            median, latency = decibels(entry["map_sqnr_db"]["median"]), entry["latency"]
            return f"ViT-S file: map {median} dB (n={entry['n']}), {latency['ratio']:.2f} of the float file's time"
    return ""


def _attention(folder: Path, kind: str) -> str:
    for entry in read(folder, "attention_codes").get("real", {}).get("fitted_to_output", []):
        if entry["kind"] == kind and entry["bits"] == 4:
            seen = entry["measured"]
            plain, best = seen.get("none_db"), max(v for v in seen.values() if v is not None)
            said = f"{best:.1f} dB" if plain is None else f"{plain:.1f} dB, {best:.1f} with the lost mass given back"
            return f"attention output of a ViT-S at 4 bits: {said}"
    return ""


def _polish(folder: Path, *words: str) -> str:
    rows = read(folder, "depth_grids").get("rows", [])
    found = {(r["row"], r["bits"]): r["abs_rel"] for r in rows}
    name = " ".join(words)
    cells = [
        f"{value:.1f} at {bits.upper()} (uniform {found['uniform, tensor', bits]:.1f})"
        for (row, bits), value in found.items()
        if row == name
    ]
    return f"depth_nano, AbsRel %: {', '.join(cells)}" if cells else ""


def _export(folder: Path, scheme: str) -> str:
    for entry in read(folder, "export_vit_s_focus").get("candidates", []):
        if entry["scheme"] == scheme:
            worst = min(entry["fidelity_sqnr_db"].values(), key=lambda s: float(s["median"]))
            ratio = f", {entry['latency']['ratio']:.2f} of the float file's time" if entry["latency"] else ""
            how = f"{entry.get('transform', 'none')}, {entry.get('rounding', 'nearest')}"
            return f"ViT-S file ({how}): map {decibels(worst['median'])} dB (n={worst['n']}){ratio}"
    return ""


def _ships(folder: Path) -> str:
    summary = read(folder, "export_vit_s_focus").get("summary", {})
    return f"ships {summary['scheme']} for a ViT-S on {summary['target']}" if summary else ""


def _budget(folder: Path, *words: str) -> str:
    found = read(folder, "budgets").get("rows", {})
    rows = [found.get(f"`{label}`") for label in (" ".join(words), "--bits w4a8", "--bits w8a8")]
    cells = [f"{decibels(r['sqnr_db']['median'])} dB at {r['bytes'] / 1e6:.2f} MB" for r in rows if r]
    if len(cells) < 3:
        return ""
    return f"vit_nano, integer: {cells[0]} (W4A8 {cells[1]}, W8A8 {cells[2]})"


def _library(folder: Path, name: str) -> str:
    for study in read(folder, "library_methods").get("studies", {}).values():
        if name in study["methods"]:
            e = study["methods"][name]
            unit = f" {e['unit']}" if e["unit"] else ""
            beside = "; ".join(f"{other} {value:g}" for other, value in e["beside"].items())
            return f"{e['what']} (n={e['n']}): {e['value']:g}{unit}{f' ({beside})' if beside else ''}"
    return ""


def _accuracy(folder: Path, row: str) -> str:
    rows = [r for r in read(folder, "vit_accuracy").get("rows", {}).values() if r["method"] == row]
    cells = [f"{r['difference']:+.1f} at W{r['bits']}A{r['bits']}" for r in sorted(rows, key=lambda r: -r["bits"])]
    return f"vit_nano, points of top-1 to float: {', '.join(cells)} (n={rows[0]['n']})" if cells else ""


def decibels(value: float | None) -> str:
    """One digit; a dash where the figure is infinite."""
    return "-" if value is None else f"{value:.1f}"


_KINDS: Mapping[str, Callable[..., str]] = {
    "vit": _vit,
    "gain": _gain,
    "file": _file,
    "attention": _attention,
    "polish": _polish,
    "export": _export,
    "ships": _ships,
    "budget": _budget,
    "library": _library,
    "accuracy": _accuracy,
}
