"""Other quantizers on the same float model and calibration data, so that an export can be shown beside theirs.

Each recipe runs in a process of its own: a crash, or the memory it takes, is a line of the table and no more. Here and
not among the benchmarks, because `edgeq export --compare` needs them.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.compare import Contender
from edgeq.devices.base import Array
from edgeq.progress import Progress

TIMEOUT = 1800.0
"""Seconds that one recipe may take."""


@dataclass(frozen=True)
class Recipe:
    """One way of using another quantizer.

    Args:
        name: For the table; key of `edgeq.peers.recipes.RECIPES`.
        reads: Format of the float file it starts from.
        file_name: File it writes.
        modules: Packages that it imports, with what installs each.
    """

    name: str
    reads: str
    file_name: str
    modules: tuple[tuple[str, str], ...]


_NNCF = (("nncf", "nncf"), ("openvino", "openvino"))
_ORT = (("onnxruntime", "onnxruntime"), ("onnx", "onnx"))
_AEQ = (("ai_edge_quantizer", "ai-edge-quantizer"),)

PEERS: dict[str, tuple[Recipe, ...]] = {
    "nncf": (
        Recipe("nncf static", "onnx", "model.xml", _NNCF),
        Recipe("nncf static transformer", "onnx", "model.xml", _NNCF),
    ),
    "ort": (Recipe("ort static", "onnx", "model.onnx", _ORT), Recipe("ort dynamic", "onnx", "model.onnx", _ORT)),
    "aeq": (
        Recipe("aeq dynamic", "tflite", "model.tflite", _AEQ),
        Recipe("aeq static", "tflite", "model.tflite", _AEQ),
    ),
}


def quantize_by_peers(
    names: Iterable[str],
    float_file: Callable[[str], Path],
    calibration: Iterable[Sequence[Array]],
    folder: Path,
    progress: Progress,
) -> tuple[Contender, ...]:
    """Run every recipe of the peers; one that fails or is not installed gives a contender that says so.

    Args:
        names: Keys of `PEERS`.
        float_file: The float model in a format.
        calibration: Network inputs, batch 1.
        folder: Where to write.
        progress: Where to show the stages.
    """
    recipes = [recipe for name in names for recipe in PEERS[name]]
    folder.mkdir(parents=True, exist_ok=True)
    samples = folder / "calibration.npz"
    columns = zip(*calibration, strict=True)
    arrays: dict[str, Any] = {f"input_{i}": np.stack(column) for i, column in enumerate(columns)}
    np.savez(samples, **arrays)
    found = []
    for recipe in recipes:
        with progress.step(f"peer {recipe.name}"):
            found.append(_run(recipe, float_file, samples, folder / recipe.name.replace(" ", "_")))
    return tuple(found)


def _run(recipe: Recipe, float_file: Callable[[str], Path], samples: Path, folder: Path) -> Contender:
    out = folder / recipe.file_name
    for module, package in recipe.modules:
        if importlib.util.find_spec(module) is None:
            return Contender(recipe.name, out, failed=f"not installed: pip install {package}")
    folder.mkdir()
    python = [sys.executable, "-m", "edgeq.peers.recipes"]
    words = [*python, recipe.name, *(str(p.absolute()) for p in (float_file(recipe.reads), samples, out))]
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            env=environment,
            cwd=folder,
        )
    except subprocess.TimeoutExpired:
        return Contender(recipe.name, out, failed=f"failed: not done after {TIMEOUT:.0f} s")
    if done.returncode or not out.is_file():
        return Contender(recipe.name, out, failed=f"failed: {_why(done.stderr, done.returncode)}")
    return Contender(recipe.name, out)


def _why(text: str, code: int) -> str:
    """The last line that a process left, which is the exception where Python failed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if code < 0:
        return f"killed by signal {-code}"
    return lines[-1][:300] if lines else f"exit code {code}"
