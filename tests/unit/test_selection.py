"""Which samples calibrate: never copies, never what is measured on; and the diverse choice."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeq.config import ExportConfig
from edgeq.data import Item, Known, Source, describe, open_images, pick, split
from edgeq.data.images import decode
from edgeq.data.selection import NEAR, RULES, distances, farthest
from edgeq.errors import DataError
from edgeq.models import load_model
from edgeq.models.base import ModelRequest
from edgeq.samples import collect_samples, open_labelled, output_profile


def photo(seed: int, side: int = 64) -> Image.Image:
    """A smooth picture: a few large blots, as different from others as photos are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def source_of(files: list[bytes], place: str = "photos") -> Source[Image.Image]:
    items = tuple(Item(f"{place}{i}", hashlib.sha256(data).hexdigest()) for i, data in enumerate(files))
    return Source(place, items, None, lambda index: files[index], decode)


def test_without_copies_the_choice_is_that_of_the_split() -> None:
    source = source_of([encoded(photo(seed)) for seed in range(40)])
    picked = pick(source, 12, 8, seed=3)
    assert (picked.calibration, picked.held_out) == split(source, 12, 8, seed=3)
    assert picked.copies == ()


def test_copies_in_another_form_do_not_calibrate() -> None:
    originals = [encoded(photo(seed)) for seed in range(6)]
    again = [encoded(photo(seed, side=96), "JPEG", quality=70) for seed in range(6)]
    source = source_of(originals + again)
    picked = pick(source, 12, 2, seed=0)
    shown = {index % 6 for index in picked.calibration}
    assert len(picked.calibration) == len(shown), "one of each pair"
    assert not shown & {index % 6 for index in picked.held_out}
    assert {c.leak for c in picked.copies} == {False}
    assert all(source.items[int(c.item[6:])].id == c.item for c in picked.copies)


def test_what_is_measured_on_does_not_calibrate() -> None:
    source = source_of([encoded(photo(seed)) for seed in range(10)])
    judged = source_of([encoded(photo(seed, side=50), "JPEG", quality=80) for seed in range(4)], "test")
    picked = pick(source, 10, 1, seed=0, judged=Known.of(judged, range(4)))
    assert not set(picked.calibration) & set(range(4))
    assert {c.of for c in picked.copies if c.leak} <= {f"test{i}" for i in range(4)}
    with pytest.raises(DataError) as caught:
        pick(source.subset(range(4)), 10, 0, seed=0, judged=Known.of(judged, range(4)))
    assert caught.value.code == "EQ-D950"


def test_diverse_takes_one_of_each_group() -> None:
    """Three groups of alike pictures, one far larger: the rule finds all three, whatever is drawn."""
    random = np.random.default_rng(0)
    files = []
    for group, count in ((0, 20), (1, 2), (2, 2)):
        for _ in range(count):
            noisy = np.asarray(photo(group), np.int16) + random.normal(0, 30, (1, 1, 3)).astype(np.int16)
            mixed = 0.75 * np.clip(noisy, 0, 255) + 0.25 * np.asarray(photo(int(random.integers(1000))))
            files.append(encoded(Image.fromarray(mixed.astype(np.uint8))))
    group_of = [0] * 20 + [1] * 2 + [2] * 2
    for seed in range(4):
        picked = pick(source_of(files), 3, 0, seed=seed, rule="diverse")
        assert {group_of[index] for index in picked.calibration} == {0, 1, 2}


def test_a_rule_may_see_samples_as_the_network_does() -> None:
    """By what they look like all differ alike; by the view, one stands out."""
    source = source_of([encoded(photo(seed)) for seed in range(12)])
    odd = source.items[7].sha256

    def view(sample: Image.Image) -> np.ndarray:
        return np.array([float(hashlib.sha256(encoded(sample)).hexdigest() == odd), 0], np.float32)

    for seed in range(3):
        assert 7 in pick(source, 2, 0, seed=seed, rule="diverse", view=view).calibration


def test_the_network_s_view_has_one_length_and_is_finite() -> None:
    adapter = load_model(ModelRequest("vit", "vit_nano", None))
    rows = [output_profile(adapter, photo(seed)) for seed in range(2)]
    assert rows[0].shape == rows[1].shape == (20,)
    assert np.isfinite(rows).all() and not np.array_equal(rows[0], rows[1])


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_farthest_never_takes_one_twice(rows: int, count: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(rows, 3)).astype(np.float32)
    chosen = farthest(values, count)
    assert len(chosen) == len(set(chosen)) == min(rows, count)
    order = np.random.default_rng(1).permutation(rows)
    assert {int(order[i]) for i in farthest(values[order], count)} == set(chosen), "of the rows, not of their order"


def test_every_rule_has_a_name_that_export_takes() -> None:
    for rule in RULES:
        assert ExportConfig("vit_nano", "rpi", select=rule).select == rule


def test_recordings_and_clouds_are_told_apart() -> None:
    random = np.random.default_rng(0)
    sounds = [np.sin(np.arange(16_000) * f).astype(np.float32) * np.linspace(0, 1, 16_000) for f in (0.05, 0.3, 1.0)]
    rows = [describe(sound) for sound in sounds]
    for i, row in enumerate(rows):
        assert row is not None
        louder = describe(0.5 * sounds[i] + random.normal(0, 1e-5, 16_000))
        assert louder is not None and distances(louder, row[None])[0] < NEAR["recording"]
        others = np.stack([r for r in rows[:i] + rows[i + 1 :] if r is not None])
        assert distances(row, others).min() > NEAR["recording"]
    cloud = random.normal(size=(200, 6)).astype(np.float32)
    shuffled, stretched = describe(cloud[random.permutation(200)]), describe(cloud * [1, 2, 1, 1, 1, 1])
    plain = describe(cloud)
    assert plain is not None and shuffled is not None and stretched is not None
    np.testing.assert_array_equal(plain, shuffled)
    assert distances(stretched, plain[None])[0] > NEAR["cloud"]


@pytest.mark.parametrize("sample", [np.zeros(3), np.zeros((2, 3)), "text", np.zeros((20, 2))])
def test_what_has_no_look_is_no_copy(sample: object) -> None:
    assert describe(sample) is None
    assert Known(1.0).copied_by(None) is None


@pytest.mark.parametrize("size", [256, 300, 5000])
def test_short_and_silent_recordings_are_described(size: int) -> None:
    for sound in (np.zeros(size, np.float32), np.random.default_rng(0).normal(size=size).astype(np.float32)):
        row = describe(sound)
        assert row is not None and row.shape == (257,) and np.isfinite(row).all()


def test_one_folder_for_both_is_shared_out_without_copies(tmp_path: Path) -> None:
    """A copy of a calibration sample is not measured on."""
    for seed in range(12):
        (tmp_path / str(seed % 2)).mkdir(exist_ok=True)
        for name, data in (("a.png", encoded(photo(seed))), ("b.jpg", encoded(photo(seed), "JPEG", quality=75))):
            (tmp_path / str(seed % 2) / f"{seed}{name}").write_bytes(data)
    adapter = load_model(ModelRequest("vit", "vit_nano", None))
    config = ExportConfig("vit_nano", "rpi", calib=tmp_path, data=tmp_path)
    (samples,) = collect_samples(config, [adapter])
    labelled = open_labelled(config, samples)
    assert labelled is not None
    used = {item.id.rpartition("/")[2].rstrip("ab.jpng") for item in samples.calibration_items}
    left = {item.id.rpartition("/")[2].rstrip("ab.jpng") for item in labelled.items}
    assert used and left and not used & left


@pytest.mark.real
def test_pictures_that_a_data_set_holds_twice_are_found(real_data: Path) -> None:
    """The same plane, horse, car and cat in the training and in the test part, cut a little otherwise; and others."""
    train, test = (open_images(real_data / "cifar10" / f"{part}.npz", role="calibration") for part in ("train", "test"))
    known = Known.of(test, range(len(test)))
    for index, twin in ((3595, 898), (6885, 793), (699, 106), (2099, 365)):
        assert known.copied_by(describe(train.read(index))) == test.items[twin].id
    others = [i for i in range(500) if known.copied_by(describe(train.read(i))) is not None]
    assert others == []


@pytest.mark.real
def test_photos_of_a_data_set_are_all_different(real_data: Path) -> None:
    source = open_images(real_data / "yolo" / "images", role="calibration")
    picked = pick(source, len(source), 0, seed=0)
    assert len(picked.calibration) == len(source)
    small = [source.read(i).resize((200, 150)) for i in range(8)]
    known = Known.of(source, range(len(source)))
    assert [known.copied_by(describe(image)) for image in small] == [item.id for item in source.items[:8]]
