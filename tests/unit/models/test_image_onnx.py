"""Batch, height and width of ONNX files: those they leave open, those they fix, and what does not follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from edgeq.errors import EdgeqError
from edgeq.models import load_model
from edgeq.models.base import ModelRequest, parse_model

onnx = pytest.importorskip("onnx")


POOL = ("GlobalAveragePool", ["map"], ["pooled"])
FLATTEN = ("Flatten", ["pooled"], ["scores"])
MIXED = ("ReduceMean", ["map", "first"], ["scores"])
FIXED = ("Reshape", ["pooled", "sizes"], ["scores"])
FLAT = ("Reshape", ["map", "sizes"], ["scores"])
PLACED = ("Add", ["map", "table"], ["scores"])
Step = tuple[str, list[str], list[str]]


def network(path: Path, shape: list[str | int], *steps: Step, **constants: list[int] | torch.Tensor) -> Path:
    """A convolution of stride 2 with random weights from `image` to `map`, then `steps` to `scores`."""
    rank = 4 if steps[-1] in (PLACED, MIXED) else len(constants.get("sizes", "NC"))
    draw = torch.Generator().manual_seed(0)
    stored = {"kernel": torch.randn(4, 3, 3, 3, generator=draw), **constants}
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Conv", ["image", "kernel"], ["map"], pads=[1, 1, 1, 1], strides=[2, 2]),
            *(onnx.helper.make_node(*step) for step in steps),
        ],
        "network",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, [None] * rank)],
        [onnx.numpy_helper.from_array(torch.as_tensor(value).numpy(), name) for name, value in stored.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`open.onnx` leaves the batch, height and width open, `fixed.onnx` takes 24x32, `ten.onnx` ten of 8x8."""
    place = tmp_path_factory.mktemp("networks")
    for name, shape in (("open", ["n", 3, "h", "w"]), ("fixed", ["n", 3, 24, 32]), ("ten", [10, 3, 8, 8])):
        network(place / f"{name}.onnx", shape, POOL, FLATTEN)  # type: ignore[arg-type]
    return place


def request(path: Path, shape: str | None) -> ModelRequest:
    """As the command line asks for it."""
    return parse_model(str(path), "cnn", None, shape)


def test_the_shape_fills_what_the_file_leaves_open(folder: Path) -> None:
    loaded = load_model(request(folder / "open.onnx", "40x56")).loaded
    assert loaded.input_shapes == ((1, 3, 40, 56),)
    assert loaded.preprocess is not None
    assert (loaded.preprocess.height, loaded.preprocess.width) == (40, 56)


def test_a_shape_that_the_file_has_is_taken(folder: Path) -> None:
    assert load_model(request(folder / "fixed.onnx", "24x32")).loaded.input_shapes == ((1, 3, 24, 32),)


def test_a_missing_size_is_asked_for(folder: Path) -> None:
    with pytest.raises(EdgeqError) as caught:
        load_model(request(folder / "open.onnx", None))
    assert caught.value.code == "EQ-M112" and "--shape" in caught.value.hint


@pytest.mark.parametrize("shape", [None, "24x40"])
def test_a_fixed_batch_becomes_one_image_of_any_size(folder: Path, shape: str | None) -> None:
    """As detectors of faces are published: ten images of 32x32, though convolutions take any."""
    loaded = load_model(request(folder / "ten.onnx", shape)).loaded
    sides = (24, 40) if shape else (8, 8)
    assert loaded.input_shapes == ((1, 3, *sides),)
    assert loaded.import_error is not None and loaded.import_error < 1e-5
    kernel = onnx.numpy_helper.to_array(onnx.load(folder / "ten.onnx").graph.initializer[0])
    image = torch.randn(1, 3, *sides)
    expected = torch.conv2d(image, torch.from_numpy(kernel.copy()), stride=2, padding=1).mean((2, 3))
    torch.testing.assert_close(loaded.graph(image)[0], expected)


ALONE = "for a batch of 1"
THIS_SIZE = "leave --shape out"


@pytest.mark.parametrize(
    ("shape", "steps", "constants", "wished", "hint"),
    [
        ([10, 3, 8, 8], (MIXED,), {"first": [0]}, None, ALONE),
        ([10, 3, 8, 8], (POOL, FIXED), {"sizes": [10, 4]}, None, ALONE),
        ([4, 3, 8, 8], (POOL, FIXED), {"sizes": [4, -1]}, None, ALONE),
        ([10, 3, 8, 8], (POOL, FIXED), {"sizes": [10, 4]}, "24x40", THIS_SIZE),
        ([1, 3, 8, 8], (FLAT,), {"sizes": [-1, 64]}, "16x16", THIS_SIZE),
        ([1, 3, 8, 8], (FLAT,), {"sizes": [1, 4, 16]}, "16x16", THIS_SIZE),
        ([1, 3, 8, 8], (PLACED,), {"table": torch.ones(1, 4, 4, 4)}, "16x16", THIS_SIZE),
    ],
    ids=["mixed", "reshape", "reshape -1", "reshape, size", "several", "flat", "table"],
)
def test_what_does_not_follow_is_refused(
    shape: list[str | int], steps: tuple[Step, ...], constants: Any, wished: str | None, hint: str, tmp_path: Path
) -> None:
    path = network(tmp_path / "stiff.onnx", shape, *steps, **constants)
    with pytest.raises(EdgeqError) as caught:
        load_model(request(path, wished))
    assert caught.value.code == "EQ-M116", caught.value
    assert hint in caught.value.hint and "stiff.onnx" in caught.value.message


def test_other_faults_keep_their_names(tmp_path: Path) -> None:
    unknown: Step = ("Det", ["map"], ["scores"])
    for shape, wished in (([10, 3, 8, 8], None), ([1, 3, 8, 8], "16x16"), ([4, 8], "16x16")):
        path = network(tmp_path / "unknown.onnx", shape, unknown, sizes=[1, 4])  # type: ignore[arg-type]
        with pytest.raises(EdgeqError) as caught:
            load_model(request(path, wished))
        assert caught.value.code in ("EQ-M114", "EQ-M110"), caught.value


def test_channels_are_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(EdgeqError) as caught:
        load_model(request(network(tmp_path / "grey.onnx", [1, 1, 8, 8], POOL, FLATTEN), "16x16"))
    assert caught.value.code == "EQ-U102"


def test_what_has_a_size_takes_none() -> None:
    with pytest.raises(EdgeqError) as caught:
        parse_model("vit_nano", None, None, "64x64")
    assert (caught.value.code, caught.value.place) == ("EQ-U018", "--shape")
