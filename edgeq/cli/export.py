"""`edgeq export MODEL --device TARGET`: the artifact, and how good and how fast it is."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeq.cli.compare import show as show_comparison
from edgeq.cli.console import Console
from edgeq.cli.devices import complete_device
from edgeq.cli.models import complete_model
from edgeq.cli.options import Settings, command
from edgeq.config import render_sources
from edgeq.config_keys import BITS, FORMATS, PEERS, SELECTIONS
from edgeq.devices import get_target
from edgeq.preprocessing import WORDS

if TYPE_CHECKING:
    from edgeq.candidate import Candidate
    from edgeq.devices.base import Target
    from edgeq.pipeline import ExportResult

_PATH = click.Path(path_type=Path)


@command(
    "export",
    settings=True,
    examples="""
    edgeq export vit_nano --device rpi
    edgeq export my_vit.onnx --family vit --device rpi4 --calib photos --data val --max-drop 0.5
    edgeq export yolox_nano.onnx --family yolo --device rpi --calib photos --data coco --keep-float auto
    edgeq export vit:deit_small_patch16_224 --weights deit.safetensors --device x86 --calib photos
    """,
)
@click.argument("model", required=False, shell_complete=complete_model)
@click.option("--device", metavar="TARGET", shell_complete=complete_device, help="Where it will run: `edgeq devices`.")
@click.option("--family", metavar="NAME", help="Model family of a file that does not say: vit, cnn, yolo.")
@click.option("--weights", type=_PATH, metavar="FILE", help="Checkpoint of a named architecture (.safetensors, .pth).")
@click.option("--shape", metavar="HxW", help="Height and width of the image that an ONNX network is to take.")
@click.option("--preprocess", metavar="WORDS", help=f"How photos become the input: {WORDS}.")
@click.option(
    "--calib", type=_PATH, metavar="PATH", help="Photos like those the device will see; a quarter is held out."
)
@click.option("--samples", type=int, metavar="N", help="Calibration images at most (default 128).")
@click.option("--select", metavar="RULE", help=f"How they are chosen: {', '.join(SELECTIONS)} (default random).")
@click.option("--data", type=_PATH, metavar="PATH", help="Labelled data: a folder a class, .npz, images/ + labels/.")
@click.option("--limit", type=int, metavar="N", help="Labelled items at most.")
@click.option("--format", metavar="NAME", help=f"File format: {', '.join(FORMATS)}; auto is what the target runs best.")
@click.option("--bits", metavar="NAME", help=f"Weights and activations: {', '.join(BITS)}.")
@click.option("--budget-kb", type=float, metavar="KB", help="Largest model file; --bits mixed spends it.")
@click.option("--scheme", metavar="NAME", help="auto (build all, ship the best), weights, dynamic, static, integer.")
@click.option(
    "--method", metavar="NAME", help="How tensors are made to fit: auto, transformer, minmax, ...; `edgeq methods`."
)
@click.option("--rounding", metavar="NAME", help="How weights are rounded: auto, nearest, gptq, ...; `edgeq methods`.")
@click.option("--keep-float", metavar="NAMES", help="Operations kept float: auto, none, the N worst, or names.")
@click.option("--narrow", metavar="NAMES", help="Layers whose weights get 4 bits, by name; what `edgeq search` found.")
@click.option("--patches", metavar="N", help="Microcontrollers: first layers in N bands of rows; auto if RAM is short.")
@click.option(
    "--budget-minutes",
    type=float,
    metavar="MIN",
    help="Then learn roundings for so long (static, integer).",
)
@click.option("--learn-steps", type=int, metavar="N", help="The same as steps per block; repeatable to the byte.")
@click.option("--degrade", metavar="NAMES", help="Round weights on samples half of which are degraded: mix, or names.")
@click.option(
    "--min-sqnr-db", type=float, metavar="DB", help="Floor of the median fidelity to float (20; whisper 10, yolo 6)."
)
@click.option(
    "--max-drop", type=float, metavar="POINTS", help="Largest loss of the task metric on --data (default 0.5)."
)
@click.option("--force", is_flag=True, default=None, help="Ship the fastest candidate even if a gate fails.")
@click.option("--compare", metavar="NAMES", help=f"Show other quantizers beside: {','.join(PEERS)} or some of them.")
@click.option("--runs", metavar="N", help="Timed pairs of runs (default auto: until the ratio is known within 2 %).")
@click.option("--out", type=_PATH, metavar="DIR", help="Folder to write (default out/MODEL-DEVICE).")
@click.option("--exist", metavar="fail|replace", help="When DIR exists (default fail).")
@click.option("--dry-run", is_flag=True, default=None, help="Say what would be done, and what stays float and why.")
@click.option("--show-config", is_flag=True, help="Print every setting with its source, and stop.")
def export(console: Console, settings: Settings, model: str | None, show_config: bool, **flags: object) -> int:
    """Quantize MODEL for TARGET, measure every candidate, and write the best one as a self-contained folder.

    MODEL is a name (`edgeq models`), family:architecture, or an ONNX file; for microcontrollers also an int8 .tflite
    file, whose integers are taken as they are.

    Raises:
        EdgeqError: Whatever keeps the artifact from being written; nothing is left behind.
    """
    config, sources = settings.resolve({"model": model, **flags}, lambda name: get_target(name).defaults or {})
    if show_config:
        rows = render_sources(config, sources)
        console.result_table(("setting", "value", "source"), rows)
        values = {name: {"value": value, "source": source} for name, value, source in rows}
        console.emit_json({"schema": "edgeq.config/1", "ok": True, "config": values})
        return 0

    from edgeq import pipeline  # imports torch

    if config.dry_run:
        plan = pipeline.dry_run(config, console)
        console.emit_json(plan)
        _show_plan(console, plan)
        return 0
    result = pipeline.export(config, ["edgeq", *sys.argv[1:]], console)
    console.emit_json(result.summary)
    _show(console, result)
    return 0


def _show_plan(console: Console, plan: Mapping[str, Any]) -> None:
    console.result(
        f"{plan['model']} for {plan['target']} ({plan['format']}): {plan['calibration_images']} calibration images, "
        f"{plan['held_out_images']} held out"
    )
    for scheme in plan["schemes"]:
        console.result_table(
            ("operation, mode", "count"),
            list(scheme["ops"].items()),
            title=f"\n{scheme.get('network', '')} {scheme['scheme']}",
        )
        for reason in scheme["float_because"]:
            console.result(f"  float: {reason}")


def _show(console: Console, result: ExportResult) -> None:
    """The table of candidates, and what to do next."""
    summary = result.summary
    choice = result.choice
    judged = [(name, c) for name, found in choice.judged.items() for c in found]
    rows = [_row(name, c, c.scheme == choice.shipped[name].scheme) for name, c in judged]
    console.result_table(
        ("candidate", "size MB", "SQNR dB median", "worst", "time / float", "integer MACs", "verdict"), rows
    )
    latency = summary["latency"]
    timed = "" if latency is None else f", {latency['float']:.2f} ms on this machine"
    if summary["float_bytes"] is not None:
        console.result(f"float: {summary['float_bytes'] / 1e6:.2f} MB{timed}")
    if summary["microcontroller"]:
        _show_program(console, summary["microcontroller"], result.target)
    if metric := summary["metric"]:
        low, high = metric["difference_interval"]
        console.result(
            f"{metric['name']}: float {metric['float']:.2f}, artifact {metric['quantized']:.2f} "
            f"(n={metric['n']}, difference {low:+.2f} to {high:+.2f} at 95 %)"
        )
        for name, scores in metric["also"].items():
            console.result(f"{name}: float {scores['float']:.2f}, artifact {scores['quantized']:.2f}")
    if ported := summary.get("ported"):
        console.result(
            f"beside LiteRT's reference kernels: {ported['different']} of {ported['codes']} codes differ, by "
            f"{ported['largest']} at most; the largest output is the same for {100 * ported['agreement']:.0f} % of "
            f"{ported['inputs']} random inputs"
        )
    for name, candidate in judged:
        for reason in candidate.rejected:
            console.result(f"{name} {candidate.scheme}: {reason}".strip())
        if candidate.latency is not None and candidate.latency.disturbed:
            console.warn(
                f"{name} {candidate.scheme}: other programs took turns with the runs, so its time decides nothing; "
                f"their fastest tenth says {candidate.latency.fastest:.2f} of float's: measure on a quiet machine"
            )
    if result.comparison:
        show_comparison(console, result.comparison)
    if not summary["gates"]["passed"]:
        console.warn("a gate failed and --force shipped the artifact all the same")
    run = f"python {result.artifact / 'run.py'}"
    if summary["microcontroller"]:
        run = f"edgeq verify {result.artifact} --on {_best_device(summary['microcontroller'])}"
    console.result(f"{result.artifact}  next: {run}, edgeq inspect {result.artifact}")


def _show_program(console: Console, program: Mapping[str, Any], target: Target) -> None:
    """What the C takes, and what running it gave."""
    parts = (("flash", program["flash_bytes"], target.flash_kb), ("RAM", program["ram_bytes"], target.ram_kb))
    sizes = [f"{kind} {used / 1024:.1f}{f' of {limit}' if limit else ''} KiB" for kind, used, limit in parts]
    code = "" if program["code_bytes"] is None else f", and {program['code_bytes'] / 1024:.1f} KiB of code"
    console.result(f"C: {', '.join(sizes)} (arena {program['arena_bytes'] / 1024:.1f} KiB){code}")
    if patches := program["patches"]:
        ram, whole, moved = (n / 1024 for n in (program["ram_bytes"], patches["ram_whole"], patches["moved"]))
        console.result(
            f"the first {patches['ops']} layers run in {patches['count']} patches: RAM {ram:.1f} instead of "
            f"{whole:.1f} KiB, no product computed twice, {moved:.0f} KiB of rows moved a run"
        )
    if program["exact"]:
        console.result("C and interpreter give the same integers")
    if program["instructions"] is not None:
        share = ", ".join(f"{kind} {100 * part:.0f} %" for kind, part in list(program["share"].items())[:4])
        console.result(f"{program['instructions']:,} instructions on {program['machine']} (not cycles): {share}")
    for reason in program["not_measured"]:
        console.result(f"not measured: {reason}")


def _best_device(program: Mapping[str, Any]) -> str:
    return f"qemu://{program['machine']}" if program["machine"] else "local"


def _row(network: str, candidate: Candidate, ships: bool) -> tuple[object, ...]:
    verdict = "ships" if ships else ("rejected" if candidate.rejected else "passes, not chosen")
    worst = candidate.worst_output
    return (
        f"{network} {candidate.scheme}".strip(),
        round(candidate.bytes / 1e6, 2 if candidate.bytes >= 1e6 else 3),
        None if worst is None else round(worst.median, 1),
        None if worst is None else round(worst.worst, 1),
        None if candidate.latency is None else round(candidate.latency.ratio, 3),
        f"{100 * candidate.read_back.integer_mac_share:.0f} %",
        verdict,
    )
