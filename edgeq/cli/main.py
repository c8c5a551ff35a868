"""The `edgeq` command: registers the commands, runs one, and turns whatever happens into an exit code."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TextIO

import click

from edgeq import __version__
from edgeq.cli import (
    compare,
    completion,
    devices,
    doctor,
    explain,
    export,
    init,
    inspect,
    methods,
    models,
    profile,
    report,
    reproduce,
    search,
    validate,
    verify,
)
from edgeq.cli.console import Console, Talk
from edgeq.cli.failure import Stopped, as_edgeq_error
from edgeq.cli.options import HELP_NAMES, EdgeqGroup, kept_options, run_options, talk_from, talk_options

COMPLETE_VARIABLE = "_EDGEQ_COMPLETE"
READER_GONE = 130
EPILOG = """\b
Examples:
  edgeq export vit_nano --device rpi
  edgeq export model.onnx --family vit --device rpi --calib photos --json
  edgeq devices rpi
  edgeq doctor

Exit codes: 0 done, 1 a gate failed, 2 usage or configuration, 3 model or data unusable, 4 a package or tool is
missing, 5 device unreachable, 70 a bug in edgeq, 130 interrupted.
"""


def _root(version: bool) -> None:
    """Turn vision and speech models into quantized artifacts that run on edge devices, measured before they ship."""
    ctx = click.get_current_context()
    console = Console(talk_from(kept_options(ctx)))
    if version:
        console.result(f"edgeq {__version__}")
        console.emit_json({"schema": "edgeq.version/1", "ok": True, "version": __version__})
        ctx.exit(0)
    if ctx.invoked_subcommand is None:
        if console.talk.json:
            raise click.UsageError("a command is missing", ctx)
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


cli = EdgeqGroup(
    "edgeq",
    callback=_root,
    params=[
        click.Option(["--version"], is_flag=True, help="Print the version."),
        *talk_options(),
        *run_options(),
    ],
    help=_root.__doc__,
    epilog=EPILOG,
    invoke_without_command=True,
    context_settings=HELP_NAMES,
)
for _command in (
    export.export,
    profile.profile,
    verify.verify,
    validate.validate,
    compare.compare,
    search.search,
    report.report,
    inspect.inspect,
    reproduce.reproduce,
    models.models,
    devices.devices,
    methods.methods,
    doctor.doctor,
    explain.explain,
    init.init,
    completion.completion,
):
    cli.add_command(_command)


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        args: Arguments without the program's name, those of the process by default.

    Returns:
        The exit code, one of the documented ones.
    """
    words = list(sys.argv[1:] if args is None else args)
    if COMPLETE_VARIABLE in os.environ:
        cli.main(words, prog_name="edgeq", complete_var=COMPLETE_VARIABLE)
    console = Console(wishes(words))
    try:
        try:
            with stop_signals():
                code = _run(words)
                sys.stdout.flush()
        except BrokenPipeError:
            raise
        except (Exception, KeyboardInterrupt, SystemExit) as exc:
            error = as_edgeq_error(exc, words)
            console.error(error)
            code = error.exit_code
            sys.stdout.flush()
    except BrokenPipeError:  # `edgeq devices | head -1`: the reader has what it wanted
        code = READER_GONE
        _detach(sys.stdout)
    except OSError:  # stdout is full or gone: the error above was shown as far as possible
        code = 2
        _detach(sys.stdout)
    return code


def run() -> None:
    """Entry point of the `edgeq` script."""
    # A daemon may start us with closed streams, for which Python has None.
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if callable(reconfigure := getattr(stream, "reconfigure", None)):
            reconfigure(errors="backslashreplace")  # an ASCII locale must not turn a result into a crash
    sys.exit(main())


def wishes(words: Sequence[str]) -> Talk:
    """How to speak about a command line that cannot be parsed."""
    before = words[: words.index("--")] if "--" in words else words
    parts = " ".join(before).replace("=", " ").split()
    colors = [value for name, value in itertools.pairwise(parts) if name == "--color"]
    color = colors[-1] if colors else "auto"
    return talk_from({"json": "--json" in before, "color": color if color in ("always", "never") else "auto"})


@contextmanager
def stop_signals() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP like Ctrl-C while the body runs, so that half-done work is removed."""

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        raise Stopped(signal.Signals(number).name)

    names = [n for n in ("SIGTERM", "SIGHUP") if hasattr(signal, n)]
    if threading.current_thread() is not threading.main_thread():
        names = []  # only the main thread may set handlers
    before = {}
    for number in (getattr(signal, name) for name in names):
        if signal.getsignal(number) is signal.SIG_DFL:  # `nohup` ignores SIGHUP on purpose
            before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(words: list[str]) -> int:
    try:
        with cli.make_context("edgeq", words) as ctx:
            code = cli.invoke(ctx)
    except click.exceptions.Exit as done:
        return done.exit_code
    return code if isinstance(code, int) else 0


def _detach(stream: TextIO) -> None:
    """Point a stream that nobody reads to nowhere, so that the flush at exit stays silent."""
    with suppress(OSError, ValueError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, stream.fileno())
        os.close(devnull)
