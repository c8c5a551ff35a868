"""The LiteRT runner against torch, numpy and broken files."""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeq.devices.litert import Kernels, LiteRtModel
from edgeq.devices.litert_runtime import load_runtime
from edgeq.errors import DataError, MissingError, ModelError, UsageError
from tests.unit.conftest import Tiny

KERNELS: tuple[Kernels, ...] = ("xnnpack", "builtin", "reference")


@pytest.fixture
def image() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("kernels", KERNELS)
def test_float_file_equals_torch(tiny_float: Path, image: NDArray[np.float32], kernels: Kernels) -> None:
    (found,) = LiteRtModel(tiny_float, kernels=kernels).run(image)
    expected = Tiny(quantized=False)(torch.from_numpy(image)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernels", KERNELS)
def test_integer_file_is_within_one_step_of_torch(
    tiny_int8: Path, image: NDArray[np.float32], kernels: Kernels
) -> None:
    model = LiteRtModel(tiny_int8, kernels=kernels)
    expected = Tiny(quantized=True)(torch.from_numpy(image)).detach().numpy()
    (found,) = model.run(image)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 0.05 + 1e-6
    (codes,) = model.run(image, raw=True)
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(model.outputs[0].to_reals(codes), found)


def test_float_input_equals_codes_from_torch(tiny_int8: Path) -> None:
    info = LiteRtModel(tiny_int8).inputs[0]
    assert (info.name, info.shape, info.dtype.name, info.zero_point) == ("args_0", (1, 3, 8, 8), "int8", -3)
    # Ties, borders and values beyond the range.
    values = np.concatenate([np.arange(-400, 400) * 0.01, np.linspace(-4, 4, 1001)]).astype(np.float32)
    expected = torch.ops.quantized_decomposed.quantize_per_tensor(
        torch.from_numpy(values), info.scale, info.zero_point, -128, 127, torch.int8
    )
    np.testing.assert_array_equal(info.to_codes(values), expected.numpy())


def test_codes_can_be_given_directly(tiny_int8: Path, image: NDArray[np.float32]) -> None:
    model = LiteRtModel(tiny_int8)
    np.testing.assert_array_equal(model.run(model.inputs[0].to_codes(image))[0], model.run(image)[0])


def test_executed_graph_is_described(tiny_int8: Path) -> None:
    model = LiteRtModel(tiny_int8)
    assert model.census() == {"TRANSPOSE": 2, "CONV_2D": 1, "FULLY_CONNECTED": 1, "RESHAPE": 1}
    assert model.delegated == (1, 5)
    conv = next(op for op in model.ops if op.name == "CONV_2D")
    assert conv.input_types == ("int8", "int8", "int32")
    assert conv.delegated
    builtin = LiteRtModel(tiny_int8, kernels="builtin")
    assert builtin.delegated == (0, 0)
    assert builtin.census() == model.census()


def test_weights_can_be_read_with_their_scales(tiny_int8: Path) -> None:
    per_channel = [t for t in LiteRtModel(tiny_int8).tensors() if len(t.scales) > 1 and t.dtype.name == "int8"]
    kernel = Tiny(quantized=True).kernel_scale
    assert isinstance(kernel, torch.Tensor)
    assert any(np.allclose(t.scales, kernel.numpy()) and t.scale is None for t in per_channel)


@pytest.mark.parametrize("kernels", KERNELS)
def test_all_layers_can_be_read(tiny_int8: Path, image: NDArray[np.float32], kernels: Kernels) -> None:
    model = LiteRtModel(tiny_int8, kernels=kernels)
    layers = model.run_all(image)
    assert len(layers) == 5
    final = list(layers.values())[-1]
    np.testing.assert_array_equal(final, model.run(image)[0])
    x = torch.from_numpy(image)
    tiny = Tiny(quantized=True)
    hidden = torch.relu(torch.nn.functional.conv2d(tiny.grid(x, 0.02, -3), tiny.weight("kernel")))
    conv = [v for v in layers.values() if v.shape == (1, 6, 6, 4)]
    wanted = np.clip(hidden.detach().numpy().transpose(0, 2, 3, 1), 0, 255 * 0.03)
    assert conv
    assert np.abs(conv[0] - wanted).max() <= 0.0301


def test_results_survive_the_next_run(tiny_float: Path, image: NDArray[np.float32]) -> None:
    model = LiteRtModel(tiny_float.read_bytes(), threads=2)
    (first,) = model.run(image)
    kept = first.copy()
    model.run(-image)
    np.testing.assert_array_equal(first, kept)


def test_prepared_inputs_can_be_invoked_alone(tiny_float: Path, image: NDArray[np.float32]) -> None:
    model = LiteRtModel(tiny_float)
    model.prepare(image)
    model.invoke()
    np.testing.assert_array_equal(model.run(image)[0], LiteRtModel(tiny_float).run(image)[0])


class Many(torch.nn.Module):
    """Twelve inputs that matter differently, two outputs."""

    def forward(self, *xs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return sum((i + 1) * x for i, x in enumerate(xs)), xs[11] - xs[2]  # type: ignore[return-value]


def test_arguments_keep_their_order(tmp_path: Path) -> None:
    import litert_torch

    arrays = [np.full((1, 2), 10.0**-i, np.float32) for i in range(12)]
    path = tmp_path / "many.tflite"
    litert_torch.convert(Many().eval(), tuple(torch.from_numpy(a) for a in arrays)).export(str(path))
    model = LiteRtModel(path)
    assert [i.name for i in model.inputs] == [f"args_{i}" for i in range(12)]
    for found, expected in zip(model.run(*arrays), Many()(*map(torch.from_numpy, arrays)), strict=True):
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 8, 8), np.float32), "shape"),
        (np.full((1, 3, 8, 8), np.nan, np.float32), "NaN"),
        (np.zeros((1, 3, 8, 8), np.int32), "int32"),
        (np.zeros((1, 3, 8, 8), np.complex64), "complex64"),
    ],
)
def test_unfit_input_is_refused(tiny_int8: Path, array: NDArray[np.generic], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        LiteRtModel(tiny_int8).run(array)
    assert caught.value.code == "EQ-D040"


def test_wrong_number_of_inputs_is_refused(tiny_int8: Path) -> None:
    with pytest.raises(DataError, match="takes 1 inputs"):
        LiteRtModel(tiny_int8).run()


def test_unreadable_models_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.tflite", tmp_path):
        with pytest.raises(ModelError) as caught:
            LiteRtModel(path)
        assert caught.value.code == "EQ-M040"
    other = tmp_path / "photo.tflite"
    other.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(ModelError, match="TFL3") as caught:
        LiteRtModel(other)
    assert caught.value.code == "EQ-M041"


def test_damaged_models_never_crash(tiny_int8: Path) -> None:
    content = tiny_int8.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(content[: rng.randrange(len(content))] if rng.random() < 0.5 else content)
        for _ in range(rng.choice((0, 1, 20))):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            LiteRtModel(bytes(damaged))
        except ModelError as error:
            refused += 1
            assert error.code in ("EQ-M041",)
    assert refused > 20


def test_bad_settings_are_refused(tiny_float: Path) -> None:
    with pytest.raises(UsageError, match="threads"):
        LiteRtModel(tiny_float, threads=0)
    with pytest.raises(UsageError, match="unknown kernels 'xnpack'") as caught:
        LiteRtModel(tiny_float, kernels="xnpack")  # type: ignore[arg-type]
    assert "xnnpack" in str(caught.value.hint)


def test_missing_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ai_edge_litert", "ai_edge_litert.interpreter", "tflite_runtime", "tflite_runtime.interpreter"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingError) as caught:
        load_runtime()
    assert "pip install ai-edge-litert" in str(caught.value.hint)


def test_broken_runtime_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> ModuleType:
        raise ImportError("libfoo.so.1: cannot open shared object file" if name.startswith("ai_edge") else name)

    monkeypatch.setattr(importlib, "import_module", load)
    with pytest.raises(MissingError, match=r"ai_edge_litert is installed but fails: libfoo\.so\.1"):
        load_runtime()


def test_older_runtime_is_taken_when_the_new_one_is_absent(
    monkeypatch: pytest.MonkeyPatch, tiny_float: Path, image: NDArray[np.float32]
) -> None:
    current = importlib.import_module("ai_edge_litert.interpreter")
    expected = LiteRtModel(tiny_float).run(image)[0]
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    monkeypatch.setitem(sys.modules, "tflite_runtime", ModuleType("tflite_runtime"))
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", current)
    np.testing.assert_array_equal(LiteRtModel(tiny_float).run(image)[0], expected)


def test_some_of_all_tensors_can_be_asked_for(tiny_int8: Path) -> None:
    model = LiteRtModel(tiny_int8)
    sample = [np.zeros(info.shape, np.float32) for info in model.inputs]
    everything = model.run_all(*sample)
    name = next(iter(everything))
    found = model.record({name, "absent"}, *sample)
    assert list(found) == [name]
    np.testing.assert_array_equal(found[name], everything[name])


def test_loading_is_silent(tiny_float: Path, capfd: pytest.CaptureFixture[str]) -> None:
    LiteRtModel(tiny_float)
    assert capfd.readouterr().err == ""


@pytest.mark.real
def test_published_int8_files_run(real_data: Path) -> None:
    files = sorted((real_data / "mcu").glob("*.tflite"))
    if not files:
        pytest.skip(f"no .tflite in {real_data / 'mcu'}")
    for path in files:
        model = LiteRtModel(path)
        inputs = [np.zeros(i.shape, np.float32) for i in model.inputs]
        assert all(np.isfinite(o).all() for o in model.run(*inputs)), path.name
        assert len(model.run_all(*inputs)) == sum(len(op.outputs) for op in model.ops), path.name
