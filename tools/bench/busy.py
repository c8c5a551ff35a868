"""What busy neighbours do to the ratio of two files that are timed in alternation; writes `results/busy.json`.

    python tools/bench/busy.py [--rounds 20] [--runs 300]

`vit_nano` for the Raspberry Pi in `dynamic` against its float file, two threads, beside nothing, processes that
count, and a convolution of PyTorch with as many threads as it takes. Per case: lowest and highest over the rounds, of
the median of the paired ratios and of the ratio of the fastest tenths; how often each, the interval and the verdict
said slower.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeq.build import build_scheme
from edgeq.config import ExportConfig
from edgeq.devices import open_model
from edgeq.devices.environment import environment
from edgeq.devices.timing import PairedLatency, paired_latency
from edgeq.progress import Silent
from edgeq.session import Stages, prepare

RESULT = Path(__file__).parent / "results" / "busy.json"
SCHEMA = "edgeq.bench.busy/1"
COUNTS = "while True: pass"
CONVOLVES = "import torch; x = torch.randn(64, 64, 56, 56); f = torch.nn.Conv2d(64, 64, 3)\nwhile True: f(x)"
NEIGHBOURS = {
    "nothing": [],
    "one that counts": [COUNTS],
    "two that count": [COUNTS] * 2,
    "a convolution": [CONVOLVES],
}
SETTLE = 5  # seconds until the neighbours have loaded what they need
THREADS = 2


@contextmanager
def beside(programs: list[str]) -> Iterator[None]:
    """Processes that run these programs meanwhile."""
    running = [subprocess.Popen([sys.executable, "-c", program]) for program in programs]
    try:
        if running:
            time.sleep(SETTLE)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def row(name: str, found: list[PairedLatency]) -> dict[str, Any]:
    """What the rounds of one case say."""
    medians, fastest = [p.ratio for p in found], [p.fastest for p in found]
    return {
        "neighbours": name,
        "rounds": len(found),
        "runs": found[0].runs,
        "median": [round(min(medians), 3), round(max(medians), 3)],
        "fastest": [round(min(fastest), 3), round(max(fastest), 3)],
        "medians_slower": sum(m > 1 for m in medians),
        "intervals_slower": sum(p.low > 1 for p in found),
        "fastest_slower": sum(f > 1 for f in fastest),
        "verdicts_slower": sum(p.verdict == "slower" for p in found),
    }


def main() -> int:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--runs", type=int, default=300)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        stages = Stages(Silent())
        session = prepare(ExportConfig(model="vit_nano", device="rpi"), Path(folder), stages).first
        candidate, _ = build_scheme(session, "dynamic", Path(folder), stages)
        models = [open_model(path, threads=THREADS) for path in (session.float_path, candidate.path)]
        for model in models:
            model.prepare(*session.samples.held_out[0])
        for name, programs in NEIGHBOURS.items():
            with beside(programs):
                found = [paired_latency(*(m.invoke for m in models), runs=options.runs) for _ in range(options.rounds)]
            rows.append(row(name, found))
            print(json.dumps(rows[-1]), file=sys.stderr)
    result = {"schema": SCHEMA, "threads": THREADS, "results": rows, "environment": environment()}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
