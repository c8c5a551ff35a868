"""The commands that only tell: models, devices, methods, explain, init, completion, doctor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeq.cli import doctor as doctor_module
from edgeq.cli.console import Console, Talk
from edgeq.cli.doctor import BASE, EXTRAS, _import_failure
from edgeq.cli.main import cli
from edgeq.config import load_config
from edgeq.config_keys import METHODS, ROUNDINGS, SCHEMES
from edgeq.devices import targets
from edgeq.devices.environment import Runtime
from edgeq.explain import explanations
from edgeq.models import MODELS
from tests.cli.conftest import Run


def test_models_lists_every_model(run: Run) -> None:
    assert all(name in run("models").out for name in MODELS)
    listed = run("models", "--json").json
    assert listed["schema"] == "edgeq.models/1"
    assert [m["name"] for m in listed["models"]] == list(MODELS)


@pytest.mark.parametrize("name", ["vit_nano", "vit:vit_nano"])
def test_models_describes_one(run: Run, name: str) -> None:
    assert "Apache-2.0" in run("models", name).out
    assert run("models", name, "--json").json["ships_weights"] is True


@pytest.mark.parametrize(("name", "near"), [("vit_nanno", "'vit_nano'"), ("vitt:vit_nano", "'vit:vit_nano'")])
def test_models_offers_the_nearest(run: Run, name: str, near: str) -> None:
    done = run("models", name)
    assert (done.code, f"did you mean {near}" in done.err) == (2, True)


def test_devices_lists_every_target(run: Run) -> None:
    assert all(name in run("devices").out for name in targets())
    assert [d["name"] for d in run("devices", "--json").json["devices"]] == list(targets())


def test_devices_describes_one_with_sources(run: Run) -> None:
    done = run("devices", "rpi")
    assert "rpi5" in done.out
    assert "https://" in done.out
    assert run("devices", "RPI", "--json").json["name"] == "rpi5"


def test_devices_offers_the_nearest(run: Run) -> None:
    done = run("devices", "rpi6", "--json")
    assert (done.code, done.json["code"]) == (2, "EQ-U046")
    assert "did you mean 'rpi" in done.json["hint"]


def test_methods_are_those_of_the_code() -> None:
    from edgeq.exporters import EXPORTERS, get_exporter
    from edgeq.quant.ranges import ESTIMATORS
    from edgeq.quant.rounding import ROUNDERS

    assert set(METHODS) == {"auto", "rotate", "transformer", "convolution", *ESTIMATORS}
    assert set(ROUNDINGS) == {"auto", *ROUNDERS}
    assert set(SCHEMES) == {"auto", *(scheme for name in EXPORTERS for scheme in get_exporter(name).schemes)}


@pytest.mark.parametrize("code", sorted(explanations()))
def test_explain_every_code(run: Run, code: str) -> None:
    done = run("explain", code)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{code}: {explanations()[code].title}\n")
    assert max(len(line) for line in done.out.splitlines() if not line.startswith(("Try:", code))) <= 100


def test_explain_lists_all_codes(run: Run) -> None:
    assert [c["code"] for c in run("explain", "--json").json["codes"]] == sorted(explanations())
    assert all(code in run("explain").out for code in explanations())


def test_init_writes_a_valid_file_once(run: Run, tmp_path: Path) -> None:
    assert run("init").code == 0
    assert load_config(tmp_path / "edgeq.toml").export == {}
    (tmp_path / "edgeq.toml").write_text("mine")
    done = run("init", "--json")
    assert (done.code, done.json["code"]) == (2, "EQ-U005")
    assert (tmp_path / "edgeq.toml").read_text() == "mine"
    assert run("init", "--exist", "replace", "--json").json["path"] == "edgeq.toml"
    assert load_config(tmp_path / "edgeq.toml").devices == {}


def test_init_needs_a_folder(run: Run, tmp_path: Path) -> None:
    done = run("init", "absent")
    assert (done.code, "mkdir -p absent" in done.err) == (2, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(run: Run, shell: str) -> None:
    done = run("completion", shell)
    assert done.code == 0
    assert "_EDGEQ_COMPLETE" in done.out
    assert run("completion", shell, "--json").json["script"].strip() == done.out.strip()


@pytest.mark.parametrize(
    ("typed", "position", "expected"),
    [
        ("edgeq ex", 1, {"export", "explain"}),
        ("edgeq devices rp", 2, {"rpi4", "rpi5", "rpi-zero2w"}),
        ("edgeq models vit_n", 2, {"vit_nano"}),
    ],
)
def test_completion_knows_commands_and_names(typed: str, position: int, expected: set[str]) -> None:
    env = {"_EDGEQ_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(position)}
    done = subprocess.run(
        [sys.executable, "-m", "edgeq"],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert {line.split(",")[1] for line in done.stdout.splitlines()} == expected


def test_bash_accepts_the_script(run: Run) -> None:
    script = run("completion", "bash").out
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_quick_doctor_reports_without_importing(run: Run) -> None:
    done = run("doctor", "--quick", "--device", "rpi", "--json")
    assert done.json["schema"] == "edgeq.doctor/1"
    assert done.json["device"] == "rpi5"
    assert {"python", "cpu", "memory", *BASE} <= {c["name"] for c in done.json["checks"]}
    assert done.json["ok"] is (done.code == 0)


def test_the_doctor_names_the_command_for_what_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRAS["tflite"], "no-such-package", "no_such")
    done = run("doctor", "--quick")
    assert done.code == 0  # nothing that edgeq itself needs
    assert "pip install 'edgeq[tflite]'" in done.out
    done = run("doctor", "--quick", "--device", "rpi")
    assert done.code == 4
    assert "not ready: no-such-package" in done.out


def test_the_doctor_finds_broken_base_packages(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "EXTRAS", {})
    monkeypatch.setattr(doctor_module, "BASE", {"click": "click", "pytest": "no_such_module"})
    done = run("doctor", "--json")
    assert (done.code, done.json["ok"]) == (4, False)
    status = {c["name"]: (c["status"], c["detail"]) for c in done.json["checks"]}
    assert status["click"][0] == "ok"
    assert status["pytest"][0] == "broken"
    assert "No module named 'no_such_module'" in status["pytest"][1]


def test_a_package_that_takes_its_process_down_is_broken() -> None:
    console = Console(Talk())
    assert _import_failure(console, "os; os.kill(os.getpid(), 11)") == "the import ends with signal 11"
    assert _import_failure(console, "os; os._exit(3)") == "the import ends with code 3"
    assert _import_failure(console, "json") is None


def test_the_doctor_misses_a_runtime(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = (Runtime("tflite", "ai-edge-litert", None, False, "pip install ai-edge-litert"),)
    monkeypatch.setattr(doctor_module, "runtimes", lambda: absent)
    done = run("doctor", "--quick", "--device", "rpi")
    assert (done.code, "pip install ai-edge-litert" in done.out) == (4, True)


def test_every_command_has_examples_that_parse(run: Run) -> None:
    for name, command in cli.commands.items():
        lines = [line.strip().split("   #")[0] for line in (command.epilog or "").splitlines()]
        calls = [line.split()[1:] for line in lines if line.startswith("edgeq ")]
        assert calls or name == "completion", name
        for words in calls:
            words = words[: words.index(">")] if ">" in words else words
            cli.commands[words[0]].make_context(words[0], words[1:])
