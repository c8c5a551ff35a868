"""Measure what calibration costs: peak memory and seconds, in a fresh process, watching every float tensor of a graph.

    python tools/bench/calibration_memory.py vit_s_focus.onnx DATA_FOLDER/yolo/images --images 128 --out result.json

Two processes run, one that only loads the model and one that also calibrates, so that the price of calibration itself
can be told from that of torch and the model. Times are of this machine and of no interest elsewhere.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "calibration_memory.json"


def measure(pipe: Connection, model: Path, images: Path, count: int, threads: int) -> None:
    """Load, calibrate on `count` images (0: load only) and send the figures through `pipe`; runs in a fresh process."""
    import torch

    from edgeq.data import open_images, preprocess
    from edgeq.graph.onnx_import import import_onnx
    from edgeq.quant.calibrator import calibrate
    from edgeq.spec import Preprocess

    torch.set_num_threads(threads)
    imported = import_onnx(model)
    graph = imported.graph
    source = open_images(images, role="calibration")
    _, _, height, width = imported.input_shapes[0]
    spec = Preprocess(height, width)

    def batches() -> Iterator[tuple[torch.Tensor, ...]]:
        for index in range(count):
            yield (torch.from_numpy(preprocess(source.read(index), spec)[None]),)

    watched = [
        node.name
        for node in graph.graph.nodes
        if node.op in ("placeholder", "call_function")
        and isinstance(node.meta.get("val"), torch.Tensor)
        and node.meta["val"].is_floating_point()
    ]
    start = time.perf_counter()
    statistics = calibrate(graph, watched, batches()) if count else {}
    seconds = time.perf_counter() - start
    pipe.send(
        {
            "images": min(count, len(source)),
            "tensors": len(statistics),
            "values": sum(s.count for s in statistics.values()),
            "seconds": round(seconds, 2),
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        }
    )


def in_fresh_process(model: Path, images: Path, count: int, threads: int) -> dict[str, Any]:
    """Figures of `measure` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(sender, model, images, count, threads))
    process.start()
    sender.close()
    try:
        figures: dict[str, Any] = receiver.recv()
    finally:
        process.join()
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="ONNX file with one image input")
    parser.add_argument("images", type=Path, help="folder with photos")
    parser.add_argument("--images", dest="count", type=int, default=128, help="how many of them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    result = {
        "schema": "edgeq.bench.calibration_memory/1",
        "model": args.model.name,
        "threads": args.threads,
        "processors": os.cpu_count(),
        "machine": platform.machine(),
        "load_only": in_fresh_process(args.model, args.images, 0, args.threads),
        "calibrate": in_fresh_process(args.model, args.images, args.count, args.threads),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
