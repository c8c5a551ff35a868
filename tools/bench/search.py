"""`edgeq search` at several budgets: whether the winner keeps its budget, how far the table was off, what it gains.

Run from the repository: `python tools/bench/search.py --data test.npz [--only NAME]`. Searches share what they measure,
so that further budgets cost their own builds only. The result of each is one entry of `results/search.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "search.json"
EQUAL_DB = 0.05
"""Decibels that two figures of one file may differ by."""

CASES: dict[str, tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]] = {
    "vit_nano, LiteRT on x86": (
        ("vit_nano", "--device", "x86", "--format", "tflite"),
        (("--budget-ratio", "0.6"), ("--budget-ratio", "0.7"), ("--budget-ratio", "0.8")),
    ),
    "vit_nano, OpenVINO on x86": (
        ("vit_nano", "--device", "x86", "--format", "openvino"),
        (("--budget-ratio", "0.6"), ("--budget-ratio", "0.8"), ("--budget-ratio", "0.9")),
    ),
    "vit_nano, Cortex-M4": (
        ("vit_nano", "--device", "cortex-m4", "--on", "qemu://mps2-an386"),
        (
            ("--budget-kb", "1000", "--budget-ratio", "1.1"),
            ("--budget-kb", "900", "--budget-ratio", "1.1"),
            ("--budget-kb", "900", "--budget-ratio", "1.25"),
            ("--budget-kb", "800", "--budget-ratio", "1.15"),
            ("--budget-kb", "700", "--budget-ratio", "1.2"),
        ),
    ),
    "cifar_cnn, LiteRT on x86": (
        ("cifar_cnn", "--device", "x86", "--format", "tflite"),
        (("--budget-ratio", "0.7"),),
    ),
    "cifar_cnn, Cortex-M4": (
        ("cifar_cnn", "--device", "cortex-m4", "--on", "qemu://mps2-an386"),
        (("--budget-kb", "60", "--budget-ratio", "1.2"),),
    ),
}


def main() -> None:
    """Run the searches and store what they found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="labelled test images")
    parser.add_argument("--only", help="part of the name of the cases to run")
    options = parser.parse_args()
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name, (case, budgets) in CASES.items():
        if options.only and options.only not in name:
            continue
        for budget in budgets:
            command = [*case, *budget, "--data", str(options.data)]
            found[f"{name}: {' '.join(budget)}"] = run(command, budget)
            RESULTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
            print(name, budget, json.dumps(found[f"{name}: {' '.join(budget)}"]["verdict"]))


def run(command: list[str], budget: tuple[str, ...]) -> dict[str, Any]:
    """One search as an entry of the results."""
    with tempfile.TemporaryDirectory(prefix="edgeq-") as scratch:
        words = [
            sys.executable,
            "-m",
            "edgeq",
            "search",
            *command,
            "--out",
            f"{scratch}/out",
            "--json",
            "--no-progress",
        ]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    if not done.stdout:
        sys.exit(f"{spelled(command)} ended with {done.returncode}\n{done.stderr}")
    result = json.loads(done.stdout)
    if result["schema"] != "edgeq.search/1":
        return {"command": spelled(command), "error": result, "verdict": {"infeasible": result["message"]}}
    result["winner"]["artifact"] = "out/best"  # not where it lay on this machine
    kept = {key: result[key] for key in ("device", "unit", "budget", "winner", "uniform", "mixed", "table", "seconds")}
    return {"command": spelled(command), **kept, "verdict": verdict(result)}


def spelled(command: list[str]) -> str:
    """The command as a reader types it, with the last part of every path."""
    return " ".join(
        ["edgeq search", *(Path(word).name if "/" in word and ":" not in word else word for word in command)]
    )


def verdict(result: dict[str, Any]) -> dict[str, Any]:
    """What must hold: the budget kept, no uniform file that keeps it more accurate, the table within 10 %."""
    winner = result["winner"]
    rivals = [t for t in result["uniform"] if t["kept"] and not t["missed"] and t["scheme"] != "float"]
    best = max(rivals, key=lambda t: t["fidelity"]["sqnr_db"]["median"], default=None)
    errors = [t["cost"]["predicted"] / t["cost"]["measured"] - 1 for t in result["mixed"]]
    decibels = winner["fidelity"]["sqnr_db"]["median"]
    return {
        "kept": winner["kept"],
        "mixed": winner["cost"]["predicted"] is not None,
        "decibels": decibels,
        "best_uniform": best and best["label"],
        "best_uniform_decibels": best and best["fidelity"]["sqnr_db"]["median"],
        "as_faithful": best is None or decibels >= best["fidelity"]["sqnr_db"]["median"] - EQUAL_DB,
        "metric": winner["metric"],
        "best_uniform_metric": best and best["metric"],
        "prediction_errors": errors,
        "within_ten_percent": all(abs(e) <= 0.1 for e in errors),
    }


if __name__ == "__main__":
    main()
