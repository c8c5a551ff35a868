"""The recipes, as their own documentation gives them. Run as `python -m edgeq.peers.recipes NAME FLOAT SAMPLES OUT`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Samples = list[list[Any]]


def nncf_static(source: Path, samples: Samples, out: Path) -> None:
    """NNCF's post-training quantization with its defaults."""
    _nncf(source, samples, out, None)


def nncf_transformer(source: Path, samples: Samples, out: Path) -> None:
    """The same with `ModelType.TRANSFORMER`, which its documentation asks for where there is attention."""
    import nncf

    _nncf(source, samples, out, nncf.ModelType.TRANSFORMER)


def _nncf(source: Path, samples: Samples, out: Path, model_type: Any) -> None:
    import nncf
    import openvino

    model = openvino.convert_model(str(source))
    data = nncf.Dataset([sample if len(sample) > 1 else sample[0] for sample in samples])
    quantized = nncf.quantize(model, data, model_type=model_type, subset_size=len(samples))
    openvino.save_model(quantized, str(out), compress_to_fp16=False)


def ort_static(source: Path, samples: Samples, out: Path) -> None:
    """Static quantization of onnxruntime: QDQ, min-max, unsigned activations, signed weights per channel."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    names = [entry.name for entry in onnx.load(str(source)).graph.input]

    class Reader(CalibrationDataReader):  # type: ignore[misc] # the package ships no types
        def __init__(self) -> None:
            self.left = iter(samples)

        def get_next(self) -> dict[str, Any] | None:
            sample = next(self.left, None)
            return None if sample is None else dict(zip(names, sample, strict=True))

    quantize_static(
        str(source),
        str(out),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def ort_dynamic(source: Path, samples: Samples, out: Path) -> None:
    """Dynamic quantization of onnxruntime, of matrix products, as its documentation advises for transformers."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    del samples
    model = onnx.load(str(source))
    del model.graph.value_info[:]  # it keeps the shapes of the weights that it transposes, and then refuses them
    kinds = ["MatMul", "Gemm"]
    quantize_dynamic(model, str(out), op_types_to_quantize=kinds, per_channel=True, weight_type=QuantType.QInt8)


def aeq_dynamic(source: Path, samples: Samples, out: Path) -> None:
    """AI Edge Quantizer, `dynamic_wi8_afp32`."""
    from ai_edge_quantizer import quantizer, recipe

    del samples
    quantizer.Quantizer(str(source), recipe.dynamic_wi8_afp32()).quantize().export_model(str(out))


def aeq_static(source: Path, samples: Samples, out: Path) -> None:
    """AI Edge Quantizer, `static_wi8_ai8`."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    signatures = Interpreter(model_path=str(source)).get_signature_list()
    key = next(iter(signatures))
    names = sorted(signatures[key]["inputs"], key=lambda name: int(name.rpartition("_")[2]))
    tool = quantizer.Quantizer(str(source), recipe.static_wi8_ai8())
    data = {key: [dict(zip(names, sample, strict=True)) for sample in samples]}
    tool.quantize(tool.calibrate(data, num_threads=1)).export_model(str(out))


RECIPES: dict[str, Callable[[Path, Samples, Path], None]] = {
    "nncf static": nncf_static,
    "nncf static transformer": nncf_transformer,
    "ort static": ort_static,
    "ort dynamic": ort_dynamic,
    "aeq dynamic": aeq_dynamic,
    "aeq static": aeq_static,
}


def main(words: list[str]) -> None:
    """Run one recipe."""
    name, source, samples, out = words
    with np.load(samples, allow_pickle=False) as stored:
        arrays = [stored[f"input_{i}"] for i in range(len(stored.files))]
    RECIPES[name](Path(source), [[a[i] for a in arrays] for i in range(len(arrays[0]))], Path(out))


if __name__ == "__main__":
    main(sys.argv[1:])
