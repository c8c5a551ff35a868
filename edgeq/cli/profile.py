"""`edgeq profile ARTIFACT --on DEVICE`: what an inference costs, in all and layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeq.cli.console import Console
from edgeq.cli.options import command
from edgeq.cli.verify import Way, opened, way_options
from edgeq.errors import EdgeqError, UsageError

if TYPE_CHECKING:
    from edgeq.artifact import Artifact
    from edgeq.devices.measured import Profile
    from edgeq.profiling import Baseline

MOST = 10
SLOWER = 1.05  # of the best earlier median: what history calls a regression
_PATH = click.Path(path_type=Path)


@command(
    "profile",
    examples="""
    edgeq profile out/vit_nano-rpi
    edgeq profile out/vit_nano-rpi --on ssh://pi@raspberrypi --on local --history
    edgeq profile out/new --on ssh://pi --against out/old --max-slowdown 5
    edgeq profile out/vit_micro-cortex-m4 --on qemu://mps2-an386 --per-op
    edgeq profile out/vit_micro-cortex-m4 --on serial:///dev/ttyACM0
    """,
)
@click.argument("artifact", type=_PATH)
@way_options(several=True)
@click.option("--runs", type=click.IntRange(1, 100_000), metavar="N", help="Timed runs (default: enough of them).")
@click.option("--seconds", type=click.FloatRange(0.1, 600), default=10.0, metavar="S", help="Longest measurement (10).")
@click.option("--per-op", is_flag=True, help="Every layer, not the dearest ten.")
@click.option("--against", type=_PATH, metavar="PATH", help="Another bundle, or what --json wrote earlier.")
@click.option("--max-slowdown", type=float, metavar="PCT", help="Exit code 1 when slower than --against by more.")
@click.option("--history", is_flag=True, help="Keep the result on this machine, and show the earlier ones.")
def profile(
    console: Console,
    artifact: Path,
    on: tuple[str, ...],
    runs: int | None,
    seconds: float,
    per_op: bool,
    against: Path | None,
    max_slowdown: float | None,
    history: bool,
    **way: Any,
) -> int:
    """Measure an inference of ARTIFACT, on its first golden vector.

    Model files are timed by one program, here and over ssh: until the 95 % interval of the median lies within 2 %, or
    --seconds are over. Generated C is timed here, its instructions are counted on an emulated board, its cycles by
    the firmware of a real one. --on may be given several times; other machines are measured at once. With another
    bundle as --against, the two run in alternation. Exit code 5 when a device fails; of a profile that was cut off,
    the runs until then are shown.

    Raises:
        EdgeqError: The artifact or the device cannot be used.
    """
    if max_slowdown is not None and against is None:
        message, hint = "--max-slowdown needs something to be slower than", "--against out/old, or --against old.json"
        raise UsageError(message, code="EQ-U872", place="--max-slowdown", hint=hint)
    bundle, devices = opened(artifact, tuple(dict.fromkeys(on)), Way(**way), seconds, console)

    from edgeq.profiling import Baseline, profile_all

    baseline = None if against is None else Baseline.open(against)
    other = None if baseline is None else baseline.artifact
    names = ", ".join(device.name for device in devices)
    with console.step(f"profile on {names}", len(devices) if len(devices) > 1 else None) as advance:
        if len(devices) == 1:  # in this thread, where Ctrl-C arrives
            found: list[Profile | EdgeqError] = [devices[0].profile(bundle, runs or "auto", other)]
        else:
            found = profile_all(devices, bundle, runs or "auto", other, advance)
    rows = [_judged(bundle, f, baseline, max_slowdown, history) for f in found]
    if len(devices) == 1:
        console.emit_json(rows[0])
    else:
        console.emit_json({"schema": "edgeq.profiles/1", "ok": all(r["ok"] for r in rows), "profiles": rows})
        _table(console, [device.name for device in devices], rows)
    for f, row in zip(found, rows, strict=True):
        if isinstance(f, EdgeqError):
            if not console.talk.json:
                console.error(f)
        else:
            _show(console, bundle, f, row, per_op)
    return _exit_code(found, rows)


def _judged(
    bundle: Artifact, found: Profile | EdgeqError, baseline: Baseline | None, limit: float | None, history: bool
) -> dict[str, Any]:
    """The JSON of a profile with what the baseline and the history say of it; of an error, its own."""
    if isinstance(found, EdgeqError):
        return found.to_dict()
    row = found.to_dict()
    row["gate"] = None if baseline is None or found.error is not None else baseline.gate(found, limit)
    row["ok"] = row["ok"] and (row["gate"] is None or row["gate"]["passed"])
    row["history"] = _remembered(bundle, row) if history else None
    return row


def _remembered(bundle: Artifact, row: Mapping[str, Any]) -> dict[str, Any] | None:
    from edgeq import history
    from edgeq.config_keys import SUFFIXES
    from edgeq.devices.environment import runtime_version
    from edgeq.profiling import conditions, reasons

    format_ = SUFFIXES[bundle.model_file.suffix]
    runtime = runtime_version(format_, row["environment"]["packages"])
    new = history.entry(bundle.model_sha256, row, runtime, conditions(row))
    if new is None:
        return None
    earlier = history.remember(history.variant(bundle.manifest.to_dict(), format_), new)
    last = earlier[0] if earlier else None
    best = min((e.p50 for e in earlier), default=None)
    return {
        "new": new.to_dict(),
        "earlier": [e.to_dict() for e in earlier],
        "best": best,
        "regressed": None if best is None else new.p50 > SLOWER * best,
        "why": reasons(new.p50 / last.p50, last.conditions, new.conditions) if last and last.conditions else [],
    }


def _exit_code(found: Sequence[Profile | EdgeqError], rows: Sequence[Mapping[str, Any]]) -> int:
    for f in found:
        error = f if isinstance(f, EdgeqError) else f.error
        if error is not None:
            return error.exit_code
    return 0 if all(row["ok"] for row in rows) else 1


def _table(console: Console, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """One line a device."""
    cells = []
    for name, row in zip(names, rows, strict=True):
        if row["schema"] == "edgeq.error/1":
            cells.append((name, None, None, None, None, None, row["message"]))
            continue
        figures = [None if row[p] is None else round(row[p], 3) for p in ("min", "p50", "p90", "p99")]
        cells.append((name, *figures, row["runs"], row["unit"] if row["complete"] else f"{row['unit']}, incomplete"))
    console.result_table(("device", "min", "p50", "p90", "p99", "runs", "unit"), cells)
    console.result()


def _show(console: Console, bundle: Artifact, found: Profile, row: Mapping[str, Any], per_op: bool) -> None:
    console.result(f"{bundle.manifest.model['name']} on {found.device}: {_headline(found, row)}")
    console.result("memory: " + ", ".join(f"{name} {size / 1024:.1f} KiB" for name, size in found.memory.items()))
    if row["load_ms"] is not None:
        joules = row["energy"]["joules"]
        energy = "" if joules is None else f"; energy {1e3 * joules:.3g} mJ a run"
        console.result(f"load {row['load_ms']:,.1f} ms, first run {row['first_ms']:,.3f} ms{energy}")
        console.result("; ".join(f"{moment}: {_state(row['state'][moment])}" for moment in ("before", "after")))
    layers = row["layers"] if per_op else sorted(row["layers"], key=lambda c: -c["value"])[:MOST]
    if layers:
        digits = 4 if found.unit == "ms" else 0
        cells = [(c["name"], c["op"], f"{c['value']:,.{digits}f}", f"{100 * c['share']:.1f} %") for c in layers]
        title = None if per_op else f"\nthe dearest of {len(row['layers'])} layers"
        console.result_table(("layer", "operation", found.unit, "share"), cells, title=title)
    if per_op and row["census"]:
        console.result("operations: " + ", ".join(f"{count} {op}" for op, count in row["census"].items()))
    for note in found.notes:
        console.result(f"note: {note}")
    if found.error is not None:
        console.result(f"INCOMPLETE: {found.error.message} ({found.error.code})")
    _show_gate(console, row["gate"])
    if row["history"] is not None:
        _show_history(console, row["history"])


def _headline(found: Profile, row: Mapping[str, Any]) -> str:
    if found.p50 is None or found.p90 is None or found.p99 is None:
        output = row["output"]
        quality = "is equal to" if output["exact"] else f"has {output['sqnr_db'] or -math.inf:.1f} dB of SQNR to"
        return f"runs; its output {quality} the expected one; not timed"
    digits = 3 if found.unit == "ms" else 0
    figure = f"{found.p50:,.{digits}f}"
    if found.runs == 1:
        return f"{figure} {found.unit}"
    least = "" if row["min"] is None else f"{row['min']:,.{digits}f} least, "
    spread = f"{least}{found.p90:,.{digits}f} p90, {found.p99:,.{digits}f} p99 of {found.runs} runs"
    return f"{figure} {found.unit} median, {spread}"


def _state(state: Mapping[str, Any]) -> str:
    """Clock and temperature in words."""
    named = (("mhz", "{} MHz"), ("celsius", "{} °C"), ("governor", "governor {}"), ("load", "load {}"))
    said = [form.format(state[key]) for key, form in named if state[key] is not None]
    return ", ".join([*said, *(state["throttled"] or [])]) or "the machine does not tell"


def _show_gate(console: Console, gate: Mapping[str, Any] | None) -> None:
    if gate is None:
        return
    how = "in alternation" if gate["paired"] else "measured apart"
    ends = ""
    if gate["paired"]:
        ends = " (95 %: {:+.1f} to {:+.1f} %; the fastest tenths {fastest:+.1f} %)".format(*gate["interval"], **gate)
    console.result(f"against {gate['baseline']:,.3f} {gate['unit']}, {how}: {gate['slowdown']:+.1f} %{ends}")
    _show_reasons(console, gate["why"])
    if not gate["passed"]:
        console.result(f"MISSED: slower than the baseline by more than {gate['max_slowdown']:g} %")


def _show_reasons(console: Console, why: Sequence[str]) -> None:
    """Why two medians differ, where they do."""
    for reason in why:
        console.result(f"why: {reason}")


def _show_history(console: Console, found: Mapping[str, Any]) -> None:
    if not found["earlier"]:
        console.result("history: the first profile of this model there")
        return
    rows = [
        (
            e["at"],
            e["artifact"],
            e["runtime"],
            round(e["p50"], 3),
            f"{100 * (found['new']['p50'] / e['p50'] - 1):+.1f} %",
        )
        for e in found["earlier"]
    ]
    console.result_table(("earlier", "artifact", "runtime", found["new"]["unit"], "now"), rows)
    _show_reasons(console, found["why"])
    if found["regressed"]:
        slower = 100 * (found["new"]["p50"] / found["best"] - 1)
        console.result(f"REGRESSION: {slower:.0f} % slower than the best of these")
