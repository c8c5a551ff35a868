"""The table of targets and the guard of the folder."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgeq.devices import get_target, targets
from edgeq.devices.cortex_m import machine_named
from edgeq.errors import InternalError, UsageError


def test_known_targets_and_alias() -> None:
    computers = {"rpi5", "rpi4", "rpi-zero2w", "x86", "nuc", "n100"}
    boards = {"nucleo-f446re", "nrf52840-dk", "nucleo-l552ze", "nucleo-h743zi", "mps3-an547"}
    assert set(targets()) == computers | boards | {"cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55"}
    assert get_target("rpi") is get_target("rpi5")
    assert get_target(" RPi4 ").name == "rpi4"


def test_only_the_pi_5_has_the_dot_product_among_the_boards() -> None:
    assert {name for name, target in targets().items() if target.dot_product and target.family == "aarch64"} == {"rpi5"}


def test_every_target_is_complete_and_sourced() -> None:
    for target in targets().values():
        assert target.schemes[target.format]
        assert all(set(names) <= {"dynamic", "static", "integer"} for names in target.schemes.values())
        assert target.format == {"x86_64": "openvino", "aarch64": "tflite", "cortex-m": "c"}[target.family]
        assert target.sources
        assert set(target.sources) <= set(target.to_dict())
        assert json.loads(json.dumps(target.to_dict())) == target.to_dict()
        if target.family == "aarch64":
            assert target.mhz >= 1000
            assert target.ram_mb >= 512
        if target.family == "cortex-m":
            assert machine_named(target.machine) in targets()
            assert (target.flash_kb > 0) == (target.ram_kb > 0) == ("flash_kb" in target.sources)


def test_no_name_is_taken_twice() -> None:
    names = [name for target in targets().values() for name in (target.name, *target.aliases)]
    assert len(names) == len(set(names))


def test_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        get_target("rpi-zero2")
    assert "did you mean 'rpi-zero2w'?" in str(caught.value.hint)
    assert caught.value.code == "EQ-U046"


def test_impossible_targets_are_bugs() -> None:
    target = get_target("rpi")
    with pytest.raises(InternalError):
        replace(target, cores=0)
    with pytest.raises(InternalError):
        replace(target, format="openvino")


def test_bare_import_is_refused(root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", "import devices"], cwd=root, capture_output=True, text=True)
    assert done.returncode != 0
    assert "import edgeq.devices" in done.stderr


def test_devices_import_no_torch(root: Path) -> None:
    names = ", ".join(f"edgeq.devices.{p.stem}" for p in (root / "devices").glob("*.py") if p.stem != "__init__")
    code = f"import sys, edgeq.artifact, edgeq.devices, {names}\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
