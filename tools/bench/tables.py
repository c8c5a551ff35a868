"""Keep what is written from `results/` up to date: tables of README.md and docs/methods.md, figures of `edgeq methods`.

    python tools/bench/tables.py [--check]

A table stands between `<!-- NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import method_tables  # beside this file

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[2] / "README.md"
DOCUMENTS = (
    README,
    *(README.parent / "docs" / name for name in ("devices.md", "methods.md", "robustness.md")),
    *(README.parent / "docs" / "families" / f"{name}.md" for name in ("depth", "points", "vit", "whisper", "yolo")),
)


REFERENCES = ("vit_nano", "vit_micro", "cifar_cnn")


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


def openvino_table() -> str:
    """The ViT-S for OpenVINO beside NNCF's quantization of it, all timed in turn in one process."""
    lines = [
        "| file | MB | map SQNR dB, median / worst | time / float (95 %) | time / NNCF (95 %) |",
        "|---|---|---|---|---|",
    ]
    result = json.loads((RESULTS / "openvino_vit_s.json").read_text(encoding="utf-8"))
    for name, row in result["rows"].items():
        sqnr = row["sqnr_db"]
        cells = [
            name,
            f"{row['bytes'] / 1e6:.1f}",
            f"{_number(sqnr['median'], 1)} / {_number(sqnr['worst'], 1)} (n={sqnr['n']})" if sqnr else "",
            *(f"{r['median']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for r in (row["to_float"], row["to_nncf"])),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append(f"\n{result['calibration_images']} calibration images, {result['rounds']} rounds, one thread.")
    return "\n".join(lines)


def devices_table() -> str:
    """What devices compute, how far two profiles lie apart, and what the profiler costs."""
    lines = [
        "| file | over ssh | on emulated Cortex-A72 | median and worst distance of two profiles: local, ssh |",
        "|---|---|---|---|",
    ]
    result = json.loads((RESULTS / "devices.json").read_text(encoding="utf-8"))
    for row in result["results"]:
        apart = [
            f"{r['median_percent']:.1f} and {r['worst_percent']:.1f} % (n={r['pairs']})"
            for r in row.get("repeatability", [])
        ]
        cells = [f"{row['model']} {row['scheme']}", *(_same(v) for v in row["verify"]), ", ".join(apart) or "-"]
        lines.append("| " + " | ".join(cells) + " |")
    cost = result["overhead"]
    spent = f"The profiler spends {cost['microseconds']:.1f} µs on a run beside the run."
    lines.append(f"\n{spent} Two cores, on which other programs were a load of {result['load']:.0f}.")
    return "\n".join(lines)


def _same(verified: dict[str, Any]) -> str:
    """Golden vectors on a device, in a cell."""
    if verified["exact"]:
        return f"equal (n={verified['vectors']})"
    median, worst = (verified["sqnr_db"][key] for key in ("median", "worst"))
    half = "equal" if median is None else f"{median:.1f}"
    agreement = "" if verified["agreement"] is None else f", same class {100 * verified['agreement']:.0f} %"
    return f"{half} / {worst:.1f} dB (n={verified['vectors']}){agreement}"


def reference_table() -> str:
    """How the shipped reference weights came to be, from the notes that training wrote."""
    weights = README.parent / "models" / "weights"
    notes = [json.loads((weights / f"{name}.json").read_text(encoding="utf-8")) for name in REFERENCES]
    lines = ["| network | parameters | training | float top-1, n=1,000 |", "|---|---|---|---|"]
    for note in notes:
        training = f"{note['epochs']} epochs on {note['device']}, {note['seconds'] / 60:.0f} minutes"
        lines.append(f"| {note['model']} | {note['parameters']:,} | {training} | {100 * note['float_top1']:.1f} % |")
    return "\n".join(lines)


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


def _ratio(latency: dict[str, Any]) -> str:
    """A ratio with its interval; a machine that was busy gives none."""
    if latency["high"] > 2 * latency["low"]:
        return "not resolved"
    return f"{latency['ratio']:.2f} ({latency['low']:.2f} to {latency['high']:.2f}, n={latency['runs']})"


def peers_table() -> str:
    """Exports beside what other quantizers make of the same float model and calibration data."""
    lines = [
        "| model | file | runtime | MB | SQNR dB, median / worst | time / float (95 %) | top-1 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted(RESULTS.glob("peers_*.json")):
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        comparison = result["comparison"]
        for row in comparison["rows"][1:]:
            if row["failed"]:
                lines.append(f"| {result['model']} | {row['name']} | | | {row['failed']} | | |")
                continue
            sqnr, latency, score = row["sqnr_db"], row["latency"], row["score"]
            cells = [
                result["model"],
                f"**{row['name']}**" if row["name"].startswith("edgeq") else row["name"],
                row["format"],
                f"{row['bytes'] / 1e6:.1f}",
                f"{_number(sqnr['median'], 1)} / {_number(sqnr['worst'], 1)} (n={sqnr['n']})",
                _ratio(latency),
                f"{score['value']:.1f}" if score else "",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def vit_accuracy_table() -> str:
    """Top-1 of `vit_nano` by method and bits, and whether each width keeps within its goal."""
    result: dict[str, Any] = json.loads((RESULTS / "vit_accuracy.json").read_text(encoding="utf-8"))
    rows, goals = list(result["rows"].values()), {int(k): v for k, v in result["goals_points"].items()}
    if not rows:
        return ""
    table: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        table.setdefault(row["method"], {})[row["bits"]] = row
    lines = [
        "| method | " + " | ".join(f"W{b}A{b}" for b in goals) + " |",
        "|---|" + "---|" * len(goals),
        "| goal, points below float | " + " | ".join(f"{goal:g}" for goal in goals.values()) + " |",
    ]
    for method, cells in sorted(table.items(), key=lambda entry: entry[0]):
        found = [_accuracy_cell(cells.get(bits), goal) for bits, goal in goals.items()]
        lines.append(f"| {method.replace('+', ', ')} | " + " | ".join(found) + " |")
    first = rows[0]
    lines.append(f"\nFloat {first['float']:.1f} %, n={first['n']}. *p* by McNemar's test; **bold** meets the goal.")
    return "\n".join(lines)


def budgets_table() -> str:
    """What bytes and steps of learning buy for `vit_nano`, from the smallest file to the largest."""
    path = RESULTS / "budgets.json"
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else {}
    lines = [
        "| options | MB | weights in 4 bits | SQNR dB, median / worst | top-1, points to float (95 %) | learning, s |",
        "|---|---|---|---|---|---|",
    ]
    for label, row in sorted(rows.items(), key=lambda entry: (entry[1]["bytes"], len(entry[0]), entry[0])):
        sqnr, metric = row["sqnr_db"], row["metric"]
        low, high = metric["difference_interval"]
        change = f"{metric['quantized'] - metric['float']:+.1f} ({low:+.1f} to {high:+.1f})"
        seconds = sum(v for k, v in row["seconds"].items() if k.startswith("learn"))
        narrow = row["narrow"] or ("all that may" if "w4a8" in label else 0)
        figures = f"{_number(sqnr['median'], 1)} / {_number(sqnr['worst'], 1)} (n={sqnr['n']})"
        cells = [label, f"{row['bytes'] / 1e6:.2f}", str(narrow), figures, change, f"{seconds:.0f}" if seconds else "-"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def robustness_table() -> str:
    """What conditions cost float, and what quantization adds to it, with both kinds of calibration."""
    path = RESULTS / "robustness.json"
    cases: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    lines = [
        "| model | condition | float | file | extra loss, points (95 %) | the same, calibrated with `--degrade mix` |",
        "|---|---|---|---|---|---|",
    ]
    for label, case in cases.items():
        plain, mixed = case["clean"], case["mixed"]
        unit = f"{plain['metric']}, n={plain['n']}"
        pairs = zip((plain["clean"], *plain["degraded"]), (mixed["clean"], *mixed["degraded"]), strict=True)
        for with_clean, with_mix in pairs:
            severity = with_clean["severity"]
            name = f"{with_clean['name']} {severity}" if severity else f"clean ({unit})"
            scores = [f"{with_clean[side]:.1f}" for side in ("float", "quantized")]
            found = [_extra(with_clean), _extra(with_mix)] if severity else ["", f"file {with_mix['quantized']:.1f}"]
            lines.append("| " + " | ".join([label, name, *scores, *found]) + " |")
    return "\n".join(lines)


def calibration_sets_table() -> str:
    """Fidelity of files by how many samples calibrated them and how these were chosen, one figure a seed."""
    path = RESULTS / "calibration_sets.json"
    cases: dict[str, dict[str, dict[str, Any]]] = json.loads(path.read_text(encoding="utf-8"))
    rules = ("random", "diverse", "looks")
    lines = [
        f"| model | samples | {' | '.join(rules)} |",
        "|---|---|" + "---|" * len(rules),
    ]
    for label, rows in cases.items():
        keys = [key.split() for key in rows]
        for count in sorted({int(count) for _, count, _ in keys}):
            seeds = sorted({seed for _, n, seed in keys if int(n) == count})
            cells = []
            for rule in rules:
                found = [row for seed in seeds if (row := rows.get(f"{rule} {count} {seed}"))]
                cells.append(", ".join(f"{row['median']:.1f} / {row['worst']:.1f}" for row in found) or "-")
            lines.append(f"| {label} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


NOISE, NOISE_GOAL = "noise_med", 1.0
"""The condition that costs integers most in QRID's figures, and the extra loss in points that is allowed there."""


def noise_goal_table() -> str:
    """What quantization adds under QRID's medium noise, beside the goal."""
    cases: dict[str, dict[str, Any]] = json.loads((RESULTS / "robustness.json").read_text(encoding="utf-8"))
    lines = [
        f"| model | extra loss under `{NOISE}`, points (95 %) | at most {NOISE_GOAL:g} point |",
        "|---|---|---|",
    ]
    for label, case in cases.items():
        outcome = next((o for o in case["clean"]["degraded"] if o["name"] == NOISE), None)
        if outcome is not None and outcome["extra_drop"] is not None:
            low, high = outcome["extra_drop_interval"]
            held = "yes" if outcome["extra_drop"] <= NOISE_GOAL else "no"
            if low <= NOISE_GOAL < high:
                held += f", though {case['clean']['n']} items cannot exclude the opposite"
            lines.append(f"| {label} | {_extra(outcome)} | {held} |")
    return "\n".join(lines)


def _extra(outcome: dict[str, Any]) -> str:
    if outcome["extra_drop"] is None:
        return "-"
    low, high = outcome["extra_drop_interval"]
    text = f"{outcome['extra_drop']:+.1f} ({low:+.1f} to {high:+.1f})"
    return f"**{text}**" if low > 0 or high < 0 else text


def mcu_table() -> str:
    """The shipped networks as C: memory, accuracy, instructions."""
    rows: dict[str, dict[str, Any]] = json.loads((RESULTS / "mcu_networks.json").read_text(encoding="utf-8"))["rows"]
    lines = [
        "| network | flash KiB: constants, code | RAM KiB | SQNR dB, median / worst | top-1 %: float, C (95 %) "
        "| M instructions: M4, M7, M33, M55 | softmax and norms |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, row in rows.items():
        program, sqnr, metric = row["microcontroller"], row["sqnr_db"], row["metric"]
        low, high = metric["difference_interval"]
        shares = sum(part for kind, part in program["share"].items() if kind in ("Softmax", "Norm"))
        cells = [
            label,
            f"{program['flash_bytes'] / 1024:.0f}, {program['code_bytes'] / 1024:.0f}",
            f"{program['ram_bytes'] / 1024:.0f}",
            f"{_number(sqnr['median'], 1)} / {_number(sqnr['worst'], 1)} (n={sqnr['n']})",
            f"{metric['float']:.1f}, {metric['quantized']:.1f} ({low:+.1f} to {high:+.1f}, n={metric['n']})",
            ", ".join(f"{count / 1e6:.1f}" for count in row["instructions"].values()),
            f"{100 * shares:.0f} %" if shares else "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


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


def _accuracy_cell(row: dict[str, Any] | None, goal: float) -> str:
    if row is None:
        return "-"
    text = f"{row['top1']:.1f} ({row['difference']:+.1f}, p {row['mcnemar_p']:.2g})"
    return f"**{text}**" if -row["difference"] <= goal + 1e-9 else text


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


def networks_table() -> str:
    """Networks with random weights through every format."""
    lines = [
        "| network, format | MB | SQNR dB, median / worst | time / float | integer MACs | refused because |",
        "|---|---|---|---|---|---|",
    ]
    rows: dict[str, Any] = json.loads((RESULTS / "networks.json").read_text(encoding="utf-8"))
    for name, row in rows.items():
        sqnr = row["sqnr_db"]
        cells = [
            name,
            f"{row['bytes'] / 1e6:.1f} of {row['float_bytes'] / 1e6:.1f}",
            f"{sqnr['median']:.1f} / {sqnr['worst']:.1f} (n={sqnr['n']})",
            _ratio(row["latency"]),
            f"{100 * row['integer_mac_share']:.0f} %",
            "; ".join(reason.partition(":")[0] for reason in row["rejected"]) or "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
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


TABLES: dict[str, Callable[[], str]] = {
    "export": export_table,
    "cost": cost_table,
    "peers": peers_table,
    "references": reference_table,
    "openvino": openvino_table,
    "methods": method_tables.methods_table,
    "vit_fidelity": method_tables.vit_fidelity_table,
    "vit_files": method_tables.vit_files_table,
    "vit_accuracy": vit_accuracy_table,
    "budgets": budgets_table,
    "robustness": robustness_table,
    "noise_goal": noise_goal_table,
    "calibration_sets": calibration_sets_table,
    "mcu": mcu_table,
    "devices": devices_table,
    "whisper": whisper_table,
    "yolo": yolo_table,
    "networks": networks_table,
    "points": points_table,
    "pillars": pillars_table,
    "depth": depth_table,
    "depth_vit": partial(depth_table, "depth_vit"),
    "depth_degraded": depth_degraded_table,
    "depth_grids": depth_grids_table,
}
"""Tables by marker; each may stand in any of `DOCUMENTS`, and stands in one at least."""


def fresh_files() -> dict[Path, str]:
    """Every file that this script keeps up to date, as it should read."""
    texts = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}
    for name, render in TABLES.items():
        start, end = f"<!-- {name} -->\n", "<!-- end -->"
        holders = [path for path, text in texts.items() if start in text]
        if not holders:
            sys.exit(f"no document has a place for {name}: put {start.strip()} and {end} into one")
        for path in holders:
            before, _, rest = texts[path].partition(start)
            texts[path] = before + start + render() + "\n" + end + rest.partition(end)[2]
    return {**texts, method_tables.MEASURED: method_tables.measured_json()}


def main() -> None:
    """Rewrite the files, or with `--check` fail when one is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    for path, text in fresh_files().items():
        if args.check and text != path.read_text(encoding="utf-8"):
            sys.exit(f"{path.name} is out of date: python tools/bench/tables.py")
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
