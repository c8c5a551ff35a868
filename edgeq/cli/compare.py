"""`edgeq compare A B ...`: models side by side, on the same inputs and in one process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeq.cli.console import Console
from edgeq.cli.options import command
from edgeq.config_keys import KEYS, SUFFIXES
from edgeq.errors import UsageError

if TYPE_CHECKING:
    from edgeq.compare import Comparison, Row
    from edgeq.devices.timing import Runs

_PATH = click.Path(path_type=Path)
COLUMNS = ("model", "runtime", "size MB", "SQNR dB median", "worst", "ms", "time / first", "95 %", "pairs")


@command(
    "compare",
    examples="""
    edgeq compare out/vit_nano-rpi out/vit_nano-x86 --data test.npz
    edgeq compare float.tflite out/mine theirs.onnx --data photos --limit 64
    """,
)
@click.argument("models", nargs=-1, type=_PATH)
@click.option("--data", type=_PATH, metavar="PATH", help="Photos, or labelled: one folder a class, or a packed .npz.")
@click.option("--like", type=_PATH, metavar="BUNDLE", help="Prepare images as BUNDLE does (default: the first one).")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Items at most.")
@click.option("--runs", default="auto", metavar="N", help="Timed pairs of runs (default auto).")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, metavar="N", help="Threads of the runtimes.")
def compare(
    console: Console,
    models: tuple[Path, ...],
    data: Path | None,
    like: Path | None,
    limit: int | None,
    runs: str,
    threads: int,
) -> int:
    """Compare MODELS (bundles, or .tflite, .xml and .onnx files) with the first of them.

    All run on the same items: those of --data, or the golden vectors of the first bundle. Fidelity is the SQNR to the
    first model's outputs, so put the float model first. Times are measured in alternation with the first model.

    Raises:
        EdgeqError: A model or the data cannot be used.
    """
    timed = parse_runs(runs)

    from edgeq import compare as comparing  # imports numpy

    contenders = comparing.open_contenders(models)
    inputs = comparing.open_inputs(contenders, data, like, limit)
    result = comparing.compare(contenders, inputs, threads=threads, runs=timed, progress=console)
    console.emit_json(result.to_dict())
    show(console, result)
    return 0


def parse_runs(text: str) -> Runs:
    """The value of `--runs`.

    Raises:
        UsageError: EQ-U454 for anything but `auto` and a whole number of at least 1.
    """
    key = KEYS["runs"]
    try:
        value = key.check(key.parse(text))
    except (ValueError, TypeError) as error:
        raise UsageError(f"--runs {text!r} is not {key.expected}", code="EQ-U454", hint="use --runs auto") from error
    return "auto" if value == "auto" else int(str(value))


def show(console: Console, result: Comparison) -> None:
    """The table of a comparison."""
    scored = result.rows[0].score is not None
    columns = (*COLUMNS, "top-1", "difference, 95 %") if scored else COLUMNS
    console.result_table(columns, [_cells(row, result.first_ms, scored) for row in result.rows])
    for row in result.rows:
        if row.contender.failed:
            console.result(f"{row.contender.name}: {row.contender.failed}")
    first = result.rows[0].contender.name
    console.result(f"{result.samples} items of {result.place}; SQNR, time and difference are to {first}")


def _cells(row: Row, first_ms: float | None, scored: bool) -> tuple[object, ...]:
    failed, latency, fidelity = bool(row.contender.failed), row.latency, row.fidelity
    own = first_ms if fidelity is None and not failed else None
    cells = (
        row.contender.name,
        SUFFIXES.get(row.contender.path.suffix, "failed" if failed else "-"),
        None if failed else round(row.bytes / 1e6, 2),
        None if fidelity is None else round(fidelity.median, 1),
        None if fidelity is None else round(fidelity.worst, 1),
        round(latency.quantized_ms, 2) if latency else own and round(own, 2),
        None if latency is None else round(latency.ratio, 3),
        "-" if latency is None else f"{latency.low:.3f} to {latency.high:.3f}",
        None if latency is None else latency.runs,
    )
    if not scored:
        return cells
    score = row.score
    span = "-" if score is None or fidelity is None else "{:+.2f} to {:+.2f}".format(*score.difference)
    return (*cells, None if score is None else round(score.value, 2), span)
