"""The page of a search: stands for itself, also before anything was found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgeq.errors import GateError
from edgeq.report import search_page
from edgeq.report.charts import Dot, Line, plane_chart
from edgeq.search.engine import Findings, summary
from edgeq.search.problem import Budgets
from tests.unit.search.fakes import FakeBench, searching

FACTS = {
    "model": "<net> & co",
    "target": "rpi",
    "device": {"device": "local", "board": "", "runtime": "litert 2"},
    "table": {},
    "artifact": "out/best",
    "seconds": 1.0,
}


@pytest.mark.parametrize("budgets", [Budgets(0.5, "ratio"), Budgets(40, "instructions", kb=2.1), Budgets(kb=2.1)])
def test_a_page_shows_every_file_and_layer(budgets: Budgets, tmp_path: Path) -> None:
    exact = budgets.kb is not None
    found = searching(FakeBench(exact=exact, narrow=exact), budgets, tmp_path).run()
    text = search_page(summary(found, FACTS))
    assert not re.search(r"href=|url\(|@import|<script", text)
    assert "&lt;net&gt; &amp; co" in text and "<net>" not in text
    assert text.count("<svg") == 1 and 'class="limit"' in text and 'class="winner"' in text
    for trial in (*found.uniform, *found.mixed):
        assert trial.variant.label in text
    assert "<code>stem</code>" in text and "not finished" not in text


def test_a_page_before_and_without_a_winner(tmp_path: Path) -> None:
    assert "Nothing measured so far" in search_page(summary(Findings(Budgets(1.0), reference=1.0), FACTS))
    work = searching(FakeBench(), Budgets(0.1, "ratio"), tmp_path)
    with pytest.raises(GateError):
        work.run()
    text = search_page(summary(work.findings, FACTS))
    assert "Nothing measured so far" in text and "over budget" in text


def test_a_plane_keeps_everything_inside() -> None:
    dots = [Dot(f"d{i}", "uniform", x, y) for i, (x, y) in enumerate([(1, 20), (1, 20.01), (9, 50)])]
    svg = plane_chart("t", ("x", "y"), [Line("front", "artifact", ((2.0, 30.0), (3.0, 31.0)))], dots, 12.0)
    for name, limit in (("cx", 640), ("cy", 380), ("x1", 640)):
        assert all(0 <= float(v) <= limit for v in re.findall(rf'{name}="([\d.]+)"', svg))
    heights = [float(v) for v in re.findall(r'class="name"[^>]* y="([\d.]+)"', svg)]
    assert abs(heights[0] - heights[1]) >= 12
