"""The frame of the command line: streams, exit codes, errors, signals, start-up."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import platformdirs
import pytest

from edgeq import __version__
from edgeq.cli.failure import KEPT_REPORTS, save_report
from edgeq.cli.main import cli
from tests.cli.conftest import Run

SPOIL = """
import errno, os, signal, sys, time
from edgeq.cli import main
def body(**values):
    {body}
main.cli.commands["methods"].callback = body
sys.argv = ["edgeq", *{words!r}]
main.run()
"""


def spoiled(body: str, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run `edgeq methods` in a new process, with `body` in place of the command."""
    code = SPOIL.format(body=body, words=["methods", *words])
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-c", code],
        **{"capture_output": True, "text": True, "timeout": 60, "check": False, **options},
    )


@pytest.mark.parametrize("words", [["--version"], ["--json", "--version"]])
def test_version(run: Run, words: list[str]) -> None:
    done = run(*words)
    assert done.code == 0
    assert __version__ in done.out


@pytest.mark.parametrize("words", [["-h"], ["--help"], *([name, "--help"] for name in cli.commands)])
def test_help_goes_to_stdout(run: Run, words: list[str]) -> None:
    done = run(*words)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Usage: edgeq")
    assert "Raises:" not in done.out
    assert "--json" in done.out


def test_no_command_is_a_usage_error_that_shows_the_help(run: Run) -> None:
    done = run()
    assert (done.code, done.out) == (2, "")
    assert "Commands:" in done.err
    done = run("--json")
    assert (done.code, done.json["code"]) == (2, "EQ-U001")


@pytest.mark.parametrize("words", [["--json", "devices"], ["devices", "--json"], ["-q", "devices", "--json", "rpi"]])
def test_json_is_accepted_before_and_after_the_command(run: Run, words: list[str]) -> None:
    done = run(*words)
    assert (done.code, done.err) == (0, "")
    assert done.json["ok"] is True


@pytest.mark.parametrize(
    "words",
    [
        ["expotr"],
        ["devices", "--jason"],
        ["explain", "a", "b"],
        ["completion"],
        ["completion", "tcsh"],
        ["--color", "pink", "devices"],
        ["devices", "--color"],
        ["export", "vit_nano", "--device", "rpi", "--samples", "many"],
        ["export", "vit_nano", "--device", "rpi", "--seed"],
        ["init", "--exist", "maybe"],
    ],
)
def test_a_bad_command_line_is_EQ_U001_in_both_forms(run: Run, words: list[str]) -> None:
    done = run(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error[EQ-U001]: ")
    assert "try: edgeq" in done.err
    assert done.err.endswith("exit 2\n")
    done = run(*words[:1], "--json", *words[1:]) if words[0] in cli.commands else run("--json", *words)
    assert (done.code, done.err, done.json["code"], done.json["exit_code"]) == (2, "", "EQ-U001", 2)


def test_a_misspelt_option_names_the_right_one(run: Run) -> None:
    assert "--json" in run("devices", "--jsn").err


def test_config_and_isolated_exclude_each_other(run: Run) -> None:
    done = run("export", "vit_nano", "--device", "rpi", "--config", "a.toml", "--isolated", "--show-config")
    assert (done.code, "exclude each other" in done.err) == (2, True)


def test_shared_run_options_work_on_both_sides_and_the_inner_wins(run: Run) -> None:
    done = run(
        "--seed",
        "3",
        "--threads",
        "2",
        "export",
        "vit_nano",
        "--device",
        "rpi",
        "--seed",
        "4",
        "--show-config",
        "--json",
    )
    assert done.json["config"]["seed"] == {"value": "4", "source": "--seed"}
    assert done.json["config"]["threads"] == {"value": "2", "source": "--threads"}


def test_edgeq_toml_is_found_and_isolated_ignores_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "edgeq.toml").write_text('[export]\nmodel = "vit_nano"\ndevice = "rpi4"\n')
    shown = run("export", "--show-config", "--json")
    assert shown.json["config"]["device"]["value"] == "rpi4"
    assert run("export", "--isolated", "--show-config").code == 2
    other = tmp_path / "other.toml"
    other.write_text("[export]\nsampels = 3\n")
    done = run("export", "--config", str(other), "--show-config")
    assert (done.code, f"{other}:2" in done.err, "samples" in done.err) == (2, True, True)


@pytest.mark.parametrize(
    ("raised", "code", "exit_code"),
    [
        (KeyboardInterrupt(), "EQ-C001", 130),
        (MemoryError(), "EQ-I001", 3),
        (PermissionError(13, "Permission denied", "/nowhere"), "EQ-U009", 2),
        (OSError(28, "No space left on device"), "EQ-U009", 2),
        (OSError(5, "Input/output error"), "EQ-Z001", 70),
        (EOFError(), "EQ-Z001", 70),
        (SystemExit(7), "EQ-Z001", 70),
        (RuntimeError("first\nsecond \x1b[31m"), "EQ-Z001", 70),
        (click.UsageError("no"), "EQ-U001", 2),
    ],
)
def test_no_exception_reaches_the_user(
    run: Run, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: str, exit_code: int
) -> None:
    def fail(**values: object) -> None:
        raise raised

    monkeypatch.setattr(cli.commands["methods"], "callback", fail)
    done = run("methods")
    assert (done.code, done.out) == (exit_code, "")
    assert done.err.startswith(f"error[{code}]: ")
    assert "Traceback" not in done.err
    assert "\x1b" not in done.err
    done = run("methods", "--json")
    assert (done.code, done.json["code"], done.json["exit_code"]) == (exit_code, code, exit_code)


def test_a_bug_leaves_its_traceback_in_a_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**values: object) -> None:
        raise RuntimeError("the cause")

    monkeypatch.setattr(cli.commands["methods"], "callback", fail)
    done = run("methods", "it is")
    path = re.search(r"the traceback is in (\S+)", done.err)
    assert path is not None
    text = Path(path[1]).read_text(encoding="utf-8")
    assert "RuntimeError: the cause" in text
    assert "command: edgeq methods 'it is'" in text
    assert "edgeq doctor" in done.err


def test_only_the_newest_crash_reports_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platformdirs, "user_state_path", lambda name: tmp_path / name)
    folder = tmp_path / "edgeq"
    folder.mkdir()
    for day in range(10, 30):
        (folder / f"crash-202001{day}-000000-1.txt").touch()
    newest = save_report(ValueError("x"), [])
    assert newest is not None
    assert len(list(folder.iterdir())) == KEPT_REPORTS
    assert newest.exists()


def test_a_crash_report_survives_an_unwritable_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(platformdirs, "user_state_path", lambda name: tmp_path / "file" / name)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "spare"))
    path = save_report(ValueError("x"), ["\udc80"])
    assert path is not None
    assert path.parent == tmp_path / "spare"
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "file"))
    assert save_report(ValueError("x"), []) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_with_130_and_one_message(number: signal.Signals) -> None:
    done = spoiled(f"os.kill(os.getpid(), {number.value}); time.sleep(30)")
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.startswith("error[EQ-C001]: ")
    assert "nothing half-written was left behind" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_ignored_hangup_stays_ignored() -> None:
    body = "os.kill(os.getpid(), signal.SIGHUP)"
    done = spoiled(body, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_left_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "edgeq", "explain"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("words", [["explain"], ["explain", "--json"]])
def test_a_full_disk_below_stdout_is_told(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "edgeq", *words]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_bug(closed: str) -> None:
    command = f"'{sys.executable}' -m edgeq explain EQ-U001 {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_ascii_locale_does_not_crash() -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    for words in (["methods"], ["models", "ü€"], ["explain", "EQ-U001"]):
        done = subprocess.run(
            [sys.executable, "-m", "edgeq", *words], capture_output=True, env=env, timeout=60, check=False
        )
        assert done.returncode in (0, 2)
        assert b"Traceback" not in done.stderr


def test_bytes_that_are_no_text_are_named_in_the_error() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgeq", "models", b"\xff\x1b[31m"], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert b"\\udcff\\x1b[31m" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["devices"],
        ["devices", "rpi", "--json"],
        ["models"],
        ["methods"],
        ["explain", "EQ-U001"],
        ["doctor", "--quick"],
        ["export", "vit_nano", "--device", "rpi", "--show-config"],
        ["expotr"],
    ],
)
def test_light_commands_import_no_heavy_package(words: list[str]) -> None:
    code = (
        "import sys; from edgeq.cli.main import main\n"
        f"main({words!r})\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'PIL', 'onnx', 'openvino', 'litert_torch', 'ai_edge_litert'}\n"
        "heavy.add('timm')\n"
        "found = heavy & set(sys.modules); assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
