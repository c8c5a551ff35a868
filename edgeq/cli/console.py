"""Where edgeq speaks: results to stdout, talk and progress to stderr, one JSON object with `--json`."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from edgeq.errors import EdgeqError

Color = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class Talk:
    """How the user wants to be spoken to.

    Args:
        json: One JSON object on stdout, nothing else there.
        quiet: No talk and no progress; results and errors only.
        verbose: Details too.
        color: `auto` colours terminals only and honours `NO_COLOR`.
        progress: Bars where stderr is a terminal.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    color: Color = "auto"
    progress: bool = True


class Console:
    """The two streams of a command; a `edgeq.progress.Progress`.

    Args:
        talk: The user's wishes.
        stdout: Stream of results, `sys.stdout` by default.
        stderr: Stream of talk, `sys.stderr` by default.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        talk: Talk,
        stdout: IO[str] | None = None,
        stderr: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.talk = talk
        self._stdout = _terminal(stdout or sys.stdout, talk.color)
        self._stderr = _terminal(stderr or sys.stderr, talk.color)
        self._clock = clock
        self._steps = 0
        self._depth = 0
        self._bars: Progress | None = None

    @contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Print a numbered step with its duration; a bar while it lasts if stderr is a terminal.

        Args:
            name: What is being done.
            total: Number of items, when known.

        Yields:
            A function that takes the number of items finished since its last call.
        """
        if self._depth == 0:
            self._steps += 1
        label = f"{self._steps:>2} {name}" if self._depth == 0 else f"   {'  ' * self._depth}{name}"
        started, done = self._clock(), 0
        self._depth += 1
        bars = self._open_bars()
        task = None if bars is None else bars.add_task(_printable(label), total=total)

        def advance(items: int) -> None:
            nonlocal done
            done += items
            if bars is not None and task is not None:
                bars.advance(task, items)

        outcome = "stopped after "
        try:
            yield advance
            outcome = ""
        finally:
            self._depth -= 1
            if bars is not None and task is not None:
                bars.remove_task(task)
                if self._depth == 0:
                    bars.stop()
                    self._bars = None
            count = f"{done}/{total}" if total else (str(done) if done else "")
            self.say(f"{label:<36}{count:>12}  {outcome}{self._clock() - started:.1f} s")

    def say(self, text: str) -> None:
        """One line of talk on stderr; nothing with `--quiet`."""
        if not self.talk.quiet:
            self._print(self._stderr, Text(_printable(text)))

    def detail(self, text: str) -> None:
        """A line that only `--verbose` shows."""
        if self.talk.verbose:
            self.say(text)

    def warn(self, text: str) -> None:
        """A warning on stderr, with `--quiet` too."""
        self._print(self._stderr, Text.assemble(("warning: ", "yellow"), _printable(text)))

    def result(self, text: str = "") -> None:
        """A line of the result on stdout; nothing with `--json`, where `emit_json` speaks."""
        if not self.talk.json:
            self._print(self._stdout, Text(_printable(text)))

    def result_table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
        """A table of the result on stdout; numbers are right-aligned; nothing with `--json`.

        Args:
            columns: Headings.
            rows: Cells; None reads `-`.
            title: A line above.
        """
        if self.talk.json:
            return
        table = Table(box=SIMPLE_HEAD if self._stdout.is_terminal else None, pad_edge=False, padding=(0, 2, 0, 0))
        for index, column in enumerate(columns):
            cells = [row[index] for row in rows]
            numeric = bool(cells) and all(isinstance(c, (int, float)) or c is None for c in cells)
            table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text("-" if cell is None else _printable(str(cell))) for cell in row))
        if title:
            self.result(title)
        if self._stdout.is_terminal:
            self._stdout.print(table)
            return
        with self._stdout.capture() as captured:
            self._stdout.print(table)
        # Cells are padded to the column's width: harmless on a screen, noise in a pipe.
        self._stdout.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))

    def emit_json(self, payload: Mapping[str, object]) -> None:
        """The one JSON object of `--json` on stdout; without `--json` nothing.

        Numbers that JSON lacks (infinity, not a number) become null, paths become text.
        """
        if self.talk.json:
            self._stdout.file.write(json.dumps(_plain(payload), indent=2, allow_nan=False) + "\n")

    def error(self, error: EdgeqError) -> None:
        """Show an error: as JSON on stdout with `--json`, and for people on stderr without."""
        if self.talk.json:
            self.emit_json(error.to_dict())
            return
        head = Text.assemble((f"error[{error.code}]", "bold red"), ": ", _printable(error.message))
        self._print(self._stderr, head)
        for name, text in (("at", error.place), ("try", error.hint)):
            if text:
                # Continuation lines of a hint stand below its first word.
                body = _printable(text).replace("\n", "\n       ")
                self._print(self._stderr, Text.assemble(f"  {name + ':':<5}", body))
        self._print(self._stderr, Text(f"exit {error.exit_code}"))

    def _open_bars(self) -> Progress | None:
        wanted = self.talk.progress and not self.talk.quiet and self._stderr.is_terminal
        if self._bars is None and wanted:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
            self._bars = Progress(*columns, TimeElapsedColumn(), console=self._stderr, transient=True)
            self._bars.start()
        return self._bars

    @staticmethod
    def _print(terminal: Terminal, text: Text) -> None:
        terminal.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


class _Terminal(Terminal):
    """A terminal that leaves a reader who has gone to `main`; rich would end the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _terminal(stream: IO[str], color: Color) -> Terminal:
    return _Terminal(
        file=stream,
        force_terminal=True if color == "always" else None,
        no_color=True if color == "never" else None,
        width=None if stream.isatty() else 1000,
        markup=False,
        highlight=False,
        emoji=False,
    )


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def _printable(text: str) -> str:
    """Text that cannot steer a terminal or break an encoder: file names may hold escapes and broken bytes."""
    return _CONTROL.sub(lambda m: m[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def _plain(value: object) -> object:
    """`value` in types that JSON has."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    for method in ("to_dict", "tolist"):  # our dataclasses, numpy arrays and scalars
        if callable(convert := getattr(value, method, None)):
            return _plain(convert())
    raise TypeError(f"{type(value).__name__} has no JSON form")
