"""Tables of the model families, in `docs/families/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def whisper_table() -> str:
    """Whisper tiny.en in every way that was measured."""
    lines = [
        "| file | MB | WER %: float, file (95 % of the difference) | same text | real-time factor | loops |",
        "|---|---|---|---|---|---|",
    ]
    rows = json.loads((RESULTS / "whisper.json").read_text(encoding="utf-8"))["rows"]
    for row in rows.values():
        metric, heard = row["metric"], row["heard"]
        low, high = metric["difference_interval"]
        kinds = ", ".join(f"{name} {network['scheme']}" for name, network in row["networks"].items())
        rounding = "" if row["rounding"] == "auto" else f", {row['rounding']}"
        cells = [
            f"{row['format'].replace('.xml', '.xml + .bin')} {row['bits'].upper()}: {kinds}{rounding}",
            f"{row['bytes'] / 1e6:.1f} of {sum(n['float_bytes'] for n in row['networks'].values()) / 1e6:.0f}",
            f"{metric['float']:.2f}, {metric['quantized']:.2f} ({low:+.2f} to {high:+.2f})",
            f"{round(metric['agreement'] * metric['n'])} of {metric['n']}",
            f"{heard['real_time_factor']['total']:.2f} (n={heard['real_time_factor']['n']})",
            str(heard["windows_in_a_loop"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def yolo_table() -> str:
    """Detectors over both halves of the photos."""
    lines = [
        "| model, file | MB | mAP50-95: float, file (95 % interval) | mAP50 | same boxes as float | time / float "
        "| kept float, of MACs |",
        "|---|---|---|---|---|---|---|",
    ]
    rows: dict[str, Any] = json.loads((RESULTS / "yolo.json").read_text(encoding="utf-8"))
    for name, row in sorted(rows.items()):
        metric = row.get("metric")
        score = "no labels"
        if metric:
            low, high = metric["difference_interval"]
            score = f"{metric['float']:.1f}, {metric['quantized']:.1f} ({low:+.1f} to {high:+.1f}, n={metric['n']})"
        kept = [f"{len(k['ops'])}, {100 * k['float_mac_share']:.0f} %" for k in row["kept_float"] if k]
        times = [latency["ratio"] for latency in row["latency"] if latency]
        cells = [
            name,
            f"{max(row['bytes']) / 1e6:.1f} of {row['float_bytes'] / 1e6:.1f}",
            score,
            ", ".join(f"{v:.1f}" for v in row.get("mAP50", ())),
            f"{100 * row['agreement']:.1f} % (n={row['agreement_n']})",
            ", ".join(f"{t:.2f}" for t in times),
            "; ".join(kept) or "none",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def passes_table() -> str:
    """What one more operation costs a value in LiteRT's integer kernels."""
    found = json.loads((RESULTS / "passes.json").read_text(encoding="utf-8"))["ns"]
    names = ["product with constants", "depthwise 1x1", "pointwise", "product", "sum", "sigmoid"]
    lines = ["| ns a value | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {size} | " + " | ".join(f"{row[name]:.2f}" for name in names) + " |" for size, row in found.items()]
    return "\n".join(lines)


def points_table() -> str:
    """PointMLP over both halves of the clouds."""
    lines = [
        "| file | MB | top-1 %: float, file (95 % of the difference) | same class as float | SQNR dB | time / float |",
        "|---|---|---|---|---|---|",
    ]
    rows: dict[str, Any] = json.loads((RESULTS / "points.json").read_text(encoding="utf-8"))
    for name, row in sorted(rows.items()):
        if "metric" not in row:
            continue
        metric = row["metric"]
        low, high = metric["difference_interval"]
        cells = [
            name,
            f"{max(row['bytes']) / 1e6:.2f} of {row['float_bytes'] / 1e6:.1f}",
            f"{metric['float']:.1f}, {metric['quantized']:.1f} ({low:+.1f} to {high:+.1f}, n={metric['n']})",
            f"{row['same_class']} of {row['clouds']}",
            ", ".join(f"{v:.0f}" for v in row["sqnr_db"]),
            ", ".join(f"{latency['ratio']:.2f}" for latency in row["latency"] if latency),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def pillars_table() -> str:
    """Range rules on a map seen from above."""
    rows: dict[str, Any] = json.loads((RESULTS / "pillars.json").read_text(encoding="utf-8"))["rules"]
    lines = [
        "| range of the map | of the largest value, 8 and 4 bits | SQNR dB but for zeros | mAP % | same objects |",
        "|---|---|---|---|---|",
    ]
    for rule in dict.fromkeys(key.rpartition(" ")[0] for key in rows if key != "zeros"):
        found = [rows[f"{rule} {bits}"] for bits in (8, 4)]
        cells = [
            f"`{rule}`",
            ", ".join(f"{r['range']:.2f}" for r in found),
            ", ".join(f"{r['sqnr_db']:.1f}" for r in found),
            ", ".join(f"{r['quantized']:.1f}" for r in found),
            ", ".join(f"{100 * r['agreement']:.1f} %" for r in found),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    exact = rows["minmax 8"]
    lines.append(f"| float |  |  | {exact['float']:.1f} | (n={exact['n']}) |")
    return "\n".join(lines)


def depth_table(result: str = "depth") -> str:
    """A depth network in the files that were made of it."""
    lines = [
        "| file | MB | AbsRel %: float, file (95 % interval of the difference) | change | delta1 % | RMSE m | SQNR dB "
        "| time / float | integer MACs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    path = RESULTS / f"{result}.json"
    if not path.is_file():
        return f"Not measured yet: `python tools/bench/{result}.py`"
    rows: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for name, row in sorted(rows.items()):
        metric, also = row["metric"], row["metric"]["also"]
        low, high = metric["difference_interval"]
        score = f"{metric['float']:.2f}, {metric['quantized']:.2f} ({low:+.2f} to {high:+.2f}, n={metric['n']})"
        cells = [
            name,
            f"{row['bytes'] / 1e6:.2f} of {row['float_bytes'] / 1e6:.2f}",
            score,
            f"{100 * (metric['quantized'] / metric['float'] - 1):+.1f} %",
            f"{also['delta1']['float']:.1f}, {also['delta1']['quantized']:.1f}",
            f"{also['RMSE']['float']:.3f}, {also['RMSE']['quantized']:.3f}",
            f"{row['sqnr_db']['median']:.1f} / {row['sqnr_db']['worst']:.1f}",
            f"{row['latency']['ratio']:.2f}" if row["latency"] else "-",
            f"{100 * row['integer_mac_share']:.0f} %",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def depth_degraded_table() -> str:
    """`depth_nano` on degraded pictures."""
    rows: dict[str, Any] = json.loads((RESULTS / "depth.json").read_text(encoding="utf-8"))
    lines = ["| file | condition | AbsRel %: float, file | extra loss, points (95 %) |", "|---|---|---|---|"]
    for name, row in rows.items():
        found = row.get("validation")
        for outcome in [{**found["clean"], "name": "clean", "severity": ""}, *found["degraded"]] if found else []:
            low, high = outcome.get("extra_drop_interval") or (None, None)
            extra = "" if low is None else f"{outcome['extra_drop']:+.1f} ({low:+.1f} to {high:+.1f})"
            where = f"{outcome['name']} {outcome['severity']}".strip()
            scores = f"{outcome['float']:.2f}, {outcome['quantized']:.2f}"
            lines.append(f"| {name} (n={found['n']}) | {where} | {scores} | {extra} |")
    return "\n".join(lines)


def depth_grids_table() -> str:
    """Activation grids on `depth_nano`, simulated."""
    found: dict[str, Any] = json.loads((RESULTS / "depth_grids.json").read_text(encoding="utf-8"))
    widths = list(dict.fromkeys(row["bits"] for row in found["rows"]))
    lines = [f"| grid of activations | {' | '.join(w.upper() for w in widths)} |", "|---" * (len(widths) + 1) + "|"]
    for name in dict.fromkeys(row["row"] for row in found["rows"]):
        of = {row["bits"]: row for row in found["rows"] if row["row"] == name}
        cells = [f"{of[w]['abs_rel']:.2f} ({of[w]['interval'][0]:+.2f} to {of[w]['interval'][1]:+.2f})" for w in widths]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Float {found['float']:.2f}, n={found['n']}."])
