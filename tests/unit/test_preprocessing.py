"""What `--preprocess` says: words, and what they make of the input of a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeq.config import ExportConfig
from edgeq.data import preprocess
from edgeq.errors import EdgeqError, UsageError
from edgeq.models import load_model
from edgeq.models.base import parse_model
from edgeq.preprocessing import WORDS, changes_of, stated
from edgeq.spec import Preprocess

PLAIN = Preprocess(4, 6)
RED = Image.new("RGB", (12, 8), (255, 51, 0))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("half", (1.0, -0.6, -1.0)),
        ("unit", (1.0, 0.2, 0.0)),
        ("bytes", (255.0, 51.0, 0.0)),
        ("bytes,bgr", (0.0, 51.0, 255.0)),
        ("unit, mean=0.5", (0.5, -0.3, -0.5)),
        ("mean=0/0.2/0.4,std=1/0.5/2", (1.0, 0.0, -0.2)),
        ("bgr,mean=0/0.2/1,std=1", (0.0, 0.0, 0.0)),
        ("bytes,imagenet,rgb", ((1 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, -0.406 / 0.225)),
    ],
)
def test_values_of_a_red_picture(words: str, expected: tuple[float, ...]) -> None:
    found = preprocess(RED, stated(PLAIN, words))
    assert found.shape == (3, 4, 6)
    np.testing.assert_allclose(found[:, 2, 3], expected, atol=1e-4)


def test_how_the_picture_is_resized() -> None:
    assert stated(PLAIN, "squash") == Preprocess(4, 6, resize="squash", crop_fraction=1.0)
    assert stated(PLAIN, "squash,crop=0.95,bilinear") == Preprocess(4, 6, crop_fraction=0.95, interpolation="bilinear")


@pytest.mark.parametrize(
    "words",
    ["", "half,", "imagnet", "mean", "mean=", "mean=1/2", "std=0", "std=1/0/1", "crop", "crop=0", "crop=2", "mean=nan",
     "mean=-1", "std=1e-400", "mean=123.675/116.28/103.53", "std=58.395", "letterbox", "rgb=1"],
)  # fmt: skip
def test_other_words_are_refused_with_all_that_there_are(words: str) -> None:
    with pytest.raises(ValueError):
        changes_of(words)
    with pytest.raises(UsageError) as caught:
        ExportConfig("net.onnx", "rpi", preprocess=words)
    assert caught.value.code == "EQ-U004" and WORDS in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_refused_or_gives_a_preprocessing(words: str) -> None:
    try:
        found = stated(PLAIN, words)
    except ValueError:
        return
    assert np.isfinite(preprocess(RED, found)).all()


def test_named_models_take_it_too_and_detectors_do_not(tmp_path: Path) -> None:
    known = load_model(parse_model("vit_nano", None, None)).loaded.preprocess
    other = load_model(parse_model("vit_nano", None, None, preprocess="half,bgr")).loaded.preprocess
    assert known is not None and other == stated(known, "half,bgr") and other.resize == "squash"
    with pytest.raises(EdgeqError) as caught:
        parse_model("points:pillars", None, None, preprocess="half")
    assert (caught.value.code, caught.value.place) == ("EQ-U019", "--preprocess")


def test_a_depth_network_sees_the_whole_picture() -> None:
    loaded = load_model(parse_model("depth_nano", None, None, preprocess="unit")).loaded
    assert loaded.preprocess is not None and loaded.preprocess.std == (1.0, 1.0, 1.0)
    with pytest.raises(EdgeqError) as caught:
        load_model(parse_model("depth_nano", None, None, preprocess="crop=0.9"))
    assert caught.value.code == "EQ-U802"
