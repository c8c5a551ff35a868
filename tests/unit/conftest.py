"""Tiny real model files, converted once for the whole session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn


class Tiny(nn.Module):
    """Convolution, ReLU, linear: `(1, 3, 8, 8) -> (1, 5)`; on int8 grids when `quantized`."""

    def __init__(self, quantized: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3, generator=generator) / 3)
        self.matrix = nn.Parameter(torch.randn(5, 4 * 6 * 6, generator=generator) / 12)
        for name in ("kernel", "matrix"):
            weight = getattr(self, name).detach()
            self.register_buffer(f"{name}_scale", weight.abs().flatten(1).amax(1) / 127)
            self.register_buffer(f"{name}_zero", torch.zeros(len(weight), dtype=torch.int64))
        self.quantized = quantized

    def grid(self, x: Tensor, scale: float, zero_point: int) -> Tensor:
        """Quantize and dequantize a tensor."""
        if not self.quantized:
            return x
        ops = torch.ops.quantized_decomposed
        codes = ops.quantize_per_tensor(x, scale, zero_point, -128, 127, torch.int8)
        result: Tensor = ops.dequantize_per_tensor(codes, scale, zero_point, -128, 127, torch.int8)
        return result

    def weight(self, name: str) -> Tensor:
        """A weight, one scale per output."""
        x: Tensor = getattr(self, name)
        if not self.quantized:
            return x
        ops = torch.ops.quantized_decomposed
        scales, zeros = getattr(self, f"{name}_scale"), getattr(self, f"{name}_zero")
        codes = ops.quantize_per_channel(x, scales, zeros, 0, -127, 127, torch.int8)
        result: Tensor = ops.dequantize_per_channel(codes, scales, zeros, 0, -127, 127, torch.int8)
        return result

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = torch.relu(nn.functional.conv2d(self.grid(x, 0.02, -3), self.weight("kernel")))
        return self.grid(nn.functional.linear(self.grid(x, 0.03, -128).flatten(1), self.weight("matrix")), 0.05, 7)


@pytest.fixture(scope="session")
def tiny_float(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`Tiny` in float32."""
    import litert_torch

    path = tmp_path_factory.mktemp("tflite") / "tiny.tflite"
    litert_torch.convert(Tiny(quantized=False).eval(), (torch.zeros(1, 3, 8, 8),)).export(str(path))
    return path


@pytest.fixture(scope="session")
def tiny_int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`Tiny` with int8 input, output and kernels."""
    import litert_torch
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    path = tmp_path_factory.mktemp("tflite") / "tiny_int8.tflite"
    setting = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)
    config = QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(setting))
    model = Tiny(quantized=True).eval()
    litert_torch.convert(model, (torch.zeros(1, 3, 8, 8),), quant_config=config).export(str(path))
    return path


@pytest.fixture(scope="session")
def tiny_openvino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`x (1, 8) -> FakeQuantize -> times an int8 matrix (4, 8)`: one layer that OpenVINO runs in integers."""
    openvino = pytest.importorskip("openvino")
    opset = openvino.opset13
    codes = np.random.default_rng(0).integers(-127, 128, (4, 8)).astype(np.int8)
    x = opset.parameter([1, 8], np.float32, name="x")
    low, high = np.float32(-2.56), np.float32(2.54)
    grid = opset.fake_quantize(x, low, high, low, high, 256)
    weight = opset.multiply(
        opset.convert(opset.constant(codes), np.float32), opset.constant(np.full((4, 1), 0.01, "f"))
    )
    product = opset.matmul(grid, weight, False, True, name="layer/MatMul")
    path = tmp_path_factory.mktemp("openvino") / "model.xml"
    openvino.save_model(openvino.Model([product], [x]), path, compress_to_fp16=False)
    return path
