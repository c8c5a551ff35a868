"""Height and width of ONNX files that leave them open."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgeq.errors import EdgeqError
from edgeq.models import load_model
from edgeq.models.base import ModelRequest, parse_model

onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`open.onnx` leaves the batch, height and width open, `fixed.onnx` takes 24x32; random weights."""
    place = tmp_path_factory.mktemp("networks")
    draw = torch.Generator().manual_seed(0)
    kernel = onnx.numpy_helper.from_array(torch.randn(4, 3, 3, 3, generator=draw).numpy(), "kernel")
    nodes = [
        onnx.helper.make_node("Conv", ["image", "kernel"], ["map"], pads=[1, 1, 1, 1], strides=[2, 2]),
        onnx.helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
        onnx.helper.make_node("Flatten", ["pooled"], ["scores"]),
    ]
    for name, shape in (("open", ["n", 3, "h", "w"]), ("fixed", ["n", 3, 24, 32])):
        graph = onnx.helper.make_graph(
            nodes,
            "network",
            [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, shape)],
            [onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["n", 4])],
            [kernel],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
        onnx.save(model, place / f"{name}.onnx")
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


@pytest.mark.parametrize(
    ("name", "shape", "code"),
    [("open.onnx", None, "EQ-M112"), ("fixed.onnx", "32x24", "EQ-U102")],
)
def test_sizes_that_are_missing_or_wrong_are_refused(folder: Path, name: str, shape: str | None, code: str) -> None:
    with pytest.raises(EdgeqError) as caught:
        load_model(request(folder / name, shape))
    assert caught.value.code == code
    assert "--shape" in caught.value.hint


def test_what_has_a_size_takes_none() -> None:
    with pytest.raises(EdgeqError) as caught:
        parse_model("vit_nano", None, None, "64x64")
    assert (caught.value.code, caught.value.place) == ("EQ-U018", "--shape")
