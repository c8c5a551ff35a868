from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Protocol

import pytest


class Load(Protocol):
    """Imports a script of tools/bench."""

    def __call__(self, name: str) -> ModuleType: ...


@pytest.fixture(scope="session")
def script(root: Path) -> Iterator[Load]:
    """Scripts of tools/bench import their neighbours by bare name, as they do when they are run."""
    sys.path.insert(0, str(root / "tools" / "bench"))
    yield importlib.import_module
    sys.path.remove(str(root / "tools" / "bench"))
