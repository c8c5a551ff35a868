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

import family_tables  # beside this file
import method_tables

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[2] / "README.md"
DOCUMENTS = (
    README,
    *(README.parent / "docs" / f"{n}.md" for n in ("devices", "methods", "microcontrollers", "robustness", "search")),
    *(README.parent / "docs" / "families" / f"{n}.md" for n in ("depth", "points", "vit", "whisper", "yolo")),
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


def busy_table() -> str:
    """What busy neighbours do to the two ratios of a file that is quicker than float."""
    result = json.loads((RESULTS / "busy.json").read_text(encoding="utf-8"))
    lines = ["| beside | paired ratio: lowest and highest of the medians | above 1 | fastest tenths | above 1 |"]
    lines.append("|---|---|---|---|---|")
    for row in result["results"]:
        ends = [f"{low:.2f} to {high:.2f}" for low, high in (row["median"], row["fastest"])]
        of = row["rounds"]
        name = f"{row['neighbours']} (n={of} of {row['runs']} pairs)"
        counts = [f"{row[key]} of {of}" for key in ("medians_slower", "fastest_slower")]
        lines.append(f"| {name} | {ends[0]} | {counts[0]} | {ends[1]} | {counts[1]} |")
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


def _beside(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a comparison but the float file: all that were asked for, or of one peer the file of the same kind."""
    rows: list[dict[str, Any]] = result["comparison"]["rows"][1:]
    peers = {row["name"].split()[0] for row in rows} - {"edgeq", "float"}
    kind = "dynamic" if result["scheme"] == "dynamic" else "static"
    return [r for r in rows if len(peers) > 1 or r["name"].startswith("edgeq") or kind in r["name"]]


def peers_table() -> str:
    """Exports beside what other quantizers make of the same float model and calibration data."""
    lines = [
        "| model | file | runtime | MB | SQNR dB, median / worst | time / float (95 %) | top-1 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted(RESULTS.glob("peers_*.json")):
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for row in _beside(result):
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


def mcu_kernels_table() -> str:
    """Instructions of kernels beside CMSIS-NN's."""
    rows: list[dict[str, Any]] = json.loads((RESULTS / "mcu_kernels.json").read_text(encoding="utf-8"))["rows"]
    cells: dict[str, list[str]] = {}
    for row in rows:
        there = "-" if row["cmsis_nn"] is None else f"{row['cmsis_nn']:g}"
        cells.setdefault(row["layer"], []).append(f"{row['per_unit']:.3g}, {there}")
    lines = ["| layer | M3: here, CMSIS-NN | M4 | M55 |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(found)} |" for name, found in cells.items())])


def mcu_patches_table() -> str:
    """RAM and instructions of networks whose first layers run in patches."""
    rows: dict[str, dict[str, Any]] = json.loads((RESULTS / "mcu_patches.json").read_text(encoding="utf-8"))["rows"]
    lines = [
        "| network | patches | layers in them | RAM KiB | KiB of rows moved | M instructions: M4, M55 |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in rows.items():
        for count, row in found.items():
            plain, codes = count == "1", ", ".join(f"{n / 1e6:.2f}" for n in row["instructions"].values())
            cells = [name, "-" if plain else count, "-" if plain else str(row["layers"]), f"{row['ram'] / 1024:.0f}"]
            lines.append("| " + " | ".join([*cells, f"{row['moved'] / 1024:.0f}", codes]) + " |")
    return "\n".join(lines)


def _accuracy_cell(row: dict[str, Any] | None, goal: float) -> str:
    if row is None:
        return "-"
    text = f"{row['top1']:.1f} ({row['difference']:+.1f}, p {row['mcnemar_p']:.2g})"
    return f"**{text}**" if -row["difference"] <= goal + 1e-9 else text


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


def search_table() -> str:
    """What a search finds beside the best uniform file that keeps the same budget, and how far its table was off."""
    path = RESULTS / "search.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    lines = [
        "| search | budget | best uniform file within it | layers by bits | ratio; kB | SQNR dB; top-1 % | predicted |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, row in found.items():
        name, _, options = label.partition(": ")
        budget = f"`{options.replace('--budget-', '')}`"
        if "error" in row:
            lines.append(f"| {name} | {budget} | none | none: {row['error']['message']} | | | |")
            continue
        kept = [t for t in row["uniform"] if t["kept"] and not t["missed"] and t["scheme"] != "float"]
        best = max(kept, key=lambda t: float(t["fidelity"]["sqnr_db"]["median"]), default=None)
        uniform = "none" if best is None else f"{best['label']}: {best['ratio']:.3f}; {_quality(best)}"
        winner = row["winner"]
        bits = ", ".join(f"{count} in {'float' if b == '32' else b}" for b, count in winner["bits"].items())
        errors = [f"{100 * error:+.1f}" for error in row["verdict"]["prediction_errors"]]
        cost = f"{winner['ratio']:.3f}; {winner['bytes'] / 1000:.0f}"
        lines.append(
            f"| {name} | {budget} | {uniform} | {bits} | {cost} | {_quality(winner)} | {', '.join(errors)} % |"
        )
    return "\n".join(lines)


def _quality(trial: dict[str, Any]) -> str:
    """Median fidelity and metric of a file of a search."""
    return f"{_number(trial['fidelity']['sqnr_db']['median'], 1)}; {_number(trial['metric'], 1)}"


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
    "mcu_patches": mcu_patches_table,
    "mcu_kernels": mcu_kernels_table,
    "devices": devices_table,
    "busy": busy_table,
    "whisper": family_tables.whisper_table,
    "yolo": family_tables.yolo_table,
    "passes": family_tables.passes_table,
    "networks": networks_table,
    "points": family_tables.points_table,
    "pillars": family_tables.pillars_table,
    "depth": family_tables.depth_table,
    "depth_vit": partial(family_tables.depth_table, "depth_vit"),
    "depth_degraded": family_tables.depth_degraded_table,
    "depth_grids": family_tables.depth_grids_table,
    "search": search_table,
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
