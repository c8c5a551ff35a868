"""`edgeq search MODEL --device TARGET`: bits for each layer, by what they cost on your own device."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeq.cli.console import Console
from edgeq.cli.devices import complete_device
from edgeq.cli.models import complete_model
from edgeq.cli.options import Settings, command
from edgeq.config_keys import FORMATS
from edgeq.devices import get_target
from edgeq.errors import UsageError
from edgeq.preprocessing import WORDS

if TYPE_CHECKING:
    from edgeq.search.problem import Budgets

_PATH = click.Path(path_type=Path)
_COSTS = ("ms", "instructions", "ratio")


@command(
    "search",
    settings=True,
    examples="""
    edgeq search vit_nano --device x86 --format tflite --budget-ratio 0.6
    edgeq search vit_nano --device rpi --on ssh://pi@raspberrypi --budget-ms 4 --data test.npz
    edgeq search vit_nano --device cortex-m4 --on qemu://mps2-an386 --budget-kb 800 --budget-instructions 130000000
    """,
)
@click.argument("model", required=False, shell_complete=complete_model)
@click.option("--device", metavar="TARGET", shell_complete=complete_device, help="Where it will run: `edgeq devices`.")
@click.option("--on", metavar="DEVICE", default="local", help="Where costs are measured: local, ssh://..., qemu://...")
@click.option("--budget-ms", type=float, metavar="MS", help="Longest inference, in milliseconds of the device.")
@click.option("--budget-ratio", type=float, metavar="R", help="The same, of float's time; of a C program, of w8a8's.")
@click.option("--budget-instructions", type=float, metavar="N", help="Most instructions, where a device counts them.")
@click.option("--budget-kb", type=float, metavar="KB", help="Largest model file, or constants of C; offers 4 bits.")
@click.option("--builds", type=click.IntRange(1, 100), default=4, metavar="N", help="Mixed files to measure (4).")
@click.option("--minutes", type=click.FloatRange(0), metavar="MIN", help="Begin no further build after that.")
@click.option("--resume", is_flag=True, help="Go on in a folder whose search is finished, with another budget say.")
@click.option("--remeasure", is_flag=True, help="Forget what earlier searches measured.")
@click.option("--python", metavar="PATH", default="python3", help="Interpreter of a device over ssh.")
@click.option("--family", metavar="NAME", help="Model family of a file that does not say: vit, cnn, yolo.")
@click.option("--weights", type=_PATH, metavar="FILE", help="Checkpoint of a named architecture.")
@click.option("--shape", metavar="HxW", help="Height and width of the image that an ONNX network is to take.")
@click.option("--preprocess", metavar="WORDS", help=f"How photos become the input: {WORDS}.")
@click.option("--calib", type=_PATH, metavar="PATH", help="Samples like those the device will see.")
@click.option("--samples", type=int, metavar="N", help="Calibration samples at most (default 128).")
@click.option("--data", type=_PATH, metavar="PATH", help="Labelled data for the task metric.")
@click.option("--limit", type=int, metavar="N", help="Labelled items at most.")
@click.option("--format", metavar="NAME", help=f"File format: {', '.join(FORMATS)}; auto is what the target runs best.")
@click.option("--scheme", metavar="NAME", help="auto (the cheapest on the device), dynamic, static, integer.")
@click.option("--method", metavar="NAME", help="How tensors are made to fit; `edgeq methods`.")
@click.option("--rounding", metavar="NAME", help="How weights are rounded; `edgeq methods`.")
@click.option("--min-sqnr-db", type=float, metavar="DB", help="Floor of the median fidelity to float.")
@click.option("--max-drop", type=float, metavar="POINTS", help="Largest loss of the metric on --data (default 0.5).")
@click.option("--out", type=_PATH, metavar="DIR", help="Folder to write (default out/MODEL-TARGET-search).")
def search(console: Console, settings: Settings, model: str | None, on: str, **options: Any) -> int:
    """Choose the bits of each layer of MODEL so that it keeps a budget on a device and loses least.

    Uniform files and a table of what each layer costs are measured on the device, then the best allocation is built,
    measured, and corrected until it keeps the budget. DIR/best is the best bundle so far, at any moment; the same
    command continues what was interrupted. Exit code 1, with the nearest budget, when nothing keeps it.

    Raises:
        EdgeqError: The model, the data or the device cannot be used; what was measured is kept.
    """
    named = ("python", "builds", "minutes", "resume", "remeasure", *(f"budget_{b}" for b in (*_COSTS, "kb")))
    own = {name: options.pop(name) for name in named}
    budgets = _budgets(own)
    config, _ = settings.resolve({"model": model, **options}, lambda name: get_target(name).defaults or {})

    from edgeq.devices.attached import open_device
    from edgeq.pipeline import default_out  # imports torch
    from edgeq.search.run import SearchRequest
    from edgeq.search.run import search as run

    told = lambda holder: console.say(f"waiting for {holder}, who measures there")  # noqa: E731
    device = open_device(on, config.threads or 1, python=own["python"], waiting=told)
    out = config.out or default_out(config).with_name(f"{default_out(config).name}-search")
    kept = {name: own[name] for name in ("builds", "minutes", "resume", "remeasure")}
    result = run(SearchRequest(config, budgets, out, **kept), device, ["edgeq", *sys.argv[1:]], console)
    console.emit_json(result)
    _show(console, result)
    return 0


def _budgets(given: Mapping[str, Any]) -> Budgets:
    """The budgets of the command line.

    Raises:
        UsageError: EQ-U882, none, an impossible one, or two of what an inference costs.
    """
    from edgeq.search.problem import Budgets

    costs = {unit: given[f"budget_{unit}"] for unit in _COSTS if given[f"budget_{unit}"] is not None}
    if len(costs) > 1:
        message, hint = "an inference has one budget", "keep one of --budget-ms, --budget-ratio, --budget-instructions"
        raise UsageError(message, code="EQ-U882", place=f"--budget-{list(costs)[1]}", hint=hint)
    ((unit, cost),) = costs.items() or [("ms", None)]
    return Budgets(cost, unit, given["budget_kb"])


def _show(console: Console, result: Mapping[str, Any]) -> None:
    winner, unit, limit = result["winner"], result["unit"], result["budget"]["limit"]
    rows = [_row(trial, unit, winner) for trial in (*result["uniform"], *result["mixed"])]
    columns = (
        "file",
        "layers by bits",
        unit,
        "of reference",
        "predicted",
        "kB",
        "SQNR dB",
        "worst",
        "metric",
        "verdict",
    )
    console.result_table(columns, rows)
    wanted = [] if limit is None else [f"{_number(limit, unit)} {unit}"]
    wanted += [] if result["budget"]["kb"] is None else [f"{result['budget']['kb']:g} kB"]
    device = result["device"]
    console.result(f"budget {' and '.join(wanted)}; measured on {device['device']}, {device['board']}")
    if len(winner["bits"]) == 1 and not winner["cost"]["predicted"]:
        console.result("the uniform file keeps the budget, and no mixed one is better")
    for trial in (*result["uniform"], *result["mixed"]):
        for reason in trial["missed"]:
            console.result(f"{trial['label']}: {reason}")
    for note in result["notes"]:
        console.result(f"note: {note}")
    folder = Path(winner["artifact"])
    console.result(f"{folder}  next: edgeq profile {folder}, or {folder.with_name('search.html')} in a browser")


def _row(trial: Mapping[str, Any], unit: str, winner: Mapping[str, Any]) -> tuple[object, ...]:
    cost, quality = trial["cost"], trial["fidelity"]["sqnr_db"]
    bits = ", ".join(f"{n} in {'float' if b == '32' else b}" for b, n in trial["bits"].items()) or "-"
    verdict = "ships" if trial["label"] == winner["label"] else "keeps it" if trial["kept"] else "over budget"
    return (
        trial["label"],
        bits,
        _number(cost["measured"], unit),
        f"{trial['ratio']:.3f}",
        "-" if cost["predicted"] is None else f"{100 * (cost['predicted'] / cost['measured'] - 1):+.1f} %",
        round(trial["bytes"] / 1000),
        None if quality["median"] is None else f"{quality['median']:.1f}",
        None if quality["worst"] is None else f"{quality['worst']:.1f}",
        None if trial["metric"] is None else f"{trial['metric']:.2f}",
        "rejected" if trial["missed"] else verdict,
    )


def _number(value: float, unit: str) -> str:
    return f"{value:.3f}" if unit == "ms" else f"{value:,.0f}"
