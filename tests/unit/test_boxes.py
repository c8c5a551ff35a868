"""YOLO labels on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeq.data import open_boxes
from edgeq.data.boxes import parse_boxes
from edgeq.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("images/a.png", "images/sub/b.png", "images/c.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), 0, ord(path.stem))).save(path)
    (tmp_path / "labels" / "sub").mkdir(parents=True)
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 1 1\n\n2 0.25 0.5 0.5 0.125\n")
    (tmp_path / "labels" / "sub" / "b.txt").write_text("")
    return tmp_path


def test_labels_lie_beside_their_photos(folder: Path) -> None:
    source = open_boxes(folder, 3)
    assert [(item.id, item.label) for item in source.items] == [
        ("images/a.png", ((0, 0.5, 0.5, 1.0, 1.0), (2, 0.25, 0.5, 0.5, 0.125))),
        ("images/c.png", ()),  # no file: background
        ("images/sub/b.png", ()),
    ]
    assert source.read(0).size == (8, 8)


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        ("0 0.5 0.5 1", "EQ-D651", "4 fields"),
        ("0 0.1 0.1 0.9 0.1 0.9 0.9", "EQ-D651", "7 fields"),
        ("person 0.5 0.5 1 1", "EQ-D651", "person"),
        ("0.5 0.5 0.5 1 1", "EQ-D651", "no number of a box"),
        ("0 nan 0.5 1 1", "EQ-D651", "no number"),
        ("inf 0.5 0.5 1 1", "EQ-D651", "no number"),
        ("3 0.5 0.5 1 1", "EQ-D652", "class 3 is not among the 3"),
        ("-1 0.5 0.5 1 1", "EQ-D652", "class -1"),
        ("0 0.5 0.5 1.1 1", "EQ-D653", "beyond the photo"),
        ("0 320 240 64 48", "EQ-D653", "beyond the photo"),
        ("0 0.5 0.5 0 1", "EQ-D653", "empty"),
    ],
)
def test_a_row_that_is_no_box_is_named(folder: Path, row: str, code: str, words: str) -> None:
    (folder / "labels" / "a.txt").write_text(f"0 0.5 0.5 1 1\n{row}\n")
    with pytest.raises(DataError, match=words) as caught:
        open_boxes(folder, 3)
    assert caught.value.code == code
    assert caught.value.place == "labels/a.txt:2"
    assert caught.value.hint


def test_binary_labels_and_absent_ones_are_refused(folder: Path) -> None:
    (folder / "labels" / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="no text file"):
        open_boxes(folder, 3)
    (folder / "labels" / "a.txt").unlink()
    (folder / "labels" / "sub" / "b.txt").unlink()
    with pytest.raises(DataError, match="no label file that is named like") as caught:
        open_boxes(folder, 3)
    assert caught.value.code == "EQ-D650"
    (folder / "labels" / "sub").rmdir()
    (folder / "labels").rmdir()
    with pytest.raises(DataError, match="no folder `labels`"):
        open_boxes(folder, 3)


@given(st.text())
def test_any_text_is_boxes_or_an_error_with_its_place(text: str) -> None:
    try:
        boxes = parse_boxes(text, 80, "labels/x.txt")
    except DataError as error:
        assert error.code in ("EQ-D651", "EQ-D652", "EQ-D653")
        assert str(error.place).startswith("labels/x.txt:")
    else:
        assert all(0 <= b[0] < 80 and min(b[3:]) > 0 for b in boxes)


@given(st.lists(st.tuples(st.integers(0, 79), *(st.floats(0.01, 0.99) for _ in range(2)))))
def test_what_is_written_is_read(rows: list[tuple[int, float, float]]) -> None:
    boxes = tuple((k, x, y, 2 * min(x, 1 - x), min(y, 1 - y)) for k, x, y in rows)
    assert parse_boxes("\n".join(" ".join(map(repr, b)) for b in boxes), 80, "x") == boxes
