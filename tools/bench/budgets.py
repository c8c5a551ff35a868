"""What budgets of bytes and of learning buy: exports of `vit_nano` between W4A8 and W8A8; writes JSON.

    python tools/bench/budgets.py --data DATA_FOLDER [--again]

`DATA_FOLDER` holds `cifar10/test.npz` (labelled, 1000 images). Each row is an export of its own (`--scheme integer`,
calibrated on the images that ship with the model); what was measured before is kept. Learning is given in steps, which
can be repeated; the seconds tell how many minutes they were.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from export_quality import RESULTS, run_export  # beside this file

RESULT = RESULTS / "budgets.json"
BUDGETS_KB = (950, 1000, 1100, 1200, 1300)
STEPS = (50, 200)


def rows() -> dict[str, list[str]]:
    """Options of each row by its label."""
    found = {"`--bits w4a8`": ["--bits", "w4a8"]}
    for steps in STEPS:
        found[f"`--bits w4a8 --learn-steps {steps}`"] = ["--bits", "w4a8", "--learn-steps", str(steps)]
    for kb in BUDGETS_KB:
        found[f"`--bits mixed --budget-kb {kb}`"] = ["--bits", "mixed", "--budget-kb", str(kb)]
    found["`--bits w8a8`"] = []
    return found


def main() -> None:
    """Measure the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--again", action="store_true", help="measure rows anew")
    args = parser.parse_args()
    known: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.is_file() else {}
    done = {} if args.again else known
    labelled = ["--data", str(args.data / "cifar10" / "test.npz"), "--max-drop", "100"]
    for label, options in rows().items():
        if label in done:
            continue
        result = run_export(["vit_nano", "--device", "rpi", "--scheme", "integer", *options, *labelled])
        (candidate,) = result["candidates"]
        done[label] = {
            "command": result["command"],
            "bytes": candidate["bytes"],
            "sqnr_db": min(candidate["fidelity_sqnr_db"].values(), key=lambda s: s["median"]),
            "metric": result["summary"]["metric"],
            "ratio": result["summary"]["latency"]["ratio"],
            "narrow": sum(bits == 4 for bits in (candidate["widths"] or {"bits": {}})["bits"].values()),
            "seconds": {k: v for k, v in result["summary"]["seconds"].items() if k.startswith(("learn", "try"))},
        }
        ordered = {name: done[name] for name in rows() if name in done}
        document = {"environment": result["environment"], "rows": ordered}
        aside = RESULT.with_suffix(".tmp")
        aside.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        aside.replace(RESULT)
        print(label, json.dumps(done[label]), flush=True)


if __name__ == "__main__":
    main()
