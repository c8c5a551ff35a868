"""Calibration cache: statistics on disk under the hash of everything they depend on.

An entry is never checked for freshness, because it cannot be stale: its name is the SHA-256 of weights, graph, data
items, preprocessing, watched tensors, the format below and the version of torch that computed it. Change any of these
and the name changes. A damaged entry is a miss; a cache that cannot be written is no cache.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from edgeq.arrays import read_arrays
from edgeq.errors import DataError, InternalError
from edgeq.places import cache_dir
from edgeq.quant.statistics import TensorStatistics
from edgeq.spec import Preprocess

FORMAT = 1
"""Raise when the stored arrays, or the way statistics are computed, change."""

LIMIT_BYTES = 2 << 30
"""Size of the cache; the least recently used entries beyond it are deleted."""

_ABANDONED_SECONDS = 3600.0
_DAMAGE = (OSError, ValueError, KeyError, TypeError, DataError)


def cache_key(*parts: object) -> str:
    """SHA-256, as 64 hex digits, over the parts in order, this module's `FORMAT` and the version of torch.

    Args:
        parts: JSON values (numbers, strings, booleans, None, lists, string-keyed mappings), bytes and numpy arrays,
            nested at will. The order of a mapping's keys does not matter, everything else does.

    Raises:
        InternalError: A part is of another type, or a number is not finite.
    """
    try:
        torch_version = version("torch")
    except PackageNotFoundError:
        torch_version = ""
    text = json.dumps(_canonical([FORMAT, torch_version, list(parts)]), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def calibration_key(
    graph: fx.GraphModule, tensors: Sequence[str], items: Sequence[str], preprocess: Preprocess | None
) -> str:
    """The `cache_key` of everything that `edgeq.quant.calibrate` depends on.

    The weights enter as the values of every constant in the graph, not as the hash of the file they came from: a
    change in how edgeq folds or rewrites the model changes the key although the file stays the same.

    Args:
        graph: The float graph that is calibrated.
        tensors: Names of the watched tensors; their order does not matter.
        items: SHA-256 of each calibration item, in order.
        preprocess: How an item becomes an input; None where `items` say that, too.
    """
    constants: dict[str, list[object]] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(graph).detach().cpu().contiguous()
            digest = hashlib.sha256(value.reshape(-1).view(torch.uint8).numpy()).hexdigest()
            constants[str(node.target)] = [str(value.dtype), list(value.shape), digest]
    return cache_key(
        str(graph.graph), graph.code, constants, sorted(tensors), list(items), preprocess and asdict(preprocess)
    )


def load(key: str) -> dict[str, TensorStatistics] | None:
    """Statistics by tensor name, or None when there is no sound entry; a damaged one is deleted.

    Args:
        key: From `cache_key`.
    """
    path = _path(key)
    try:
        arrays = read_arrays(path)
        if str(arrays["key"]) != key:
            raise ValueError("entry of another key")
        names = [str(name) for name in arrays["names"]]
        result = {name: TensorStatistics.from_arrays(_fields(arrays, i)) for i, name in enumerate(names)}
    except FileNotFoundError:
        return None
    except _DAMAGE:
        with suppress(OSError):
            path.unlink()
        return None
    with suppress(OSError):
        os.utime(path)  # the time of the last use, for eviction
    return result


def store(key: str, statistics: Mapping[str, TensorStatistics], *, limit_bytes: int = LIMIT_BYTES) -> bool:
    """Keep statistics for later runs; False when the cache cannot be written, which is no error.

    The entry is written aside and renamed, so that readers see all of it or nothing, also after a crash.

    Args:
        key: From `cache_key`.
        statistics: By tensor name.
        limit_bytes: Size that the cache is cut down to afterwards; the new entry always stays.
    """
    path = _path(key)
    arrays: dict[str, NDArray[Any]] = {"key": np.array(key), "names": np.array(list(statistics), dtype=np.str_)}
    for i, tensor in enumerate(statistics.values()):
        arrays.update({f"{i}/{field}": array for field, array in tensor.to_arrays().items()})
    aside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".aside-", suffix=".tmp", delete=False) as stream:
            aside = Path(stream.name)
            np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # a `**` that cannot hold `allow_pickle`
        aside.replace(path)
    except OSError:
        return False
    finally:
        if aside is not None:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
    _evict(path, limit_bytes)
    return True


def work_folder(kind: str) -> Path | None:
    """Folder for the unfinished or repeatable work of one kind; None where the cache cannot be written.

    Files in it have a key of everything they depend on in their names, and nobody misses them when they are deleted.

    Args:
        kind: Name of the folder.
    """
    folder = cache_dir() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _path(key: str) -> Path:
    return cache_dir() / "calibration" / f"{key}.npz"


def _fields(arrays: Mapping[str, NDArray[Any]], index: int) -> dict[str, NDArray[Any]]:
    prefix = f"{index}/"
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _evict(newest: Path, limit_bytes: int) -> None:
    """Delete what killed writers left behind, then the least recently used entries beyond the limit."""
    entries: list[tuple[float, int, Path]] = []
    with suppress(OSError):
        for path in newest.parent.iterdir():
            with suppress(OSError):  # another process may be evicting too
                status = path.stat()
                if path.suffix == ".npz" and path != newest:
                    entries.append((status.st_mtime, status.st_size, path))
                elif path.name.startswith(".aside-") and time.time() - status.st_mtime > _ABANDONED_SECONDS:
                    path.unlink()
        left = limit_bytes - newest.stat().st_size
        for _used, size, path in sorted(entries, reverse=True):
            left -= size
            if left < 0:
                with suppress(OSError):
                    path.unlink()


def _canonical(value: object) -> object:
    """`value` as JSON in which different values look different."""
    if value is None or isinstance(value, (bool, str, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"mapping": {key: _canonical(entry) for key, entry in value.items()}}
    if isinstance(value, bytes):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if isinstance(value, np.ndarray) and value.dtype != np.object_:
        content = np.ascontiguousarray(value).tobytes()
        return {"array": [value.dtype.str, list(value.shape), hashlib.sha256(content).hexdigest()]}
    if isinstance(value, Sequence):
        return [_canonical(entry) for entry in value]
    raise InternalError(f"cannot hash {value!r:.80} for the cache", code="EQ-Z022")
