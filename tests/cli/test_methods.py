"""`edgeq methods`: what the table says is true of the source, complete, and shown."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgeq.cli.catalogue import CONCEPTS, OPTIONS, Method, methods
from edgeq.config_keys import BITS, METHODS, ROUNDINGS, SCHEMES
from tests.cli.conftest import Run

ARXIV = re.compile(r"arxiv[: ]\s*(\d{4}\.\d{4,5})", re.IGNORECASE)
# Layer norm, batch norm folding and Adam: parts of reading and training networks, not of quantizing them.
NO_METHODS = {"1607.06450", "1712.05877", "1412.6980", "2001.03288", "2110.15352"}


def names_of(option: str) -> list[str]:
    return [m.name for m in methods() if m.option == option]


def test_options_take_what_the_table_has() -> None:
    assert names_of("--scheme") == list(SCHEMES)
    assert set(names_of("--method")) == set(METHODS)
    assert names_of("--rounding") == list(ROUNDINGS)
    assert names_of("--bits") == list(BITS)


def test_names_are_unique() -> None:
    spelled = [(m.option, m.name) for m in methods()]
    assert len(set(spelled)) == len(spelled)
    library = {m.name for m in methods() if not m.option}
    assert not library & {m.name for m in methods() if m.option}


@pytest.mark.parametrize("method", methods(), ids=lambda m: f"{m.option}{m.name}")
def test_the_code_is_where_the_table_says(root: Path, method: Method) -> None:
    assert method.concept in CONCEPTS
    assert method.summary and len(method.summary) <= 120
    file, _, symbol = method.code.partition(":")
    tree = ast.parse((root / file).read_text(encoding="utf-8"))
    defined = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    assert symbol in defined
    option, _, name = method.within.partition(" ")
    assert not option or name in OPTIONS[option]


def test_every_paper_of_the_engine_is_in_the_table(root: Path) -> None:
    cited: set[str] = set()
    for folder in ("quant", "graph"):
        for path in (root / "edgeq" / folder).rglob("*.py"):
            cited |= set(ARXIV.findall(path.read_text(encoding="utf-8")))
    assert len(cited) > 30
    known = set(ARXIV.findall((root / "edgeq" / "cli" / "methods.toml").read_text(encoding="utf-8")))
    assert cited - known <= NO_METHODS


def test_every_grid_and_search_is_in_the_table() -> None:
    from edgeq.quant.grids import GRIDS
    from edgeq.quant.search import SEARCHES

    names = {m.name for m in methods()}
    assert set(GRIDS) <= names
    functions = {m.code.partition(":")[2] for m in methods()}
    assert {f.__name__ for f in SEARCHES.values()} - {"search_fpcs"} <= functions  # a use of fpcs


def test_the_list_has_two_sections(run: Run) -> None:
    out = run("methods").out
    options, library = out.split("\nlibrary: ")
    assert all(m.spelled in options for m in methods() if m.option)
    assert all(m.name in library for m in methods() if not m.option)
    assert "--method transformer" in library


def test_json_keeps_options_and_library_apart(run: Run) -> None:
    shown = run("methods", "--json").json
    assert shown["schema"] == "edgeq.methods/1"
    assert [(m["option"], m["name"]) for m in shown["methods"]] == [
        (m.option, m.spelled) for m in methods() if m.option
    ]
    assert [m["name"] for m in shown["library"]] == [m.name for m in methods() if not m.option]
    assert all(m["summary"] and m["code"] and m["source"] for m in [*shown["methods"], *shown["library"]])


def test_one_is_explained_with_source_and_figure(run: Run) -> None:
    out = run("methods", "gptq").out
    assert "edgeq export --rounding gptq" in out
    assert "arXiv 2210.17323, algorithm 1" in out
    assert "second_order.py:gptq" in out
    library = run("methods", "adalog").out
    assert "library only" in library
    assert "4 bits" in library
    assert "library; part of --method transformer" in run("methods", "scale-heads").out
    unmeasured = next(m.name for m in methods() if not m.option and not m.measured)
    assert "not measured" in run("methods", unmeasured).out


def test_a_name_of_several_options_is_explained_for_each(run: Run) -> None:
    done = run("methods", "auto", "--json").json
    assert [m["option"] for m in done["methods"]] == ["--scheme", "--method", "--rounding", "--keep-float"]
    assert run("methods", "auto").out.count("edgeq export --") == 4


@pytest.mark.parametrize("name", ["percentile", "percentile:P", "percentile:0.9999"])
def test_a_parameter_may_be_given(run: Run, name: str) -> None:
    assert [m["name"] for m in run("methods", name, "--json").json["methods"]] == ["percentile:P"]


@pytest.mark.parametrize(("name", "near"), [("adalogg", "'adalog'"), ("gptq:3", "'gptq'"), ("", None), ("ß\n", None)])
def test_an_unknown_name_gets_the_nearest(run: Run, name: str, near: str | None) -> None:
    done = run("methods", name, "--json")
    assert (done.code, done.json["code"]) == (2, "EQ-U007")
    assert (f"did you mean {near}" in done.json["hint"]) if near else "edgeq methods" in done.json["hint"]


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from edgeq.cli.main import main; main(['methods', 'gptq']);"
        " assert not {'torch', 'numpy', 'scipy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_rounding_is_an_option_of_export(run: Run, tmp_path: Path) -> None:
    done = run("export", "vit_nano", "--device", "rpi", "--rounding", "erq", "--show-config", "--json")
    assert done.json["config"]["rounding"] == {"value": "erq", "source": "--rounding"}
    default = run("export", "vit_nano", "--device", "rpi", "--show-config", "--json")
    assert default.json["config"]["rounding"]["value"] == "auto"
    (tmp_path / "edgeq.toml").write_text('[export]\nrounding = "coordinate"\n')
    assert (
        run("export", "vit_nano", "--device", "rpi", "--show-config", "--json").json["config"]["rounding"]["value"]
        == "coordinate"
    )


@pytest.mark.parametrize("name", ["gptqq", "", "GPTQ"])
def test_an_unknown_rounding_gets_the_nearest(run: Run, name: str) -> None:
    done = run("export", "vit_nano", "--device", "rpi", "--rounding", name, "--json")
    assert done.code == 2
    assert done.json["code"].startswith("EQ-U")
    assert not name or "gptq" in done.json["hint"]


def test_help_names_the_widths(run: Run) -> None:
    out = run("export", "--help").out
    assert all(bits in out for bits in BITS)
    assert "--rounding" in out
