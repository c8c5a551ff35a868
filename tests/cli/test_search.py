"""`edgeq search` on the command line: bad input is refused before anything long begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeq.cli.main import main

CASES = [
    (["--budget-ratio", "0.6", "--budget-ms", "4"], 2, "EQ-U882"),
    ([], 2, "EQ-U882"),
    (["--budget-ms", "-1"], 2, "EQ-U882"),
    (["--budget-ratio", "nan"], 2, "EQ-U882"),
    (["--budget-ratio", "0.6", "--on", "carrier-pigeon://x"], 2, "EQ-U602"),
    (["--budget-ratio", "0.6", "--on", "qemu://mps9"], 2, "EQ-U601"),
    (["--budget-ratio", "0.6", "--calib", "nowhere"], 3, "EQ-D050"),
    (["--budget-ratio", "0.6", "--scheme", "quantum"], 2, "EQ-U007"),
]


@pytest.mark.parametrize(("options", "code", "error"), CASES)
def test_bad_input_is_refused(
    options: list[str], code: int, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["search", "vit_nano", "--device", "x86", "--out", str(out), "--json", *options]
    assert main(words) == code
    said = json.loads(capsys.readouterr().out)
    assert (said["schema"], said["code"]) == ("edgeq.error/1", error)
    assert not (out / "best").exists() and not (out / "search.json").exists()


@pytest.mark.parametrize(("files", "options"), [(["search.json"], []), (["photo.jpg"], ["--resume"])])
def test_folders_of_others_and_finished_searches_are_left_alone(
    files: list[str], options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in files:
        (tmp_path / name).write_text("kept")
    words = ["search", "vit_nano", "--device", "x86", "--budget-ratio", "0.6", "--out", str(tmp_path), "--json"]
    assert main([*words, *options]) == 2
    assert json.loads(capsys.readouterr().out)["code"] == "EQ-U884"
    assert [p.name for p in tmp_path.iterdir()] == files
    assert all((tmp_path / name).read_text() == "kept" for name in files)


def test_a_budget_is_explained_before_a_model_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["code"] == "EQ-U882"
