"""edgeq: vision and speech models, quantized for edge devices and measured before they ship.

The names below are the public ones; they are loaded on first use, so `import edgeq` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeq.artifact import Artifact
    from edgeq.config import ExportConfig
    from edgeq.devices import get_target, targets
    from edgeq.errors import (
        DataError,
        DeviceError,
        EdgeqError,
        GateError,
        InputError,
        InternalError,
        Interrupted,
        MissingError,
        ModelError,
        UsageError,
    )
    from edgeq.pipeline import ExportResult, export
    from edgeq.progress import Progress, Silent
    from edgeq.spec import PerChannel, PerGroup, PerTensor, QParams, QuantConfig, QuantPlan, QuantRule, QuantSpec

__version__ = "0.1.0"

_HOMES = {
    "edgeq.artifact": ("Artifact",),
    "edgeq.config": ("ExportConfig",),
    "edgeq.devices": ("get_target", "targets"),
    "edgeq.errors": (
        "DataError",
        "DeviceError",
        "EdgeqError",
        "GateError",
        "InputError",
        "InternalError",
        "Interrupted",
        "MissingError",
        "ModelError",
        "UsageError",
    ),
    "edgeq.pipeline": ("ExportResult", "export"),
    "edgeq.progress": ("Progress", "Silent"),
    "edgeq.spec": (
        "PerChannel",
        "PerGroup",
        "PerTensor",
        "QParams",
        "QuantConfig",
        "QuantPlan",
        "QuantRule",
        "QuantSpec",
    ),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Artifact",
    "DataError",
    "DeviceError",
    "EdgeqError",
    "ExportConfig",
    "ExportResult",
    "GateError",
    "InputError",
    "InternalError",
    "Interrupted",
    "MissingError",
    "ModelError",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "Progress",
    "QParams",
    "QuantConfig",
    "QuantPlan",
    "QuantRule",
    "QuantSpec",
    "Silent",
    "UsageError",
    "__version__",
    "export",
    "get_target",
    "targets",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'edgeq' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
