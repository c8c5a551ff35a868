"""The state of an unfinished fit on disk, so that hours of work survive an interruption."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeq.errors import UsageError

_SCHEMA = "edgeq.fit/1"


def save(path: Path, fingerprint: str, state: Mapping[str, Any]) -> None:
    """Write a state aside and rename it: a reader sees all of the old one or all of the new one.

    Args:
        path: The file; its folder is made if need be.
        fingerprint: Identifies the work, see `fingerprint`.
        state: Tensors, numbers, texts, and lists and mappings of such.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".aside-", suffix=".tmp", delete=False) as stream:
        aside = Path(stream.name)
        try:
            torch.save({"schema": _SCHEMA, "fingerprint": fingerprint, "state": dict(state)}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        except BaseException:
            with suppress(OSError):
                aside.unlink()
            raise
    aside.replace(path)


def load(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The state stored for this work; None when there is none, or the file is damaged.

    Raises:
        UsageError: The file belongs to other work: other data, weights or settings.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        if stored["schema"] != _SCHEMA:
            raise ValueError("another schema")
        state: dict[str, Any] = stored["state"]
        other = stored["fingerprint"] != fingerprint
    except FileNotFoundError:
        return None
    except Exception:  # what a cut or flipped file raises is specified nowhere; the work starts afresh
        return None
    if other:
        raise UsageError(
            "the checkpoint belongs to other work: other data, weights or settings",
            code="EQ-U284",
            place=str(path),
            hint="delete it to start afresh, or give another path",
        )
    return state


def fingerprint(*parts: object) -> str:
    """SHA-256 of tensors (by shape and values), of mappings of tensors, and of anything else by its `repr`."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = {"": part}
        if isinstance(part, Mapping):
            for name, tensor in part.items():
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        else:
            digest.update(f"{part!r}\n".encode())
    return digest.hexdigest()
