"""Writing a bundle's files with bytes that depend on their content alone."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeq import detection
from edgeq.arrays import Array, write_arrays
from edgeq.hashing import file_sha256

MANIFEST = "manifest.json"
PLAN = "plan.json"
EVIDENCE = "evidence.json"
GOLDEN_INPUTS = "golden/inputs.npz"
GOLDEN_EXPECTED = "golden/expected.npz"
RUNNER = "run.py"
DETECTION = "detection.py"


def describe_files(folder: Path) -> list[dict[str, Any]]:
    """`{"path", "bytes", "sha256"}` of every file under `folder`, sorted by path.

    The manifest is left out, and so is what lies in hidden folders: scratch that the finished bundle will not hold.
    """
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    names = sorted(p.as_posix() for p in found if not any(part.startswith(".") for part in p.parts))
    return [
        {"path": name, "bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
        for name in names
        if name != MANIFEST
    ]


def model_files(path: Path) -> list[Path]:
    """The model file and what belongs to it: files of the same stem beside it, such as the `.bin` of an `.xml`."""
    return sorted(p for p in path.parent.glob(f"{path.stem}.*") if p.is_file())


def model_bytes(path: Path) -> int:
    """Size of `model_files(path)` together."""
    return sum(p.stat().st_size for p in model_files(path))


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write `data` with sorted keys; numbers that JSON lacks (NaN, infinity) become null."""
    text = json.dumps(jsonable(data), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_bytes(f"{text}\n".encode())


def write_golden(folder: Path, inputs: Sequence[Sequence[Array]], expected: Sequence[Sequence[Array]]) -> None:
    """Write golden vectors: one sequence of arrays per vector, each in the model's order of inputs or outputs.

    `golden/inputs.npz` gets `input_0`, `input_1`, ... of shape `(vectors, *shape)`; `golden/expected.npz` likewise
    `output_0`, ...
    """
    (folder / "golden").mkdir(exist_ok=True)
    for name, prefix, vectors in ((GOLDEN_INPUTS, "input", inputs), (GOLDEN_EXPECTED, "output", expected)):
        stacked = [np.stack(arrays) for arrays in zip(*vectors, strict=True)]
        write_arrays(folder / name, {f"{prefix}_{i}": array for i, array in enumerate(stacked)})


def write_runner(folder: Path, *, detector: bool = False) -> None:
    """Copy `run.py`, which needs only numpy and the runtime, into `folder`; for a `detector` what makes boxes, too."""
    shutil.copyfile(Path(__file__).with_name(RUNNER), folder / RUNNER)
    if detector:
        shutil.copyfile(str(detection.__file__), folder / DETECTION)


def portable(value: Any) -> Any:
    """Copy of a JSON value with absolute paths, also behind `--option=`, reduced to their last part."""
    if isinstance(value, Mapping):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(portable(item) for item in value)
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        return value
    option, equals, rest = text.partition("=")
    if equals and option.startswith("-"):
        return f"{option}={portable(rest)}"
    if text.startswith("~"):
        text = str(Path(text).expanduser())
    return Path(text).name if Path(text).is_absolute() else text


def jsonable(value: Any) -> Any:
    """Copy of `value` in JSON's types: numpy numbers and arrays unpacked, tuples as lists, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return os.fspath(value) if isinstance(value, os.PathLike) else value
