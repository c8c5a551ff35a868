"""What native code prints: caught, restored, and never beside the one object of `--json`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edgeq.native import native_output


def test_what_is_written_is_caught_and_the_streams_are_restored(capfd: pytest.CaptureFixture[str]) -> None:
    with native_output(1, 2) as said:
        os.write(1, b"one ")
        with native_output(2) as inner:
            os.write(2, b"chatter")
            os.write(1, b"two")
            assert inner() == "chatter"
        assert said() == "one two"
    os.write(1, b"result")
    os.write(2, b"talk")
    assert capfd.readouterr() == ("result", "talk")


def test_streams_are_restored_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), native_output(1):
        raise RuntimeError
    os.write(1, b"result")
    assert capfd.readouterr().out == "result"


def test_a_closed_stream_stays_closed() -> None:
    code = """
import os
from edgeq.native import native_output
os.close(1)
with native_output(1, 2) as said:
    os.write(2, b"x")
    assert said() == "x"
try:
    os.fstat(1)
except OSError:
    os.write(2, b"fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == "fine"
