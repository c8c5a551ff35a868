"""Targets (data about hardware) and the runners that execute artifacts; imports no torch, so it runs on the boards.

A new target is a table in `targets.toml`. A new runtime is a file here and a line in `RUNTIMES`.
"""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from typing import Any

if __name__ != "edgeq.devices":
    raise ImportError(f"import edgeq.devices, not {__name__}")

from edgeq.config_keys import SUFFIXES
from edgeq.devices.base import RuntimeModel, Target
from edgeq.errors import ModelError, unknown_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["RUNTIMES", "RuntimeModel", "Target", "get_target", "open_model", "targets"]

RUNTIMES: dict[str, str] = {
    "tflite": "edgeq.devices.litert:LiteRtModel",
    "openvino": "edgeq.devices.openvino:OpenVinoModel",
    "onnx": "edgeq.devices.ort:OrtModel",
    "c": "edgeq.devices.integers:IntegerModel",
}


@functools.cache
def _table() -> dict[str, Target]:
    with Path(__file__).with_name("targets.toml").open("rb") as file:
        data = tomllib.load(file)
    return {name: _target(name, values) for name, values in data.items()}


def _target(name: str, values: dict[str, Any]) -> Target:
    fixed: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    fixed["schemes"] = {key: tuple(schemes) for key, schemes in values["schemes"].items()}
    return Target(name=name, **fixed)


def targets() -> dict[str, Target]:
    """Every target by name, in the order of `targets.toml`."""
    return dict(_table())


def get_target(name: str) -> Target:
    """The target called `name`, or that has it as an alias; case does not matter.

    Raises:
        UsageError: EQ-U046 with the nearest known name.
    """
    names = {alias: target for target in _table().values() for alias in (target.name, *target.aliases)}
    found = names.get(name.strip().lower())
    if found is None:
        raise unknown_name("device", name, names, code="EQ-U046", command="edgeq devices")
    return found


def open_model(path: str | Path, threads: int = 1) -> RuntimeModel:
    """Load a model file with the runtime of its format, which its suffix names.

    Args:
        path: The file; companions such as the `.bin` of an `.xml` lie beside it.
        threads: Threads of the runtime, at least 1.

    Raises:
        ModelError: EQ-M400 when no runtime runs such a file; and as the runtime's class.
        MissingError: The runtime is not installed.
    """
    name = SUFFIXES.get(Path(path).suffix)
    if name not in RUNTIMES:
        known = ", ".join(suffix for suffix, format_ in SUFFIXES.items() if format_ in RUNTIMES)
        message = f"no runtime here runs files ending in {Path(path).suffix or 'nothing'}"
        raise ModelError(message, code="EQ-M400", place=str(path), hint=f"give a file ending in {known}")
    module, attribute = RUNTIMES[name].split(":")
    model: RuntimeModel = getattr(importlib.import_module(module), attribute)(path, threads=threads)
    return model
