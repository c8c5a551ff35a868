"""Degradations: determined by seed and item, growing with severity, and parsed from a command line."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from edgeq.degrade import DEGRADATIONS, SETS, SEVERITIES, Condition, kind_of, parse_conditions
from edgeq.degrade.audio import RATE
from edgeq.errors import DataError, EdgeqError, InternalError, UsageError

NAMES = list(DEGRADATIONS)


def photo(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Smooth colours with edges: what a photo has and noise has not."""
    random = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(random.normal(size=(size[1], size[0], 3)), (4, 4, 0))
    pixels = 128 + 900 * field
    pixels[size[1] // 3 :, size[0] // 2 :] = 255 - pixels[size[1] // 3 :, size[0] // 2 :]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def speech(seed: int, seconds: float = 3.0) -> np.ndarray:
    """Harmonics that come and go, with pauses."""
    random, t = np.random.default_rng(seed), np.arange(int(seconds * RATE)) / RATE
    voice = sum(np.sin(2 * np.pi * 130 * k * t + random.uniform(0, 6)) / k for k in range(1, 30))
    rhythm = np.maximum(0, np.sin(2 * np.pi * 3 * t + random.uniform(0, 6)))
    return (0.1 * voice * rhythm).astype(np.float32)


def scan(seed: int, count: int = 600) -> np.ndarray:
    """The surface of a box with normals, off the origin."""
    random = np.random.default_rng(seed)
    places, axis = random.uniform(-1, 1, (count, 3)), random.integers(3, size=count)
    sides = random.choice([-1.0, 1.0], count)
    normals = np.zeros((count, 3))
    normals[np.arange(count), axis] = places[np.arange(count), axis] = sides
    return np.concatenate([places * (1, 2, 3) + 5, normals], 1).astype(np.float32)


MAKERS = {"image": photo, "recording": speech, "cloud": scan}


def sample_of(name: str, seed: int) -> Image.Image | np.ndarray:
    return MAKERS[DEGRADATIONS[name].kind](seed)


def error(name: str, severity: int, seed: int) -> float:
    sample = sample_of(name, seed)
    found = DEGRADATIONS[name](sample, severity, seed=1, index=seed)
    return float(np.mean((np.asarray(found, dtype=np.float64) - np.asarray(sample, dtype=np.float64)) ** 2))


@pytest.mark.parametrize("name", NAMES)
def test_what_comes_out_is_of_the_same_kind_and_the_same_every_time(name: str) -> None:
    sample, degradation = sample_of(name, 0), DEGRADATIONS[name]
    before = np.array(sample)
    for severity in degradation.severities:
        first = degradation(sample, severity, seed=5, index=7)
        again = degradation(sample, severity, seed=5, index=7)
        assert np.array_equal(np.asarray(first), np.asarray(again))
        assert np.asarray(first).shape == before.shape
        assert np.asarray(first).dtype == before.dtype
        assert np.isfinite(np.asarray(first)).all()
    assert np.array_equal(np.asarray(sample), before)


@pytest.mark.parametrize("name", [n for n in NAMES if len(DEGRADATIONS[n].severities) > 1])
def test_mean_error_rises_with_severity(name: str) -> None:
    errors = [np.mean([error(name, severity, seed) for seed in range(6)]) for severity in SEVERITIES]
    assert errors[0] > 0
    assert all(a < b for a, b in itertools.pairwise(errors)), errors


def test_items_and_seeds_and_conditions_do_not_share_their_noise() -> None:
    sample = photo(0)
    noise, low = DEGRADATIONS["noise"], DEGRADATIONS["noise_low"]
    found = [
        np.asarray(image)
        for image in (
            noise(sample, 3, seed=0, index=0),
            noise(sample, 3, seed=0, index=1),
            noise(sample, 3, seed=1, index=0),
            low(sample, 1, seed=0, index=0),
        )
    ]
    assert not any(np.array_equal(a, b) for i, a in enumerate(found) for b in found[:i])


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("name", [n for n in NAMES if DEGRADATIONS[n].kind == "image"])
def test_tiny_images_survive(name: str, side: int) -> None:
    image = Image.new("RGB", (side, 5), "red")
    assert DEGRADATIONS[name](image, 1, seed=0, index=0).size == (side, 5)


@pytest.mark.parametrize("count", [1, 2, 40, 400])
@pytest.mark.parametrize("name", [n for n in NAMES if DEGRADATIONS[n].kind == "recording"])
def test_short_and_silent_recordings_survive(name: str, count: int) -> None:
    for recording in (np.zeros(count, np.float32), np.full(count, 0.5, np.float32)):
        found = DEGRADATIONS[name](recording, DEGRADATIONS[name].severities[-1], seed=0, index=0)
        assert found.shape == (count,)
        assert np.isfinite(found).all()


@pytest.mark.parametrize("columns", [3, 6, 7])
@pytest.mark.parametrize("count", [1, 2, 40])
@pytest.mark.parametrize("name", [n for n in NAMES if DEGRADATIONS[n].kind == "cloud"])
def test_small_clouds_survive(name: str, count: int, columns: int) -> None:
    for cloud in (np.ones((count, columns), np.float32), np.pad(scan(1, count), ((0, 0), (0, 1)))[:, :columns]):
        found = DEGRADATIONS[name](cloud, 5, seed=0, index=0)
        assert (found.shape, found.dtype) == (cloud.shape, np.float32)
        assert np.isfinite(found).all()


def test_levels_of_clouds_mean_what_they_say() -> None:
    cloud = scan(2, 2000)
    radius = np.linalg.norm(cloud[:, :3] - cloud[:, :3].mean(0), axis=1).max()
    noisy = DEGRADATIONS["jitter"](cloud, 3, seed=0, index=0)
    assert (noisy - cloud)[:, :3].std() == pytest.approx(0.02 * radius, rel=0.05)
    assert np.array_equal(noisy[:, 3:], cloud[:, 3:])
    known = {row.tobytes() for row in cloud}
    for name, share in (("thinning", 0.7), ("occlusion", 0.3)):
        found = DEGRADATIONS[name](cloud, 3, seed=0, index=0)
        assert {row.tobytes() for row in found} <= known
        assert len(np.unique(found, axis=0)) == pytest.approx((1 - share) * 2000, abs=2)
    stray = DEGRADATIONS["outliers"](cloud, 4, seed=0, index=0)
    moved = (stray != cloud).any(1)
    assert moved.sum() == 200
    assert np.linalg.norm(stray[moved, :3] - cloud[:, :3].mean(0), axis=1).max() <= radius * 1.001
    np.testing.assert_allclose(np.linalg.norm(stray[moved, 3:], axis=1), 1, atol=1e-5)
    kept = (DEGRADATIONS["falloff"](cloud, 4, seed=0, index=0) == cloud).all(1)
    assert 0.2 < kept.mean() < 0.5


def test_levels_mean_what_they_say() -> None:
    grey, recording = Image.new("RGB", (200, 200), (128, 128, 128)), speech(3)
    noisy = np.asarray(DEGRADATIONS["noise"](grey, 3, seed=0, index=0), dtype=float)
    assert noisy.std() == pytest.approx(25, rel=0.03)
    shared = np.asarray(DEGRADATIONS["noise_low"](grey, 1, seed=0, index=0), dtype=float)
    assert np.array_equal(shared[..., 0], shared[..., 2])
    assert 10 <= shared.std() <= 30.5
    white = DEGRADATIONS["white"](recording, 3, seed=0, index=0) - recording
    assert 10 * np.log10(np.mean(recording**2) / np.mean(white**2)) == pytest.approx(15, abs=0.1)
    low = np.abs(np.fft.rfft(DEGRADATIONS["band"](recording, 3, seed=0, index=0)))
    assert low[3 * 6000 :].max() < 0.02 * np.abs(np.fft.rfft(recording))[3 * 6000 :].max() + 1e-3


def test_the_study_has_seven() -> None:
    assert len(SETS["qrid"]) == 7
    conditions = parse_conditions("qrid", (1, 3, 5), "image")
    assert [c.name for c in conditions] == [f"{name}:1" for name in SETS["qrid"]]


def test_names_severities_and_sets() -> None:
    assert [c.name for c in parse_conditions("jpeg, noise:4,jpeg", (1, 5), "image")] == ["jpeg:1", "jpeg:5", "noise:4"]
    names = {c.degradation.name for c in parse_conditions("all", (2,), "recording")}
    assert names == {n for n in SETS["all"] if DEGRADATIONS[n].kind == "recording"}
    assert Condition(DEGRADATIONS["blur"], 2).name == "blur:2"
    assert kind_of(photo(0), "here") == "image"
    assert kind_of(speech(0), "here") == "recording"
    assert kind_of(scan(0), "here") == "cloud"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("fog", "EQ-U752"),
        ("noise:6", "EQ-U750"),
        ("noise:x", "EQ-U750"),
        ("noise_low:2", "EQ-U750"),
        ("white", "EQ-U751"),
    ],
)
def test_bad_conditions_are_refused(text: str, code: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_conditions(text, (1,), "image")
    assert caught.value.code == code


@given(st.text(max_size=30))
def test_any_text_gives_conditions_or_a_coded_error(text: str) -> None:
    try:
        conditions = parse_conditions(text, (1, 3), "image")
    except EdgeqError as error:
        assert error.exit_code == 2
    else:
        assert all(c.degradation.kind == "image" for c in conditions)


def test_other_samples_and_severities_are_refused() -> None:
    with pytest.raises(DataError):
        kind_of(np.zeros((3, 3, 3)), "here")
    with pytest.raises(InternalError):
        DEGRADATIONS["jpeg"](photo(0), 6, seed=0, index=0)
