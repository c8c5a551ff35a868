"""`edgeq validate` on a real bundle: what it measures, what it refuses, and that it goes on where it stopped."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeq.cli.validate import parse_severities
from edgeq.errors import UsageError
from tests.cli.conftest import Run

Exported = tuple[Path, dict[str, Any]]
ROBUST = ("--degrade", "noise,jpeg:2", "--severity", "3")


def encoded(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((40, 32)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve images in two folders named like two of the model's classes; random, so only for the plumbing."""
    for i in range(12):
        folder = tmp_path / "photos" / ("ship", "cat")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(encoded(i))
    return tmp_path / "photos"


@pytest.fixture
def bundle(exported: Exported) -> str:
    cwd, summary = exported
    return str(cwd / summary["artifact"])


def test_fidelity_without_labels(run: Run, bundle: str, photos: Path) -> None:
    done = run("validate", bundle, "--data", str(photos / "cat"), *ROBUST, "--json")
    assert done.code == 0, done.err
    result = done.json
    assert result["schema"] == "edgeq.validate/1"
    assert (result["metric"], result["n"], result["gate"]["passed"]) == ("SQNR", 6, True)
    assert [(c["name"], c["severity"]) for c in result["degraded"]] == [("noise", 3), ("jpeg", 2)]
    assert all(c["float"] is None and c["quantized"] > 15 for c in (result["clean"], *result["degraded"]))
    assert result["worst"]["quantized"] == min(c["quantized"] for c in (result["clean"], *result["degraded"]))
    assert result["samples"] == []
    drawn = run("validate", bundle, "--data", str(photos), "--degrade", "none", "--show", "2", "--json").json["samples"]
    assert len({sample["item"] for sample in drawn}) == 2
    for sample in drawn:
        assert sample["agreement"] in (0, 1) and sample["condition"] == "clean"
        assert "true: " in sample["float"]["text"] and sample["artifact"]["picture"].startswith(
            "data:image/jpeg;base64,"
        )
    missed = run("validate", bundle, "--data", str(photos / "cat"), *ROBUST, "--min-sqnr-db", "99", "--json")
    assert missed.code == 1
    assert len(missed.json["gate"]["missed"]) == 3


def test_an_interrupted_validation_goes_on(
    run: Run, bundle: str, photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from edgeq.probe import Probe

    monkeypatch.setenv("EDGEQ_CACHE_DIR", str(tmp_path / "cache"))
    whole, calls = Probe.records, []

    def counted(self: Probe, index: int, condition: Any) -> list[Any]:
        calls.append(index)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return whole(self, index, condition)

    monkeypatch.setattr(Probe, "records", counted)
    words = ("validate", bundle, "--data", str(photos / "ship"), *ROBUST, "--json")
    assert run(*words).code == 130
    assert run(*words).code == 0
    assert len(calls) == 8 + 18 - 7
    assert run(*words).code == 0
    assert len(calls) == 8 + 18 - 7


def test_what_cannot_be_judged_is_refused(run: Run, bundle: str, photos: Path, tmp_path: Path) -> None:
    unlabelled, labels = str(photos / "cat"), tmp_path / "eleven"
    for i in range(11):
        (labels / f"{i:02d}").mkdir(parents=True)
        (labels / f"{i:02d}" / "a.png").write_bytes(encoded(i))
    other = tmp_path / "changed"
    shutil.copytree(bundle, other)
    (other / "model.tflite").write_bytes(b"x")
    for words, code, exit_code in (
        ((bundle, "--data", unlabelled, "--max-drop", "1"), "EQ-U753", 2),
        ((bundle, "--data", str(photos), "--min-sqnr-db", "1"), "EQ-U753", 2),
        ((bundle, "--data", unlabelled, "--severity", "9"), "EQ-U750", 2),
        ((bundle, "--data", unlabelled, "--severity", "a"), "EQ-U750", 2),
        ((bundle, "--data", unlabelled, "--degrade", "rain"), "EQ-U752", 2),
        ((bundle, "--data", unlabelled, "--degrade", "white"), "EQ-U751", 2),
        ((bundle, "--data", str(labels)), "EQ-D059", 3),
        ((bundle, "--data", "absent"), "EQ-D050", 3),
        ((bundle,), "EQ-U001", 2),
        (("absent", "--data", unlabelled), "EQ-I040", 3),
        ((str(other), "--data", unlabelled), "EQ-I042", 3),
        ((bundle, "--data", unlabelled, "--weights", str(photos / "cat" / "1.png")), "EQ-M006", 3),
    ):
        done = run("validate", *words, "--json")
        assert (done.json["code"], done.code) == (code, exit_code), words


def test_predictions_that_are_no_numbers_and_damaged_photos(
    run: Run, bundle: str, photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from edgeq import probe

    class Broken:
        def run(self, *arrays: Any) -> tuple[Any, ...]:
            return (np.full((1, 10), np.nan, np.float32),)

    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "a.png").write_bytes(encoded(1)[:200])
    words = ("--degrade", "none", "--json")
    done = run("validate", bundle, "--data", str(damaged), *words)
    assert (done.json["code"], done.code) == ("EQ-D053", 3)
    monkeypatch.setattr(probe, "open_model", lambda *args, **kwargs: Broken())
    monkeypatch.setenv("EDGEQ_CACHE_DIR", str(tmp_path / "cache"))
    for data in (photos, photos / "cat"):
        done = run("validate", bundle, "--data", str(data), *words)
        assert (done.json["code"], done.code) == ("EQ-M750", 3)
        assert "artifact" in done.json["message"] and ".png" in done.json["message"]


def test_data_may_show_some_of_the_classes(run: Run, bundle: str, photos: Path) -> None:
    done = run("validate", bundle, "--data", str(photos), "--degrade", "none", "--json")
    assert done.json["n"] == 12
    (photos / "zeppelin").mkdir()
    (photos / "zeppelin" / "a.png").write_bytes(encoded(99))
    refused = run("validate", bundle, "--data", str(photos), "--degrade", "none", "--json")
    assert (refused.json["code"], refused.code) == ("EQ-D836", 3)


def test_what_calibration_has_seen_is_left_out(run: Run, bundle: str, photos: Path) -> None:
    from importlib import resources

    own = resources.files("edgeq.models") / "weights" / "vit_nano_samples.npz"
    done = run("validate", bundle, "--data", str(own), "--degrade", "none", "--json")
    assert done.code == 0, done.err
    manifest = json.loads((Path(bundle) / "manifest.json").read_text())
    assert done.json["left_out"] == len(manifest["calibration"])
    assert done.json["n"] == 100 - done.json["left_out"]


def test_interrupted_rebuilds_go_on(
    run: Run, bundle: str, photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Builds here are copies of the bundle's file, so all score alike: what is kept is tested, not the spread."""
    from types import SimpleNamespace

    from edgeq import rebuild

    monkeypatch.setenv("EDGEQ_CACHE_DIR", str(tmp_path / "cache"))
    seeds: list[int] = []

    def copied(folder: Path, config: Any, scratch: Path, *_: Any) -> Any:
        seeds.append(config.seed)
        if len(seeds) == 2:
            raise KeyboardInterrupt
        shutil.copyfile(folder / "model.tflite", scratch / "model.tflite")
        samples = SimpleNamespace(calibration_items=[SimpleNamespace(sha256="0" * 64)])
        first = SimpleNamespace(samples=samples)
        return SimpleNamespace(first=first), {"": SimpleNamespace(path=scratch / "model.tflite")}

    monkeypatch.setattr(rebuild, "build_again", copied)
    words = ("validate", bundle, "--data", str(photos), "--degrade", "none", "--rebuild", "2")
    assert run(*words).code == 130
    done = run(*words, "--json")
    assert (done.code, seeds) == (0, [1, 2, 2]), done.err
    found = done.json["rebuild"]
    assert [b["seed"] for b in found["rebuilds"]] == [1, 2]
    assert {b["score"] for b in found["rebuilds"]} == {found["shipped"]} == {done.json["clean"]["quantized"]}
    assert (found["luck"], found["deviation"], found["n"], found["rank"]) == (0, 0, 12, 1)
    assert found["shared_calibration"] == 0
    shown = run(*words).out
    assert seeds == [1, 2, 2], "everything was there"
    assert "by luck" in shown and "this artifact" in shown
    without = run("validate", bundle, "--data", str(photos / "cat"), "--degrade", "none", "--rebuild", "1", "--json")
    assert without.json["rebuild"]["metric"] == "SQNR"
    assert without.json["rebuild"]["float"] is None
    assert not list((tmp_path / "cache" / "rebuild").glob("tmp*")), "nothing half-written"


@pytest.mark.slow
def test_other_draws_give_other_files(run: Run, bundle: str, photos: Path) -> None:
    done = run("validate", bundle, "--data", str(photos / "cat"), "--degrade", "none", "--rebuild", "1", "--json")
    assert done.code == 0, done.err
    found = done.json["rebuild"]
    assert found["shared_calibration"] < 1
    assert found["rebuilds"][0]["score"] > 15


@pytest.mark.real
def test_top1_under_noise_is_float_s(run: Run, bundle: str, real_data: Path) -> None:
    words = (bundle, "--data", str(real_data / "cifar10" / "test.npz"), "--limit", "100", "--degrade", "noise:3")
    done = run("validate", *words, "--max-drop", "5", "--json")
    assert done.code == 0, done.err
    (noisy,), clean = done.json["degraded"], done.json["clean"]
    assert clean["float"] > 70
    assert noisy["float"] < clean["float"] - 10
    assert abs(noisy["extra_drop"]) < 10
    low, high = noisy["extra_drop_interval"]
    assert low <= noisy["extra_drop"] <= high
    assert noisy["agreement"] > 0.9
    table = run("validate", *words)
    assert [line.split()[0] for line in table.out.splitlines()[:3]] == ["condition", "clean", "noise:3"]


@pytest.mark.parametrize("text", ["", "1,", "x", "1.5", "-1"])
def test_severities_are_whole_numbers(text: str) -> None:
    with pytest.raises(UsageError):
        parse_severities(text)
    assert parse_severities("3, 1,3") == (3, 1)
