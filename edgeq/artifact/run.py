#!/usr/bin/env python3
"""Run the model in this folder. Needs Python 3.9, numpy and the runtime of the model file.

    .tflite   pip install ai-edge-litert (or tflite-runtime)
    .xml      pip install openvino
    .onnx     pip install onnxruntime

    python run.py                    compare this machine's results with the golden vectors
    python run.py photo.jpg x.npy    run images (needs Pillow) or prepared inputs
    python run.py cloud.npy          with points.py beside this file: run a point cloud (.npy, .npz, text)
    python run.py clip.wav           with a driver beside this file: run what that reads
    python run.py --save maps a.jpg  write the outputs; of a depth network also pictures of depth (else into .)
    python run.py --bench 100        time it

Exit codes: 0 right; 1 the golden vectors are missed; 2 wrong options; 3 a file cannot be used; 4 a package is absent.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import math
import re
import sys
import time
from pathlib import Path
from typing import Any

try:
    import numpy as np
except ImportError:
    sys.exit("error: numpy is absent\n  try: pip install numpy")

HERE = Path(__file__).resolve().parent


class Failure(Exception):
    """What the user is told, and the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class LiteRt:
    """A `.tflite` file in LiteRT."""

    def __init__(self, path: Path, threads: int, settings: dict[str, str]) -> None:
        del settings  # LiteRT has none that change results
        try:
            self.interpreter = self.runtime().Interpreter(model_path=str(path), num_threads=threads)
            self.interpreter.allocate_tensors()
        except ValueError as error:
            if "Didn't find op" not in str(error):
                raise
            reason = str(error).partition(". ")[0]
            raise Failure(f"this LiteRT is too old: {reason}\n  try: pip install -U ai-edge-litert", 4) from error
        self.inputs = self.ordered("inputs", self.interpreter.get_input_details())
        self.outputs = self.ordered("outputs", self.interpreter.get_output_details())
        self.shapes = [tuple(info["shape"]) for info in self.inputs]

    @staticmethod
    def runtime() -> Any:
        """The interpreter's module."""
        for package in ("ai_edge_litert", "tflite_runtime"):
            if importlib.util.find_spec(package) is not None:
                return importlib.import_module(f"{package}.interpreter")
        hint = "pip install ai-edge-litert  (on older boards: pip install tflite-runtime)"
        raise Failure(f"LiteRT is absent\n  try: {hint}", 4)

    def ordered(self, side: str, details: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Tensors in the order of the call: the converter numbers arguments, the file may list them otherwise."""
        signatures = list(getattr(self.interpreter, "_get_full_signature_list", dict)().values())
        names = signatures[0].get(side, {}) if len(signatures) == 1 else {}
        named = {index: name for name, index in names.items()}
        numbers = [re.fullmatch(r"(?:args|output)_(\d+)", named.get(d["index"], d["name"])) for d in details]
        keys = [int(n[1]) if n else -1 for n in numbers]
        if min(keys) < 0:
            return details
        return [details[i] for i in sorted(range(len(keys)), key=keys.__getitem__)]

    def place(self, index: int, array: Any) -> None:
        """Set an input, quantized where the model takes integers."""
        info = self.inputs[index]
        scale, zero = info["quantization"]
        if scale and array.dtype.kind == "f" and np.dtype(info["dtype"]).kind in "iu":
            limits = np.iinfo(info["dtype"])
            array = np.rint(array.astype(np.float32) * np.float32(1.0 / scale)) + np.float32(zero)
            array = np.clip(array, limits.min, limits.max)
        self.interpreter.set_tensor(info["index"], np.ascontiguousarray(array.astype(info["dtype"])))

    def invoke(self) -> None:
        """Run once on the placed inputs."""
        self.interpreter.invoke()

    def results(self) -> list[Any]:
        """Copies of the outputs; integers come back as real values."""
        values = []
        for info in self.outputs:
            value, (scale, zero) = np.array(self.interpreter.get_tensor(info["index"])), info["quantization"]
            if scale and value.dtype.kind in "iu":
                value = ((value.astype(np.int32) - zero) * np.float32(scale)).astype(np.float32)
            values.append(value)
        return values


OPTIONS = "runtime_options"
"""Place of the runtime's options in the meta data of an `.xml` file."""


def file_options(model: Any) -> dict[str, str]:
    """The options that an OpenVINO file asks for; without them OpenVINO chooses by the CPU: bfloat16 where it can."""
    if not model.has_rt_info(OPTIONS):
        return {}
    wanted = model.get_rt_info(OPTIONS)
    values = wanted.value if hasattr(wanted, "value") else wanted
    return {str(key): str(getattr(value, "value", value)) for key, value in dict(values).items()}


class OpenVino:
    """An `.xml` file with its `.bin` in OpenVINO, on the CPU, with the options it was measured with."""

    def __init__(self, path: Path, threads: int, settings: dict[str, str]) -> None:
        if importlib.util.find_spec("openvino") is None:
            raise Failure("OpenVINO is absent\n  try: pip install openvino", 4)
        self.openvino: Any = importlib.import_module("openvino")
        core = self.openvino.Core()
        model = core.read_model(str(path))
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, **file_options(model), **settings}
        self.request = core.compile_model(model, "CPU", options).create_infer_request()
        self.inputs, self.outputs = self.request.model_inputs, self.request.model_outputs
        self.shapes = [tuple(port.shape) for port in self.inputs]

    def place(self, index: int, array: Any) -> None:
        """Set an input."""
        self.request.get_input_tensor(index).data[:] = array

    def invoke(self) -> None:
        """Run once on the placed inputs."""
        self.request.infer()

    def results(self) -> list[Any]:
        """Copies of the outputs."""
        return [np.array(self.request.get_output_tensor(i).data) for i in range(len(self.outputs))]


class OnnxRuntime:
    """An `.onnx` file in onnxruntime, on the CPU."""

    def __init__(self, path: Path, threads: int, settings: dict[str, str]) -> None:
        if importlib.util.find_spec("onnxruntime") is None:
            raise Failure("onnxruntime is absent\n  try: pip install onnxruntime", 4)
        runtime: Any = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        for key, value in settings.items():
            options.add_session_config_entry(key, value)
        self.session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = self.session.get_inputs(), self.session.get_outputs()
        self.shapes = [tuple(info.shape) for info in self.inputs]
        self.feed: dict[str, Any] = {}
        self.values: list[Any] = []

    def place(self, index: int, array: Any) -> None:
        """Set an input."""
        kind = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}.get(self.inputs[index].type, np.float32)
        self.feed[self.inputs[index].name] = np.ascontiguousarray(array, dtype=kind)

    def invoke(self) -> None:
        """Run once on the placed inputs."""
        self.values = self.session.run(None, self.feed)

    def results(self) -> list[Any]:
        """The outputs."""
        return list(self.values)


RUNTIMES: dict[str, Any] = {".tflite": LiteRt, ".xml": OpenVino, ".onnx": OnnxRuntime}


class Model:
    """The model file: real arrays in, real arrays out, in the order of the manifest."""

    def __init__(self, manifest: dict[str, Any], threads: int, folder: Path = HERE) -> None:
        path = folder / model_entry(manifest)["path"]
        self.folder = folder
        for entry in manifest["files"]:  # the model and what belongs to it, such as weights in a file of their own
            if entry["path"].startswith(f"{path.stem}."):
                check_hash(folder / entry["path"], entry["sha256"])
        try:
            self.loaded = RUNTIMES[path.suffix](path, threads, manifest.get("runtime", {}))
        except Failure:
            raise
        except Exception as error:  # each runtime has its own kinds
            raise Failure(f"{path.name} cannot be loaded: {error}", 3) from error
        self.inputs, self.outputs = self.loaded.inputs, self.loaded.outputs

    def place(self, arrays: list[Any]) -> None:
        """Set the inputs."""
        if len(arrays) != len(self.inputs):
            raise Failure(f"the model takes {len(self.inputs)} inputs, not {len(arrays)}", 3)
        for i, wanted in enumerate(self.loaded.shapes):
            array = np.asarray(arrays[i])
            if array.shape != wanted:
                raise Failure(f"input {i} must have shape {wanted}, not {array.shape}", 3)
            self.loaded.place(i, array)

    def invoke(self) -> None:
        """Run once on the placed inputs."""
        try:
            self.loaded.invoke()
        except Exception as error:  # each runtime has its own kinds
            raise Failure(f"the model fails on this machine: {error}", 3) from error

    def run(self, arrays: list[Any]) -> list[Any]:
        """Run once; integer outputs come back as real values."""
        self.place(arrays)
        self.invoke()
        return list(self.loaded.results())

    def call(self, *arrays: Any) -> list[Any]:
        """As `run`, with one argument an input."""
        return self.run(list(arrays))


def check_hash(path: Path, sha256: str) -> None:
    """Refuse a file that is not the one the manifest lists."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Failure(f"{path.name} cannot be read: {error.strerror}", 3) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise Failure(f"{path.name} is not the file that was exported; copy the folder again", 3)


def load_manifest(folder: Path = HERE) -> dict[str, Any]:
    """`manifest.json` in `folder`."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        absent = {"files", "golden", "labels", "outputs", "preprocess"} - set(manifest)
        if absent:
            raise ValueError(f"it lacks {', '.join(sorted(absent))}")
        if not manifest.get("networks"):
            model_entry(manifest)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise Failure(f"manifest.json cannot be used: {error}", 3) from error
    return dict(manifest)


def model_entry(manifest: dict[str, Any]) -> dict[str, Any]:
    """Path and hash of the model file."""
    return dict(next(f for f in manifest["files"] if Path(f["path"]).suffix in RUNTIMES))


def read_rgb(path: Path) -> Any:
    """An image file as upright 8-bit RGB, transparent parts over white."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise Failure("Pillow is absent\n  try: pip install pillow", 4) from error
    with Image.open(path) as opened:
        opened.load()
        image, kind = ImageOps.exif_transpose(opened), opened.format
    if image.mode.startswith("I;16") or (image.mode == "I" and kind == "PNG"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        over = Image.new("RGBA", image.size, "white")
        over.alpha_composite(image.convert("RGBA"))
        return over.convert("RGB")
    if image.mode in ("I", "F", "LAB"):
        raise Failure(f"{path} has pixels of kind {image.mode}; convert it to 8-bit RGB", 3)
    return image.convert("RGB")


def preprocess(image: Any, how: dict[str, Any]) -> Any:
    """RGB image to float32 `(3, height, width)`, bit for bit as edgeq prepared the calibration images."""
    resample = {"bilinear": 2, "bicubic": 3}[how["interpolation"]]  # Pillow's numbers, the same in all versions
    if how["resize"] == "squash":
        image = image.resize((how["width"], how["height"]), resample)
    elif how["resize"] == "letterbox":
        width, height, left, top = beside("detection").letterbox(image.width, image.height, how)
        photo, image = image, image.resize((how["width"], how["height"]))
        image.paste((how["fill"],) * 3, (0, 0, *image.size))
        image.paste(photo.resize((width, height), resample), (left, top))
    else:
        width, height = (int(how[side] / how["crop_fraction"] + 1e-6) for side in ("width", "height"))
        if image.width * height <= image.height * width:
            height = width * image.height // image.width
        else:
            width = height * image.width // image.height
        left, top = round((width - how["width"]) / 2), round((height - how["height"]) / 2)
        image = image.resize((width, height), resample)
        image = image.crop((left, top, left + how["width"], top + how["height"]))
    mean, std = np.array(how["mean"], dtype=np.float32), np.array(how["std"], dtype=np.float32)
    colours = np.asarray(image, dtype=np.float32)[..., :: -1 if how.get("channels") == "bgr" else 1]
    pixels = (colours / np.float32(255) - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def beside(name: str) -> Any:
    """A module beside this file: `detection` and `depthmap` read outputs, `points` makes inputs."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    if spec is None or spec.loader is None or not (HERE / f"{name}.py").is_file():
        raise Failure(f"{name}.py is absent; copy the folder again", 3)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_input(path: Path, manifest: dict[str, Any], count: int) -> tuple[list[Any], Any]:
    """The model's inputs from an image, a `.npy` (one input) or a `.npz` (`input_0`, ... without the vector axis).

    With them the width and height of the image; None for arrays.
    """
    try:
        if manifest.get("cloud") and not prepared(path):
            return cloud_inputs(path, manifest["cloud"]), None
        if path.suffix == ".npy":
            return [np.load(path, allow_pickle=False)], None
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as store:
                return [store[f"input_{i}"] for i in range(count)], None
        if manifest["preprocess"] is None:
            raise Failure("this model takes no images; give .npy or .npz files", 3)
        image = read_rgb(path)
        return [preprocess(image, manifest["preprocess"])[None]], image.size
    except Failure:
        raise
    except Exception as error:  # decoders report damage in a dozen ways
        raise Failure(f"{path}: {error}", 3) from error


def prepared(path: Path) -> bool:
    """Whether a `.npz` holds network inputs and not a sample."""
    if path.suffix != ".npz":
        return False
    with np.load(path, allow_pickle=False) as store:
        return "input_0" in store.files


def cloud_inputs(path: Path, how: dict[str, Any]) -> list[Any]:
    """The model's inputs from a point cloud, as edgeq made them of the calibration clouds."""
    points = beside("points")
    try:
        return list(points.network_inputs(points.read_cloud(path), how))
    except points.Unusable as error:
        raise Failure(f"{path} {error}\n  try: {error.hint}", 4 if error.reason == points.PACKAGE else 3) from error


def sqnr_db(expected: Any, found: Any) -> float:
    """Variance of `expected` over the mean squared difference, in dB; infinite when equal."""
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    noise = float(np.mean((expected - found) ** 2))
    if noise == 0:
        return math.inf
    signal = 0.0 if expected.min() == expected.max() else float(np.var(expected))
    return 10 * math.log10(signal / noise) if signal > 0 and math.isfinite(noise) else -math.inf


def golden_arrays(folder: Path, name: str, prefix: str, count: int) -> list[Any]:
    """`PREFIX_0`, `PREFIX_1`, ... of a file of golden vectors, each `(vectors, *shape)`."""
    try:
        with np.load(folder / "golden" / name, allow_pickle=False) as store:
            return [store[f"{prefix}_{i}"] for i in range(count)]
    except Exception as error:  # numpy and zipfile report damage in a dozen ways
        raise Failure(f"golden/{name} cannot be read: {error}", 3) from error


def check_golden(model: Model, manifest: dict[str, Any]) -> dict[str, Any]:
    """Run the golden vectors and compare."""
    inputs = golden_arrays(model.folder, "inputs.npz", "input", len(model.inputs))
    expected = golden_arrays(model.folder, "expected.npz", "output", len(model.outputs))
    worst, same, largest = [], 0, 0.0
    vectors = len(inputs[0])
    for v in range(vectors):
        found = model.run([array[v] for array in inputs])
        wanted = [array[v] for array in expected]
        worst.append(min(sqnr_db(wanted[i], found[i]) for i in range(len(found))))
        largest = max([largest, *(float(np.abs(wanted[i] - found[i]).max()) for i in range(len(found)))])
        same += int(np.argmax(wanted[0]) == np.argmax(found[0]))
    median, limits = float(np.median(worst)), manifest["golden"]
    agrees = manifest["labels"] is None or same >= limits["min_agreement"] * vectors
    return {
        "vectors": vectors,
        "max_difference": largest,
        "exact": largest == 0,
        "sqnr_db": {"median": finite(median), "worst": finite(min(worst))},
        "agreement": same / vectors if manifest["labels"] is not None else None,
        "limits": limits,
        "passed": bool(median >= limits["min_sqnr_db"] and agrees),
    }


def finite(value: float) -> float | None:
    """JSON has no infinity: null stands for equal."""
    return round(value, 2) if math.isfinite(value) else None


def describe(outputs: list[Any], manifest: dict[str, Any], size: Any) -> dict[str, Any]:
    """Boxes in an image of `size`, objects in a cloud, range of a depth map, five labels, else of outputs."""
    head, how, cloud = manifest.get("postprocess"), manifest["preprocess"], manifest.get("cloud")
    if cloud and "head" in cloud:
        found = beside("points").find_objects(outputs, cloud)
        return {
            "objects": [
                {
                    "label": cloud["head"]["names"][int(o[6])],
                    "score": float(o[5]),
                    "place": [round(float(v), 2) for v in o[:5]],
                }
                for o in found
            ]
        }
    if head is not None and head["decode"] == "depth":
        reader = beside("depthmap")
        return {"depth": reader.summarize(reader.read_map(outputs[0], head), head)}
    if head is not None:
        found = beside("detection").detect(outputs, head, how, size or (how["width"], how["height"]))
        return {
            "boxes": [
                {
                    "label": head["names"][int(b[5])],
                    "score": float(b[4]),
                    "corners": [round(float(v), 1) for v in b[:4]],
                }
                for b in found
            ]
        }
    if manifest["labels"] is None:
        names = [o["name"] for o in manifest["outputs"]]
        return {
            "outputs": [
                {"name": names[i], "shape": list(a.shape), "min": float(a.min()), "max": float(a.max())}
                for i, a in enumerate(outputs)
            ]
        }
    scores = outputs[0].astype(np.float64).ravel()
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    best = np.argsort(-scores, kind="stable")[:5]
    return {"top": [{"label": manifest["labels"][i], "index": int(i), "probability": float(shares[i])} for i in best]}


def bench(model: Model, runs: int) -> dict[str, Any]:
    """Milliseconds of `runs` runs after three untimed ones, on the first golden vector."""
    model.place([array[0] for array in golden_arrays(model.folder, "inputs.npz", "input", len(model.inputs))])
    for _ in range(3):
        model.invoke()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        model.invoke()
        times.append(1e3 * (time.perf_counter() - start))
    p50, p90, p99 = np.percentile(times, (50, 90, 99))
    return {"unit": "ms", "p50": float(p50), "p90": float(p90), "p99": float(p99), "runs": runs}


def show(result: dict[str, Any]) -> None:
    """The result for people."""
    for item in result.get("results", []):
        print(item["file"])
        if "text" in item:
            print(f"  {item['text']}")
        for entry in item.get("top", []):
            print(f"  {entry['probability']:6.1%}  {entry['label']}")
        if [] in (item.get("boxes"), item.get("objects")):
            print("  nothing found")
        for entry in item.get("objects", []):
            print(f"  {entry['score']:6.1%}  {entry['label']:<16}", *(f"{v:7.2f}" for v in entry["place"]))
        for entry in item.get("boxes", []):
            print(f"  {entry['score']:6.1%}  {entry['label']:<16}", *(f"{v:7.1f}" for v in entry["corners"]))
        if "depth" in item:
            print("  {min:.4g} to {max:.4g}, median {median:.4g} ({unit})".format(**item["depth"]))
            print("", *item["depth"].get("files", []))
        for entry in item.get("outputs", []):
            print(f"  {entry['name']} {entry['shape']}  {entry['min']:.4g} to {entry['max']:.4g}")
    if "golden" in result:
        golden = result["golden"]
        sqnr, share = golden["sqnr_db"], golden["agreement"]
        quality = "exact" if golden["exact"] else f"SQNR median {sqnr['median']} dB, worst {sqnr['worst']} dB"
        agreement = "" if share is None else f", same class in {share:.0%}"
        largest = f"largest difference {golden['max_difference']:.3g}"
        print(f"golden vectors: {golden['vectors']}, {largest}, {quality}{agreement}")
        print("passed" if golden["passed"] else f"FAILED: wanted {golden['limits']}")
    if "latency" in result:
        latency = result["latency"]
        print("latency: {p50:.3f} ms median, {p90:.3f} p90, {p99:.3f} p99 of {runs} runs".format(**latency))


def main(argv: list[str]) -> int:
    """Parse options, run, print; returns the exit code."""
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(
        description=lines[0],
        epilog="\n".join(lines[2:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", type=Path, help="images, .npy or .npz; none: check the golden vectors")
    parser.add_argument("--bench", type=int, metavar="N", help="time N runs")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of the runtime (default 1)")
    parser.add_argument("--save", type=Path, metavar="DIR", help="write the outputs of each file as DIR/NAME.npz")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    if options.threads < 1 or (options.bench is not None and options.bench < 1):
        parser.error("--threads and --bench take positive numbers")
    if options.save and not options.files:
        parser.error("--save needs files to run")
    try:
        manifest = load_manifest()
        work = run_networks if manifest.get("networks") else run_model
        result = {"schema": "edgeq.run/1", **work(manifest, options)}
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        return failure.code
    if options.json:
        print(json.dumps(result, sort_keys=True))
    else:
        show(result)
        for name, part in result.get("networks", {}).items():
            print(name)
            show(part)
    parts = [result, *result.get("networks", {}).values()]
    return 0 if all(part.get("golden", {}).get("passed", True) for part in parts) else 1


def run_model(manifest: dict[str, Any], options: argparse.Namespace, folder: Path = HERE) -> dict[str, Any]:
    """What the options ask of the model in `folder`."""
    model = Model(manifest, options.threads, folder)
    result: dict[str, Any] = {}
    if options.files:
        result["results"] = run_files(model, manifest, options.files, options.save)
    elif options.bench is None:
        result["golden"] = check_golden(model, manifest)
    if options.bench is not None:
        result["latency"] = bench(model, options.bench)
    return result


def run_networks(manifest: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """What the options ask of a model of several networks, each in a folder of its own, and of its driver."""
    names = manifest["networks"]
    if not options.files:
        return {"networks": {n: run_model(load_manifest(HERE / n), options, HERE / n) for n in names}}
    if options.save or options.bench is not None:
        raise Failure("--save and --bench with files are for one network: use run.py in its folder", 2)
    for entry in manifest["files"]:  # the driver and what it reads
        if "/" not in entry["path"]:
            check_hash(HERE / entry["path"], entry["sha256"])
    sys.path.insert(0, str(HERE))
    driver: Any = importlib.import_module(manifest["driver"])
    networks = {n: Model(load_manifest(HERE / n), options.threads, HERE / n).call for n in names}
    return {"results": [drive(driver, path, networks) for path in options.files]}


def drive(driver: Any, path: Path, networks: dict[str, Any]) -> dict[str, Any]:
    """What the driver makes of a file."""
    try:
        return {"file": str(path), **driver.run_file(path, networks, HERE)}
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror or error}", 3) from error
    except driver.Unusable as error:
        raise Failure(f"{path} {error}\n  try: {error.hint}", 4 if error.package else 3) from error


def run_files(model: Model, manifest: dict[str, Any], files: list[Path], save: Path | None) -> list[dict[str, Any]]:
    """Run every file; outputs are written to `save` when it is given."""
    results = []
    for path in files:
        inputs, size = read_input(path, manifest, len(model.inputs))
        outputs = model.run(inputs)
        results.append({"file": str(path), **describe(outputs, manifest, size)})
        if save:
            save.mkdir(parents=True, exist_ok=True)
        if size and "depth" in results[-1]:
            results[-1]["depth"]["files"] = write_maps(outputs, manifest["postprocess"], size, save, path.stem)
        if save:
            np.savez(save / f"{path.stem}.npz", **{f"output_{i}": a for i, a in enumerate(outputs)})
    return results


def write_maps(outputs: list[Any], head: dict[str, Any], size: Any, save: Path | None, stem: str) -> list[str]:
    """Write the depth of a photo as pictures into `save`, or the current folder."""
    reader, target = beside("depthmap"), str((save or Path()) / stem)
    try:
        return list(reader.write_maps(reader.read_map(outputs[0], head), head, size, target))
    except OSError as error:
        raise Failure(f"{target}-depth.png cannot be written: {error.strerror or error}", 3) from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
