"""Finding a TFLite runtime."""

from __future__ import annotations

import importlib
from types import ModuleType

from edgeq.errors import MissingError

_RUNTIMES = ("ai_edge_litert", "tflite_runtime")
_INSTALL = "pip install ai-edge-litert"


def load_runtime() -> ModuleType:
    """The interpreter module of `ai_edge_litert`, else of `tflite_runtime`.

    Raises:
        MissingError: EQ-P040 when neither can be imported; names the reason when one is installed but broken.
    """
    reasons = []
    for package in _RUNTIMES:
        module, reason = _import(package)
        if module is not None:
            return module
        reasons.append(reason)
    broken = "".join(f"; {reason}" for reason in reasons if reason)
    message = f"no TFLite runtime is installed{broken}"
    raise MissingError(message, code="EQ-P040", hint=f"{_INSTALL}  (on older boards: pip install tflite-runtime)")


def _import(package: str) -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module(f"{package}.interpreter"), ""
    except ModuleNotFoundError as error:
        absent = error.name is not None and error.name.split(".")[0] == package
        return None, "" if absent else f"{package} is installed but fails: {one_line(str(error))}"
    except (ImportError, OSError) as error:
        return None, f"{package} is installed but fails: {one_line(str(error))}"


def one_line(text: str) -> str:
    """`text` on one line of at most 400 characters."""
    return " ".join(text.split())[:400]
