"""Images from disk: every kind of source, every kind of damage, and the exact network input."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeq.data import Item, Source, decode, open_images, preprocess, split
from edgeq.errors import DataError
from edgeq.spec import Preprocess

Filter = Literal["bilinear", "bicubic"]


def encoded(
    seed: int = 0, size: tuple[int, int] = (12, 8), kind: str = "PNG", mode: str = "RGB", **options: object
) -> bytes:
    """A photo-like file: a gradient with a seeded disturbance."""
    rng = np.random.default_rng(seed)
    pixels = np.linspace(0, 200, size[0] * size[1] * 3).reshape(size[1], size[0], 3) + rng.integers(0, 50)
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def packed(n: int = 4, **changes: object) -> dict[str, Any]:
    pieces = [np.frombuffer(encoded(i, kind="JPEG"), np.uint8) for i in range(n)]
    arrays: dict[str, Any] = {
        "jpeg": np.concatenate(pieces),
        "offset": np.concatenate([[0], np.cumsum([p.size for p in pieces])]),
        "label": np.arange(n) % 2,
        "classes": np.array(["cat", "dog"]),
    }
    arrays.update(changes)
    return {k: v for k, v in arrays.items() if v is not None}


def save(path: Path, arrays: dict[str, Any]) -> Path:
    np.savez(path, **arrays)
    return path


def refusal(path: Path) -> DataError:
    """The error of opening a source and reading all of it."""
    with pytest.raises(DataError) as caught:
        source = open_images(path, role="calibration")
        for index in range(len(source)):
            source.read(index)
    assert caught.value.hint
    assert caught.value.place
    return caught.value


def ids(source: Source[Image.Image]) -> list[str]:
    return [item.id for item in source.items]


def test_a_flat_folder_is_unlabelled_and_sorted(tmp_path: Path) -> None:
    for name in ("b.png", "a.PNG", "deep/c.png", ".hidden.png", ".cache/d.png", "notes.txt"):
        write(tmp_path / name, encoded(len(name)))
    source = open_images(tmp_path, role="calibration")
    assert ids(source) == ["a.PNG", "b.png", "deep/c.png"]
    assert source.classes is None
    assert {item.label for item in source.items} == {None}
    image = source.read(0)
    assert (image.mode, image.size) == ("RGB", (12, 8))


def test_one_folder_a_class_is_labelled(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/2.png", "cat/1.png"):
        write(tmp_path / name, encoded(len(name)))
    (tmp_path / "eel").mkdir()
    source = open_images(tmp_path, role="evaluation")
    assert source.classes == ("cat", "dog", "eel")
    assert [(i.id, i.label) for i in source.items] == [("cat/1.png", 0), ("cat/2.png", 0), ("dog/1.png", 1)]


def test_a_folder_named_images_stands_for_its_parent(tmp_path: Path) -> None:
    for name in ("images/1.png", "images/sub/2.png", "masks/1.png", "labels/1.txt", "readme.png"):
        write(tmp_path / name, encoded())
    source = open_images(tmp_path, role="calibration")
    assert ids(source) == ["images/1.png", "images/sub/2.png"]
    assert source.classes is None


def test_one_sub_folder_is_no_classification(tmp_path: Path) -> None:
    write(tmp_path / "holiday" / "1.png", encoded())
    assert open_images(tmp_path, role="calibration").classes is None


def test_link_cycles_end(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.png", encoded())
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a" / "broken.png").symlink_to(tmp_path / "nowhere.png")
    assert ids(open_images(tmp_path, role="calibration")) == ["a/1.png"]


def test_a_single_file(tmp_path: Path) -> None:
    source = open_images(write(tmp_path / "photo.without.suffix", encoded()), role="calibration")
    assert len(source) == 1
    assert source.read(0).size == (12, 8)


def test_a_packed_file(tmp_path: Path) -> None:
    source = open_images(save(tmp_path / "x.npz", packed()), role="evaluation")
    assert source.classes == ("cat", "dog")
    assert [i.label for i in source.items] == [0, 1, 0, 1]
    assert source.read(3).size == (12, 8)
    assert len({i.sha256 for i in source.items}) == 4
    bare = open_images(save(tmp_path / "y.npz", packed(label=None, classes=None)), role="calibration")
    assert (bare.classes, bare.items[0].label) == (None, None)
    assert [i.sha256 for i in bare.items] == [i.sha256 for i in source.items]


@pytest.mark.parametrize(
    "changes",
    [
        {"jpeg": None},
        {"offset": None},
        {"jpeg": np.zeros(10)},
        {"jpeg": np.zeros((2, 5), np.uint8)},
        {"offset": np.array([0])},
        {"offset": np.array([0.0, 1.0])},
        {"offset": np.array([0, 5, 3, 900, 10**9])},
        {"offset": np.array([5, 3], np.uint64)},
        {"offset": np.array([[0, 1]])},
        {"label": np.array([0, 1])},
        {"label": np.array([0, 1, 2, 1])},
        {"label": np.array([0, 1, -1, 1])},
        {"label": np.array([0.0, 1.0, 0.0, 1.0])},
        {"classes": np.array([1, 2])},
        {"classes": np.array([["cat", "dog"]])},
        {"classes": np.array(["cat", object()])},
        {"jpeg": np.array([None])},
    ],
)
def test_bad_packed_files(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert refusal(save(tmp_path / "x.npz", packed(**changes))).code == "EQ-D058"


def test_damaged_packed_files(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", packed())
    sound, rng = path.read_bytes(), random.Random(0)
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    damages = [b"", b"junk", sound[:-1], sound[:100], array.getvalue()]
    for _ in range(200):
        damaged = bytearray(sound)
        damaged[rng.randrange(len(sound))] ^= 1 << rng.randrange(8)
        damages.append(bytes(damaged))
    refused = 0
    for damage in damages:
        path.write_bytes(damage)
        try:
            open_images(path, role="calibration")
        except DataError as error:
            assert error.code == "EQ-D058"
            refused += 1
    assert refused > 150


def test_what_is_not_there(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere").code == "EQ-D050"
    assert refusal(tmp_path).code == "EQ-D051"
    write(tmp_path / "notes.txt", b"hello")
    error = refusal(tmp_path)
    assert error.code == "EQ-D051"
    assert "--calib" in str(error.hint)
    with pytest.raises(DataError) as caught:
        open_images(tmp_path, role="evaluation")
    assert "--data" in str(caught.value.hint)


def test_bad_images_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.png", encoded())
    bad = write(tmp_path / "b.jpg", b"no image at all")
    assert (refusal(tmp_path).code, "b.jpg" in refusal(tmp_path).message) == ("EQ-D052", True)
    for broken in (encoded(kind="JPEG", size=(200, 200))[:-300], encoded(size=(200, 200))[:-300]):
        bad.write_bytes(broken)
        assert (refusal(tmp_path).code, "b.jpg" in refusal(tmp_path).message) == ("EQ-D053", True)
    bad.write_bytes(b"")
    assert refusal(tmp_path).code == "EQ-D052"
    assert refusal(bad).code == "EQ-D052"


def test_bombs_and_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strip = write(tmp_path / "strip.png", encoded(size=(500, 4)))
    assert "strip" in refusal(strip).message
    for limit in (1000, 100):  # Pillow warns above its limit and fails above twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        error = refusal(write(tmp_path / "big.png", encoded(size=(40, 30))))
        assert (error.code, "too large" in error.message) == ("EQ-D055", True)


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", encoded(0))
    source = open_images(tmp_path, role="calibration")
    path.write_bytes(encoded(1, size=(9, 9)))
    with pytest.raises(DataError) as caught:
        source.read(0)
    assert caught.value.code == "EQ-D056"
    path.unlink()
    with pytest.raises(DataError) as gone:
        source.read(0)
    assert gone.value.code == "EQ-D057"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may read everything")
def test_what_may_not_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", encoded())
    path.chmod(0)
    assert refusal(tmp_path).code == "EQ-D057"


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "L"), ("PNG", "1"), ("PNG", "P"), ("JPEG", "L"), ("JPEG", "CMYK"), ("TIFF", "CMYK"), ("WEBP", "RGB"),
     ("GIF", "P"), ("BMP", "RGB"), ("PPM", "RGB"), ("PNG", "LA"), ("PNG", "RGBA"), ("WEBP", "RGBA")],
)  # fmt: skip
def test_kinds_with_a_sound_conversion(kind: str, mode: str) -> None:
    image = decode(encoded(kind=kind, mode=mode), "x")
    plain = decode(encoded(), "x")
    assert (image.mode, image.size) == ("RGB", plain.size)
    if mode not in ("1", "P"):
        difference = np.asarray(image.convert("L"), float) - np.asarray(plain.convert("L"), float)
        assert np.abs(difference).mean() < 12


def test_sixteen_bits_keep_the_high_byte() -> None:
    values = (np.arange(96).reshape(8, 12) * 600).astype(np.uint16)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    image = decode(stream.getvalue(), "x")
    assert np.array_equal(np.asarray(image), np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_transparency_lies_over_white() -> None:
    stream = io.BytesIO()
    Image.new("RGBA", (3, 3), (255, 0, 0, 0)).save(stream, "PNG")
    assert decode(stream.getvalue(), "x").getpixel((1, 1)) == (255, 255, 255)


def test_cameras_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode(encoded(kind="JPEG", exif=exif.tobytes()), "x")
    assert image.size == (8, 12)


def test_floating_point_pixels_are_refused() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(stream, "TIFF")
    with pytest.raises(DataError) as caught:
        decode(stream.getvalue(), "dir/x.tif")
    assert caught.value.code == "EQ-D055"


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"]), st.integers(0, 2**32), st.integers(1, 12))
def test_damaged_files_never_escape_as_other_errors(kind: str, seed: int, flips: int) -> None:
    data, rng = bytearray(encoded(kind=kind)), random.Random(seed)
    for _ in range(flips):
        data[rng.randrange(len(data))] = rng.randrange(256)
    if seed % 3 == 0:
        del data[rng.randrange(1, len(data)) :]
    try:
        assert decode(bytes(data), "x").mode == "RGB"
    except DataError as error:
        assert error.code in ("EQ-D052", "EQ-D053", "EQ-D055")


def random_image(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 48),
    st.integers(1, 48),
    st.sampled_from([1.0, 0.95, 0.9, 0.875, 0.3]),
    st.sampled_from(["crop", "squash"]),
    st.sampled_from(["bilinear", "bicubic"]),
)
def test_any_image_fits_any_input(
    width: int,
    height: int,
    wide: int,
    high: int,
    fraction: float,
    resize: Literal["crop", "squash"],
    interpolation: Filter,
) -> None:
    spec = Preprocess(high, wide, resize=resize, crop_fraction=fraction, interpolation=interpolation)
    result = preprocess(random_image(width, height, 0), spec)
    assert result.shape == (3, high, wide)
    assert result.dtype == np.dtype(np.float32)
    assert result.flags.c_contiguous
    assert np.isfinite(result).all()


@pytest.mark.parametrize(("size", "resized"), [(224, 256), (224, 232), (224, 248), (32, 36), (300, 300)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_equals_torchvision_bit_for_bit(size: int, resized: int, interpolation: Filter) -> None:
    from torchvision import transforms as tv

    spec = Preprocess(size, size, crop_fraction=size / resized, interpolation=interpolation)
    reference = tv.Compose(
        [
            tv.Resize(resized, tv.InterpolationMode(interpolation)),
            tv.CenterCrop(size),
            tv.ToTensor(),
            tv.Normalize(spec.mean, spec.std),
        ]
    )
    for index, (width, height) in enumerate([(640, 427), (333, 500), (31, 32), (257, 257)]):
        image = random_image(width, height, index)
        assert np.array_equal(preprocess(image, spec), reference(image).numpy())


def test_normalization_by_hand() -> None:
    image = Image.new("RGB", (4, 4), (255, 0, 51))
    result = preprocess(image, Preprocess(2, 2, (0.5, 0.5, 0.2), (0.5, 0.25, 1.0), "squash"))
    assert result[:, 0, 0].tolist() == [1, -2, 0]


def source_of(hashes: list[int]) -> Source[Image.Image]:
    return Source("here", tuple(Item(str(i), f"{h:064x}") for i, h in enumerate(hashes)), None, lambda _: b"", decode)


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=60), st.integers(1, 50), st.integers(0, 20), st.integers(0, 99)
)
def test_splits_are_disjoint_deterministic_and_free_of_copies(
    hashes: list[int], calibration: int, holdout: int, seed: int
) -> None:
    source, different = source_of(hashes), len(set(hashes))
    if different <= holdout:
        with pytest.raises(DataError) as caught:
            split(source, calibration, holdout, seed)
        assert caught.value.code == "EQ-D054"
        return
    chosen, kept = split(source, calibration, holdout, seed)
    assert (chosen, kept) == split(source, calibration, holdout, seed)
    assert len(kept) == holdout
    assert len(chosen) == min(calibration, different - holdout)
    used = [hashes[i] for i in (*chosen, *kept)]
    assert len(used) == len(set(used))
    assert list(chosen) == sorted(chosen)


def test_splits_follow_the_bytes_and_the_seed() -> None:
    hashes = list(range(50))
    chosen, kept = split(source_of(hashes), 20, 10, 0)
    again, held = split(source_of(hashes[::-1]), 20, 10, 0)
    assert {hashes[i] for i in chosen} == {hashes[::-1][i] for i in again}
    assert {hashes[i] for i in kept} == {hashes[::-1][i] for i in held}
    assert split(source_of(hashes), 20, 10, 1) != (chosen, kept)
    assert split(source_of(hashes), 30, 10, 0)[1] == kept  # more calibration images leave the measure alone


def test_one_image_is_not_enough() -> None:
    with pytest.raises(DataError, match="1 image:") as caught:
        split(source_of([7]), 128, 1, 0)
    assert "--calib" in str(caught.value.hint)
    with pytest.raises(DataError, match="3 images, 2 of them copies"):
        split(source_of([7, 7, 7]), 128, 1, 0)


@pytest.mark.real
def test_real_sources(real_data: Path) -> None:
    photos = open_images(real_data / "yolo", role="calibration")
    assert len(photos) == 128
    assert photos.classes is None
    chosen, kept = split(photos, 96, 32, 0)
    assert (len(chosen), len(kept)) == (96, 32)
    assert preprocess(photos.read(kept[0]), Preprocess(224, 224)).std() > 0.3
    cifar = open_images(real_data / "cifar10" / "test.npz", role="evaluation")
    assert (len(cifar), cifar.classes and cifar.classes[0]) == (1000, "airplane")
    assert cifar.read(999).size == (32, 32)


def test_what_others_add_to_pillow_is_no_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ultralytics replaces `Image.open` by one that looks for a decoder of HEIF where Pillow knows no format."""

    def patched(*_args: object, **_named: object) -> Image.Image:
        raise ModuleNotFoundError("No module named 'pi_heif'")

    monkeypatch.setattr(Image, "open", patched)
    with pytest.raises(DataError) as caught:
        decode(b"no image", "a.png")
    assert caught.value.code == "EQ-D052"
