"""Any command line: a documented exit code, no traceback, and with `--json` exactly one object."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgeq
from edgeq.cli.main import cli, main
from edgeq.errors import GateError

DOCUMENTED = {0, 1, 2, 3, 4, 5, 130}
OPTIONS = sorted({name for c in [cli, *cli.commands.values()] for p in c.params for name in p.opts if name[0] == "-"})
VALUES = ["rpi", "x86", "vit_nano", "vit:vit_nano", "auto", "w8a8", "static", "mse", "percentile:2", "0", "-1", "1e9"]
# No slash and no dot: a command that writes must stay in its empty folder.
TEXT = st.text(alphabet=st.characters(exclude_characters="/."), max_size=6)
WORD = st.sampled_from([*cli.commands]) | st.sampled_from([*OPTIONS, "--", "-h"]) | st.sampled_from(VALUES) | TEXT


@pytest.fixture(scope="module", autouse=True)
def light(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty folder, and commands that stop where the heavy work would begin."""

    def stop(*arguments: object) -> None:
        raise GateError("stopped", code="EQ-G001", place=str(arguments[0]))

    pipeline = ModuleType("edgeq.pipeline")
    vars(pipeline).update(export=stop, dry_run=stop, target_defaults=lambda name: {})
    reproduce = ModuleType("edgeq.reproduce")
    vars(reproduce).update(reproduce=stop)
    with pytest.MonkeyPatch.context() as patch:
        for module in (pipeline, reproduce):
            patch.setitem(sys.modules, module.__name__, module)
            patch.setattr(edgeq, module.__name__.split(".")[1], module, raising=False)
        patch.setattr("edgeq.cli.doctor._import_failure", lambda console, module: None)
        patch.chdir(tmp_path_factory.mktemp("fuzz"))
        yield


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(WORD, max_size=7))
def test_any_command_line_ends_well(words: list[str]) -> None:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    assert code in DOCUMENTED, (code, err.getvalue())
    assert "Traceback" not in out.getvalue() + err.getvalue()
    if code and "--json" not in words:
        assert out.getvalue() == "" or "doctor" in words
    asked = words[: words.index("--")] if "--" in words else words
    if "--json" in asked and not {"-h", "--help"} & set(words):
        parsed = json.loads(out.getvalue())
        assert parsed["ok"] is (code == 0)
        assert "schema" in parsed


def test_nothing_was_written_outside_the_configuration() -> None:
    assert {path.name for path in Path.cwd().iterdir()} <= {"edgeq.toml"}
