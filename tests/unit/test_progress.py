from __future__ import annotations

import io

from edgeq.cli.console import Console, Talk
from edgeq.progress import Progress, Silent


def test_silence_is_a_progress(capfd: object) -> None:
    progress: Progress = Silent()
    with progress.step("calibrate", 3) as advance:
        advance(2)
    progress.say("nothing")
    assert capfd.readouterr() == ("", "")  # type: ignore[attr-defined]


def test_the_console_is_a_progress() -> None:
    progress: Progress = Console(Talk(), io.StringIO(), io.StringIO())
    with progress.step("calibrate", 3) as advance:
        advance(3)
