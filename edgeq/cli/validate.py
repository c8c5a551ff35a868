"""`edgeq validate BUNDLE`: how it holds up on clean and on degraded data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeq.cli.console import Console
from edgeq.cli.options import command
from edgeq.errors import UsageError

if TYPE_CHECKING:
    from edgeq.rebuild import Variance
    from edgeq.validate import Outcome, Validation

_PATH = click.Path(path_type=Path)
ALIKE = 0.8
"""Share of calibration samples from which on draws are hardly others."""

_BUILDS = click.IntRange(0, 50)


@command(
    "validate",
    examples="""
    edgeq validate out/vit_nano-rpi --data test.npz --max-drop 1
    edgeq validate out/vit_nano-rpi --data test.npz --degrade none --rebuild 5
    edgeq validate out/my-rpi --model my.onnx --data photos --degrade qrid,dark --severity 2,4
    """,
)
@click.argument("bundle", type=_PATH)
@click.option("--data", type=_PATH, required=True, metavar="PATH", help="Samples; labelled ones measure the metric.")
@click.option("--degrade", default="all", metavar="NAMES", help="none, all, qrid, or names like jpeg or noise:4.")
@click.option("--severity", default="1,3,5", metavar="N,N", help="Severities, 1 to 5 (default 1,3,5).")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Items at most.")
@click.option("--max-drop", type=float, metavar="X", help="Gate: largest loss against float, clean and degraded.")
@click.option("--max-extra-drop", type=float, metavar="X", help="Gate: relative loss beyond float's own, in points.")
@click.option("--min-sqnr-db", type=float, metavar="X", help="Gate without labels: smallest median fidelity in dB.")
@click.option("--show", type=click.IntRange(0, 50), default=0, metavar="N", help="Draw the N most different samples.")
@click.option("--rebuild", type=_BUILDS, default=0, metavar="N", help="Export N times with other calibration draws.")
@click.option("--calib", type=_PATH, metavar="PATH", help="For --rebuild: the calibration samples, if elsewhere now.")
@click.option("--model", type=_PATH, metavar="FILE", help="The float model, if it is elsewhere now.")
@click.option("--weights", type=_PATH, metavar="FILE", help="The checkpoint, if it is elsewhere now.")
@click.option("--seed", type=int, default=0, metavar="N", help="Of degradations and intervals (default 0).")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, metavar="N", help="Threads of the runtime.")
def validate(
    console: Console,
    bundle: Path,
    severity: str,
    model: Path | None,
    weights: Path | None,
    calib: Path | None,
    data: Path,
    degrade: str,
    limit: int | None,
    max_drop: float | None,
    max_extra_drop: float | None,
    min_sqnr_db: float | None,
    show: int,
    rebuild: int,
    seed: int,
    threads: int,
) -> int:
    """Run BUNDLE and the float model it was made from on clean and on degraded data.

    Labelled data measures the task metric, other data the fidelity to float. An interrupted validation continues where
    it stopped. Exit code 1 when a gate is missed.

    Raises:
        EdgeqError: The bundle, its model or the data cannot be used.
    """
    severities = parse_severities(severity)

    from edgeq.validate import ValidationRequest  # imports torch
    from edgeq.validate import validate as run

    gates = (max_drop, max_extra_drop, min_sqnr_db)
    request = ValidationRequest(data, degrade, severities, limit, *gates, seed, threads, show, rebuild)
    result = run(bundle, {"model": model, "weights": weights, "calib": calib}, request, console)
    console.emit_json(result.to_dict())
    tell(console, result)
    return 1 if result.missed else 0


def parse_severities(text: str) -> tuple[int, ...]:
    """The value of `--severity`.

    Raises:
        UsageError: EQ-U750 for anything but whole numbers between commas.
    """
    parts = [p.strip() for p in text.split(",")]
    if not all(p.isdecimal() and len(p) < 3 for p in parts):
        raise UsageError(f"--severity {text!r}: they are 1 to 5", code="EQ-U750", hint="--severity 1,3,5")
    return tuple(dict.fromkeys(map(int, parts)))


def tell(console: Console, result: Validation) -> None:
    """The table of a validation."""
    labelled = result.outcomes[0].float_score is not None
    if labelled:
        columns: tuple[str, ...] = ("condition", "float", "artifact", "difference, 95 %", "agreement", "extra %, 95 %")
        rows = [_scored(outcome) for outcome in result.outcomes]
    else:
        columns = ("condition", "median dB", "worst dB", "worst item")
        rows = [
            (o.label, round(o.quantized_score, 1), _number(o.worst_fidelity, 1), o.worst_item) for o in result.outcomes
        ]
    console.result_table(columns, rows)
    arrow = "higher is better" if result.higher_is_better else "lower is better"
    extra = "; extra: relative loss through the condition beyond float's own, in points" if labelled else " to float"
    console.result(f"{result.metric} in {result.unit} ({arrow}) of {result.n} items{extra}")
    if result.variance is not None:
        _tell_variance(console, result.variance)
    for reason in result.missed:
        console.result(f"missed: {reason}")


def _tell_variance(console: Console, found: Variance) -> None:
    """What other calibration draws give, and which differences are luck."""
    rows: list[tuple[object, ...]] = [("this artifact", round(found.shipped, 2))]
    rows += [(f"seed {seed}", round(score, 2)) for seed, score in found.scores.items()]
    console.result_table(("build", f"{found.metric} in {found.unit}"), rows, title="\nother calibration draws")
    low, high = found.interval
    console.result(
        f"deviation {found.deviation:.2f}; one more build lies between {low:.2f} and {high:.2f} (95 %), and two builds "
        f"differ by up to {found.luck:.2f} by luck; {found.n} items that no build was calibrated with"
    )
    if found.shared > ALIKE:
        console.result(
            f"{found.shared:.0%} of the calibration samples are the same: a larger --calib folder would tell more"
        )


def _scored(outcome: Outcome) -> tuple[object, ...]:
    low, high = outcome.interval or (0.0, 0.0)
    extra = "-"
    if outcome.extra_drop is not None and outcome.extra_interval is not None:
        extra = "{:+.2f} ({:+.2f} to {:+.2f})".format(outcome.extra_drop, *outcome.extra_interval)
    difference = outcome.quantized_score - (outcome.float_score or 0.0)
    return (
        outcome.label,
        _number(outcome.float_score, 2),
        round(outcome.quantized_score, 2),
        f"{difference:+.2f} ({low:+.2f} to {high:+.2f})",
        None if outcome.agreement is None else f"{outcome.agreement:.1%}",
        extra,
    )


def _number(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
