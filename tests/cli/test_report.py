"""`edgeq report`: one page that says what the bundle's evidence says, and needs nothing from elsewhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeq.portraits import data_uri, most_different
from edgeq.report.charts import Line, histogram, line_chart, nice_ticks
from tests.cli.conftest import Run

VOID = {"meta", "line", "circle", "polyline", "polygon", "rect", "br", "img"}


class Nesting(HTMLParser):
    """Elements closed in the order in which they were opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: Path) -> str:
    """The page's words, after checking its form."""
    text = page.read_text(encoding="utf-8")
    parser = Nesting()
    parser.feed(text)
    assert not parser.open
    assert not re.search(r"href=|url\(|@import|<script", text)
    assert text.count("src=") == text.count('src="data:image/jpeg;base64,')
    assert text.count("<svg") == text.count('role="img"') == text.count("<desc>")
    return " ".join(" ".join(parser.text).split())


def outcome(name: str, severity: int, quantized: float, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "severity": severity,
        "float": 80.0,
        "quantized": quantized,
        "difference_interval": [-1.0, 1.0],
        "extra_drop": 0.5,
        "extra_drop_interval": [-1.0, 2.0],
        "worst_item": "<b>7</b>",
        **more,
    }


@pytest.fixture
def validation(tmp_path: Path) -> Path:
    clean = outcome("clean", 0, 79.0, extra_drop_interval=None)
    degraded = [outcome("noise", 1, 70.0), outcome("noise", 5, 12.5), outcome("jpeg", 2, 75.0)]
    seen = {"text": "<i>cat</i>, 90 %", "picture": data_uri(Image.new("RGB", (32, 20), (200, 10, 10)))}
    blind = {"text": "", "picture": None}
    samples = [
        {"condition": "noise:5", "item": "7", "agreement": 0.5, "sqnr_db": None, "float": seen, "artifact": blind}
    ]
    builds = [{"seed": 1, "score": 78.875}]
    rebuild = {"shipped": 79.0, "luck": 0.625, "deviation": 0.2, "n": 9, "interval": [78.25, 79.75], "rebuilds": builds}
    gate = {"max_drop": 1.0, "max_extra_drop": None, "min_sqnr_db": None, "passed": False, "missed": ["noise:5: falls"]}
    data = {
        "schema": "edgeq.validate/1",
        "metric": "top1",
        "unit": "%",
        "n": 9,
        "higher_is_better": True,
        "samples": samples,
        "rebuild": rebuild,
    }
    path = tmp_path / "validation.json"
    path.write_text(json.dumps({**data, "clean": clean, "degraded": degraded, "worst": degraded[1], "gate": gate}))
    return path


def test_a_page_with_a_validation(
    run: Run, exported: tuple[Path, dict[str, Any]], validation: Path, tmp_path: Path
) -> None:
    cwd, summary = exported
    bundle = str(cwd / summary["artifact"])
    done = run("report", bundle, "--validation", str(validation), "--out", "page.html", "--json")
    assert done.code == 0, done.err
    page = tmp_path / "page.html"
    assert done.json["bytes"] == page.stat().st_size < 5e6
    words = read(page)
    for expected in (
        "vit_nano on rpi5",
        "A validation missed its gate",
        "noise:5: falls",
        "12.50",
        "<b>7</b>",
        "<i>cat</i>, 90 %",
        "would help",
        "ships",
        "up to 0.62 % by luck",
        "78.88",
    ):
        assert expected in words
    assert page.read_text().count("<svg") == 1  # one severity is no curve
    assert f"{summary['bytes'] / 1e6:.2f} MB" in words
    first = page.read_bytes()
    assert run("report", bundle, "--validation", str(validation), "--out", "page.html").code == 0
    assert page.read_bytes() == first
    assert run("report", bundle, "--out", "plain.html").code == 0
    assert "Every gate passed at export ." in read(tmp_path / "plain.html").replace("export.", "export .")


def test_each_sample_is_shown_once_at_its_worst() -> None:
    alike = {"clean": [1.0, 0.4, 0.9], "noise:5": [0.7, 0.6, 0.1]}
    assert most_different(alike, 2) == [("noise:5", 2), ("clean", 1)]
    assert most_different(alike, 9) == [("noise:5", 2), ("clean", 1), ("noise:5", 0)]
    assert most_different({"clean": []}, 3) == []


def test_refusals(run: Run, exported: tuple[Path, dict[str, Any]], validation: Path, tmp_path: Path) -> None:
    cwd, summary = exported
    bundle = str(cwd / summary["artifact"])
    (tmp_path / "other.json").write_text('{"schema": "edgeq.export/1"}')
    (tmp_path / "folder").mkdir()
    cut = json.loads(validation.read_text())
    del cut["clean"]["quantized"]
    (tmp_path / "cut.json").write_text(json.dumps(cut))
    for name, picture in (
        ("remote", "https://example.org/x.jpg"),
        ("script", "data:text/html;base64,AAAA"),
        ("number", 7),
    ):
        foreign = json.loads(validation.read_text())
        foreign["samples"][0]["float"]["picture"] = picture
        (tmp_path / f"{name}.json").write_text(json.dumps(foreign))
    unscored = json.loads(validation.read_text())
    unscored["rebuild"]["rebuilds"][0]["score"] = "<script>"
    (tmp_path / "unscored.json").write_text(json.dumps(unscored))
    for words, code, exit_code in (
        ((bundle, "--validation", "absent.json"), "EQ-I770", 3),
        ((bundle, "--validation", "unscored.json"), "EQ-I770", 3),
        ((bundle, "--validation", "other.json"), "EQ-I770", 3),
        ((bundle, "--validation", "cut.json"), "EQ-I770", 3),
        ((bundle, "--validation", "remote.json"), "EQ-I770", 3),
        ((bundle, "--validation", "script.json"), "EQ-I770", 3),
        ((bundle, "--validation", "number.json"), "EQ-I770", 3),
        ((bundle, "--out", "folder"), "EQ-U770", 2),
        ((bundle, "--out", "absent/page.html"), "EQ-I771", 3),
        (("folder",), "EQ-I040", 3),
    ):
        done = run("report", *words, "--json")
        assert (done.json["code"], done.code) == (code, exit_code), words
    assert not list(tmp_path.glob("**/*.html"))


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_cover_the_values_with_few_round_steps(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    assert 2 <= len(ticks) <= 7
    slack = 1e-6 * (ticks[1] - ticks[0]) + 1e-12
    assert ticks[0] <= low + slack
    assert low + span <= ticks[-1] + slack


def test_a_chart_says_in_words_what_it_draws() -> None:
    svg = line_chart("top1 <noise>", "%", ["clean", "1"], [Line("float", "float", ((0.0, 80.0), (1.0, 60.0)))])
    assert "<desc>float: clean 80, 1 60</desc>" in svg
    assert "&lt;noise&gt;" in svg


def test_a_band_is_drawn_and_widens_the_scale() -> None:
    points = ((0.0, 80.0), (1.0, 60.0))
    plain = line_chart("top1", "%", ["clean", "1"], [Line("artifact", "artifact", points)])
    shaded = line_chart("top1", "%", ["clean", "1"], [Line("artifact", "artifact", points, ((0, 79, 81), (1, 40, 61)))])
    assert "<polygon" not in plain
    assert shaded.count("<polygon") == 1
    assert ">40<" in shaded and ">40<" not in plain


def test_a_histogram_says_what_its_grid_covers() -> None:
    svg = histogram("values of <x>", -1.0, 3.0, [5, 0, 1, 2], (-1.0, 2.0))
    assert "values from -1 to 3; the grid covers -1 to 2" in svg
    assert "&lt;x&gt;" in svg
    assert svg.count('class="count"') == 3
    flat = histogram("x", 2.0, 2.0, [9], (0.0, 2.0))
    assert "nan" not in flat and flat.count('class="count"') == 1
