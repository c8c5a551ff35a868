"""The YOLO family without real weights: which heads are known, and what is refused. Random weights, structure only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgeq.errors import EdgeqError, ModelError, UsageError
from edgeq.graph.capture import capture
from edgeq.models import load_model
from edgeq.models.base import ModelRequest
from edgeq.models.yolo import cut_head
from tests.unit.graph.test_heads import Bins

SIZE = (1, 3, 64, 64)


class Separate(nn.Module):
    """YOLOX's head on two feature maps: boxes, objectness and classes apart, joined raw or decoded."""

    def __init__(self, classes: int, decoded: bool) -> None:
        super().__init__()
        self.decoded = decoded
        self.stem, self.down = nn.Conv2d(3, 8, 3, 8, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.box = nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in range(2))
        self.sure = nn.ModuleList(nn.Conv2d(8, 1, 1) for _ in range(2))
        self.kind = nn.ModuleList(nn.Conv2d(8, classes, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        first = torch.tanh(self.stem(x))
        rows = []
        for i, m in enumerate((first, torch.tanh(self.down(first)))):
            joined = torch.cat([self.box[i](m), self.sure[i](m).sigmoid(), self.kind[i](m).sigmoid()], 1)
            flat = joined.flatten(2).permute(0, 2, 1)
            if self.decoded:
                y, c = torch.meshgrid(torch.arange(m.shape[2]), torch.arange(m.shape[3]), indexing="ij")
                cell, stride = torch.stack([c.flatten(), y.flatten()], 1)[None].float(), 8.0 * 2**i
                flat = torch.cat([(flat[..., :2] + cell) * stride, flat[..., 2:4].exp() * stride, flat[..., 4:]], 2)
            rows.append(flat)
        return torch.cat(rows, 1)


class Anchors(nn.Module):
    """One layer for everything, as in YOLOv5."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).view(1, 3, 8, 64).permute(0, 1, 3, 2).reshape(1, 192, 8).sigmoid()


def head_of(module: nn.Module, size: tuple[int, ...] = SIZE) -> dict[str, Any]:
    torch.manual_seed(0)
    return cut_head(capture(module.eval(), (torch.zeros(size),)), "net")[1]


@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize("classes", [1, 4, 80])
def test_a_yolox_head_is_known(classes: int, decoded: bool) -> None:
    head = head_of(Separate(classes, decoded))
    assert (head["decode"], head["classes"], head["strides"]) == ("yolox", classes, [8, 16])
    assert head["suppress"]
    assert len(head["levels"][0]) == 3


@pytest.mark.parametrize("classes", [1, 4, 64])
def test_a_head_of_bins_is_known(classes: int) -> None:
    head = head_of(Bins(classes), (1, 3, 64, 32))
    assert (head["decode"], head["classes"], head["strides"]) == ("bins", classes, [4, 8])
    assert len(head["levels"][0]) == 2


class Altered(nn.Module):
    """A head that computes something else behind the same layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Bins()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * 1.05


@pytest.mark.parametrize("module", [Anchors(), Altered(), nn.Conv2d(3, 4, 3, 8, 1)])
def test_another_head_is_refused_and_not_guessed(module: nn.Module) -> None:
    with pytest.raises(ModelError) as caught:
        head_of(module)
    assert caught.value.code == "EQ-M651"
    assert "without NMS" in str(caught.value.hint)


def test_what_is_no_detector_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"")
    cases = [
        (ModelRequest("yolo", "", path), "EQ-U650"),
        (ModelRequest("yolo", "yolov8n", None), "EQ-U652"),
        (ModelRequest("yolo", "yolov8n", path), "EQ-M006"),
    ]
    for request, code in cases:
        with pytest.raises(EdgeqError) as caught:
            load_model(request)
        assert caught.value.code == code
        assert caught.value.hint


class Payload:
    """Unpickles by calling a function."""

    def __reduce__(self) -> Any:
        return (print, ("code ran",))


def test_a_pickled_model_is_refused_with_a_way_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "best.pt"
    torch.save({"model": Payload()}, path)
    with pytest.raises(ModelError, match="runs code") as caught:
        load_model(ModelRequest("yolo", "yolov8n", path))
    assert "format=onnx" in str(caught.value.hint)
    assert "code ran" not in capsys.readouterr().out


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("ultralytics")
    path = tmp_path / "x.pt"
    torch.save({"w": torch.zeros(1)}, path)
    with pytest.raises(UsageError) as caught:
        load_model(ModelRequest("yolo", "yolov99q", path))
    assert caught.value.code == "EQ-U651"


def test_a_checkpoint_notes_its_size_and_its_classes(tmp_path: Path) -> None:
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    model, path = tasks.DetectionModel("yolov8n.yaml", nc=2, verbose=False), tmp_path / "best.safetensors"
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, path, metadata={"names": "{0: 'cup', 1: 'bed'}", "imgsz": "[64, 96]"})
    adapter: Any = load_model(ModelRequest("yolo", "yolov8n", path))
    assert adapter.loaded.input_shapes == ((1, 3, 64, 96),)
    assert adapter.head["names"] == ("cup", "bed")
    for size in ("[64, 100]", "[64]", "many", "[-32, 32]"):
        save_file(state, path, metadata={"imgsz": size})
        with pytest.raises(ModelError) as caught:
            load_model(ModelRequest("yolo", "yolov8n", path))
        assert caught.value.code == "EQ-M961", size
        assert caught.value.hint


def test_nothing_where_float_finds_something_is_a_collapse(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    path = tmp_path / "tiny.onnx"
    torch.onnx.export(Separate(4, False).eval(), (torch.zeros(SIZE),), path, dynamo=False, opset_version=17)
    adapter: Any = load_model(ModelRequest("yolo", "", path))
    loaded = adapter.loaded
    assert loaded.preprocess.channels == "bgr"
    assert loaded.postprocess["names"] == ("class 0", "class 1", "class 2", "class 3")
    shapes = [n.meta["val"].shape for n in loaded.graph.graph.output_node().all_input_nodes]
    empty = [np.full(shape, -9, np.float32) for shape in shapes]
    full = [np.full(shape, 3, np.float32) for shape in shapes]
    assert "finds nothing" in adapter.collapse([full], [empty])
    assert adapter.collapse([full], [full]) == adapter.collapse([empty], [empty]) == ""
    assert adapter.collapse([empty], [full]) == ""
