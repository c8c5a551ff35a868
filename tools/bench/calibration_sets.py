"""How many calibration samples, chosen how: fidelity of the file against number, rule and seed.

    python tools/bench/calibration_sets.py --data DATA_FOLDER [--cases GLOB ...] [--seeds N] [--counts N ...] [--again]

`DATA_FOLDER` is described in `export_quality.py`. The samples that fidelity is measured on are the same for all choices
of a case. `random`, `diverse`: rules of `--select`; `looks` is `diverse` on what the samples look like instead of what
the network makes of them. Each file is built by the export's own stages and run by its runtime. A row is kept as soon
as it is measured.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.build import build_scheme
from edgeq.candidate import measure_fidelity
from edgeq.config import ExportConfig
from edgeq.data import Source, describe
from edgeq.data.selection import POOL, RULES, farthest
from edgeq.progress import Silent
from edgeq.samples import output_profile
from edgeq.session import Session, Stages, fit_all, prepare

RESULT = Path(__file__).parent / "results" / "calibration_sets.json"
COUNTS = (8, 16, 32, 64, 128)
LOOKS = "looks"


@dataclass(frozen=True)
class Case:
    """A model and the samples to choose from.

    Args:
        options: Of the export; `{data}` is the data folder.
        scheme: What is built.
        most: Samples of the largest choice: less than there are.
    """

    options: dict[str, str]
    scheme: str
    most: int


CASES = {
    "vit_nano": Case({"model": "vit_nano", "device": "rpi", "calib": "{data}/cifar10/train.npz"}, "integer", 128),
    "yolox_nano": Case(
        {"model": "{data}/yolo/yolox_nano.onnx", "family": "yolo", "device": "rpi", "calib": "{data}/yolo/images"}
        | {"keep_float": "none"},
        "static",
        64,
    ),
}


def choose(source: Source[Any], rule: str, count: int, seed: int, session: Session) -> tuple[int, ...]:
    """Indices of the samples that a rule takes from the pool; none is held out."""
    held = set(session.samples.held_out_index)
    order = [i for i in np.random.default_rng(seed).permutation(len(source)).tolist() if i not in held]
    if rule == "random":
        return tuple(sorted(order[:count]))
    pool = order[: POOL * count]
    if rule == LOOKS:
        rows = [row for i in pool if (row := describe(source.read(i))) is not None]
    else:
        rows = [output_profile(session.adapter, source.read(i)) for i in pool]
    return tuple(sorted(pool[i] for i in farthest(np.stack(rows), count)))


def rows_of(case: Case, data: Path, wanted: list[tuple[str, int, int]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure choices of a case, one file each."""
    options = {key: value.format(data=data) for key, value in case.options.items()}
    config = ExportConfig.from_dict({**options, "scheme": case.scheme, "samples": 8, "threads": 1})
    with tempfile.TemporaryDirectory() as scratch:
        stages = Stages(Silent())
        session = prepare(config, Path(scratch), stages).first
        source = session.samples.source
        for rule, count, seed in wanted:
            chosen = choose(source, rule, count, seed, session)
            samples = replace(session.samples, calibration_index=chosen)
            own = replace(session, samples=samples, fitted={})
            fit_all(own, stages)
            candidate, legalized = build_scheme(own, case.scheme, Path(scratch), stages)
            graph = own.fitted[candidate.recipe.transform].graph
            found = measure_fidelity(candidate, legalized, graph, own.adapter, samples.held_out, own.reference, 1)
            worst = found.worst_output
            assert worst is not None
            yield f"{rule} {count} {seed}", {"median": worst.median, "worst": worst.worst, "n": worst.n}


def main() -> None:
    """Measure every row that the result lacks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", nargs="*", default=["*"], metavar="GLOB")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--counts", nargs="*", type=int, default=COUNTS)
    parser.add_argument("--again", action="store_true", help="measure anew what the result holds")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    for name, case in CASES.items():
        if not any(fnmatch.fnmatch(name, pattern) for pattern in options.cases):
            continue
        rows = {} if options.again else results.setdefault(name, {})
        wanted = [
            (rule, count, seed)
            for seed in range(1, options.seeds + 1)
            for count in options.counts
            if count <= case.most
            for rule in (*RULES, LOOKS)
            if f"{rule} {count} {seed}" not in rows
        ]
        for key, row in rows_of(case, options.data.resolve(), wanted):
            rows[key] = row
            results[name] = rows
            RESULT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            sys.stderr.write(f"{name} {key} {row}\n")


if __name__ == "__main__":
    main()
