from __future__ import annotations

import io
import json
import math
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.cli.console import Console, Talk
from edgeq.errors import UsageError


class Screen(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def ticks() -> Iterator[float]:
    return iter(float(n) for n in range(1000))


def console(talk: Talk | None = None, **streams: io.StringIO) -> tuple[Console, io.StringIO, io.StringIO]:
    out, err = streams.get("out", io.StringIO()), streams.get("err", io.StringIO())
    numbers = iter(range(1000))
    return Console(talk or Talk(), out, err, clock=lambda: float(next(numbers))), out, err


def test_steps_are_numbered_and_timed_on_stderr() -> None:
    con, out, err = console()
    with con.step("load"):
        pass
    with con.step("calibrate", 8) as advance:
        advance(3)
        advance(5)
    with con.step("build"), con.step("inner"):
        pass
    lines = err.getvalue().splitlines()
    assert [line.split() for line in lines] == [
        ["1", "load", "1.0", "s"],
        ["2", "calibrate", "8/8", "1.0", "s"],
        ["inner", "1.0", "s"],
        ["3", "build", "3.0", "s"],
    ]
    assert out.getvalue() == ""


def test_a_step_that_fails_says_so_and_does_not_swallow() -> None:
    con, _, err = console()
    with pytest.raises(ZeroDivisionError), con.step("divide", 4) as advance:
        advance(1)
        raise ZeroDivisionError
    assert err.getvalue().split() == ["1", "divide", "1/4", "stopped", "after", "1.0", "s"]


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end() -> None:
    con, _, err = console(err=Screen())
    with con.step("calibrate", 2) as advance, con.step("inner", 1):
        advance(1)
    assert "━" in err.getvalue()
    assert "\x1b[" in err.getvalue()
    with con.step("again"):
        pass
    assert err.getvalue().rstrip().endswith("1.0 s")


@pytest.mark.parametrize("talk", [Talk(progress=False), Talk(quiet=True)])
def test_no_bar_when_not_wanted(talk: Talk) -> None:
    con, _, err = console(talk, err=Screen())
    with con.step("calibrate", 2) as advance:
        advance(1)
    assert "━" not in err.getvalue()


def test_quiet_leaves_results_warnings_and_errors() -> None:
    con, out, err = console(Talk(quiet=True))
    con.say("talk")
    con.warn("careful")
    con.result("42")
    con.error(UsageError("bad", code="EQ-U001"))
    assert out.getvalue() == "42\n"
    assert err.getvalue() == "warning: careful\nerror[EQ-U001]: bad\nexit 2\n"


def test_details_need_verbose() -> None:
    for verbose in (False, True):
        con, _, err = console(Talk(verbose=verbose))
        con.detail("more")
        assert err.getvalue() == ("more\n" if verbose else "")


def test_errors_name_place_and_hint() -> None:
    con, out, err = console()
    con.error(UsageError("bad [red]value[/red]", code="EQ-U004", place="edgeq.toml:3", hint="one\ntwo"))
    assert err.getvalue() == (
        "error[EQ-U004]: bad [red]value[/red]\n  at:  edgeq.toml:3\n  try: one\n       two\nexit 2\n"
    )
    assert out.getvalue() == ""


def test_json_mode_prints_one_object_and_no_other_result() -> None:
    con, out, _ = console(Talk(json=True))
    con.result("text")
    con.result_table(("a",), [(1,)])
    con.emit_json({"path": Path("a/b"), "db": math.inf, "n": np.float32(0.5), "v": np.arange(2), "s": {"b", "a"}})
    assert json.loads(out.getvalue()) == {"path": "a/b", "db": None, "n": 0.5, "v": [0, 1], "s": ["a", "b"]}


def test_json_refuses_what_it_cannot_express() -> None:
    con, _, _ = console(Talk(json=True))
    with pytest.raises(TypeError, match="object has no JSON form"):
        con.emit_json({"x": object()})


def test_without_json_no_object_is_printed() -> None:
    con, out, _ = console()
    con.emit_json({"x": 1})
    assert out.getvalue() == ""


def test_tables_in_a_pipe_are_whole_and_without_trailing_blanks() -> None:
    con, out, _ = console()
    con.result_table(("name", "MB"), [("a" * 300, 1.5), ("b", None)], title="sizes")
    lines = out.getvalue().splitlines()
    assert lines[0] == "sizes"
    assert lines[2] == "a" * 300 + "  1.5"
    assert lines[3].split() == ["b", "-"]
    assert all(line == line.rstrip() for line in lines)


def test_an_empty_table_has_its_headings() -> None:
    con, out, _ = console()
    con.result_table(("name", "MB"), [])
    assert out.getvalue().split() == ["name", "MB"]


@pytest.mark.parametrize(
    ("color", "no_color", "stream", "colored"),
    [
        ("auto", "", io.StringIO, False),
        ("auto", "", Screen, True),
        ("auto", "1", Screen, False),
        ("never", "", Screen, False),
        ("always", "", io.StringIO, True),
    ],
)
def test_color(
    color: str, no_color: str, stream: type[io.StringIO], colored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    con, _, err = console(Talk(color=color), err=stream())  # type: ignore[arg-type]
    con.error(UsageError("bad", code="EQ-U001"))
    assert ("31m" in err.getvalue()) is colored


@given(st.text(alphabet=st.characters(), max_size=40))
def test_no_text_steers_the_terminal_or_breaks_the_encoder(text: str) -> None:
    con, out, err = console()
    con.result(text)
    con.say(text)
    con.error(UsageError(text, code="EQ-U001", place=text, hint=text))
    for stream in (out, err):
        stream.getvalue().encode()
        assert not set(stream.getvalue()) & {"\x1b", "\x07", "\x08", "\r", "\x9b"}


def test_bars_on_a_real_terminal_end_clean() -> None:
    code = (
        "import sys; from edgeq.cli.console import Console, Talk\n"
        "with Console(Talk()).step('calibrate', 2) as advance: advance(2)\n"
    )
    leader, follower = pty.openpty()
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=follower, timeout=60, check=True)
    os.close(follower)
    shown = b""
    while chunk := _read(leader):
        shown += chunk
    os.close(leader)
    assert done.stdout == b""
    assert b"calibrate" in shown
    assert shown.count(b"\x1b[?25h") == shown.count(b"\x1b[?25l")  # the cursor is shown again


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # Linux reports the end of a terminal as an error
        return b""
