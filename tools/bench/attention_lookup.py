"""What a lookup of attention codes costs on LiteRT beside the product that reads them; `results/attention_lookup.json`.

    python tools/bench/attention_lookup.py [--heads 6 --tokens 257 --width 64 --runs 200]

Codes of a logarithmic grid are no numbers that a matmul can read; each has to be looked up first. LiteRT's operations
for that are timed in turns with an int8 batch matmul of the same attention, one thread; what is printed and written is
the median of their ratios. Random codes: only time is measured.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

RESULT = Path(__file__).parent / "results" / "attention_lookup.json"
GRID = (1 / 256, -128)


class Writer:
    """A .tflite model of a few operations; what an exporter would have to write if it lowered such codes."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version, self.model.buffers, self.model.operatorCodes = 3, [schema.BufferT()], []
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.model.subgraphs = [self.graph]

    def tensor(self, shape: tuple[int, ...], kind: str, grid: tuple[float, int] | None = None, data: Any = None) -> int:
        """Add a tensor, a constant where `data` is given, and return its index."""
        tensor = schema.TensorT()
        tensor.shape, tensor.type = list(shape), getattr(schema.TensorType, kind)
        tensor.name = f"t{len(self.graph.tensors)}".encode()
        if grid is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [grid[0]], [grid[1]]
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = data.view(np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def add(self, name: str, inputs: list[int], output: int, version: int, options: str = "") -> None:
        """Add an operation with default options."""
        code, operator = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), version
        operator.opcodeIndex, operator.inputs, operator.outputs = len(self.model.operatorCodes), inputs, [output]
        if options:
            operator.builtinOptions = getattr(schema, f"{options}T")()
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
        self.model.operatorCodes.append(code)
        self.graph.operators.append(operator)

    def interpreter(self, inputs: list[int], output: int) -> Interpreter:
        """Make it run on random codes."""
        import flatbuffers

        self.graph.inputs, self.graph.outputs = inputs, [output]
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        result = Interpreter(model_content=bytes(builder.Output()), num_threads=1)
        result.allocate_tensors()
        random = np.random.default_rng(0)
        for detail in result.get_input_details():
            result.set_tensor(detail["index"], random.integers(-128, 128, detail["shape"]).astype(np.int8))
        return result


def product(codes: tuple[int, ...], width: int) -> Interpreter:
    """Probabilities times values."""
    writer = Writer()
    operands = [writer.tensor(codes, "INT8", GRID), writer.tensor((*codes[:-1], width), "INT8", (0.02, 0))]
    result = writer.tensor((*codes[:-1], width), "INT8", (0.02, 0))
    writer.add("BATCH_MATMUL", operands, result, 4, "BatchMatMulOptions")
    return writer.interpreter(operands, result)


def lookup(codes: tuple[int, ...]) -> Interpreter:
    """Any table of 256 entries: gathered, by whole numbers from 0 on."""
    writer = Writer()
    source, wide, index = (writer.tensor(codes, kind) for kind in ("INT8", "INT32", "INT32"))
    offset = writer.tensor((1,), "INT32", data=np.array([128], np.int32))
    table = writer.tensor((256,), "INT8", GRID, np.arange(-128, 128).astype(np.int8))
    result = writer.tensor(codes, "INT8", GRID)
    writer.add("CAST", [source], wide, 1, "CastOptions")
    writer.add("ADD", [wide, offset], index, 1, "AddOptions")
    writer.add("GATHER", [table, index], result, 2, "GatherOptions")
    return writer.interpreter([source], result)


def fixed_table(codes: tuple[int, ...]) -> Interpreter:
    """The table of a function that the runtime knows: as fast as a lookup could be."""
    writer = Writer()
    source, result = writer.tensor(codes, "INT8", GRID), writer.tensor(codes, "INT8", GRID)
    writer.add("LOGISTIC", [source], result, 2)
    return writer.interpreter([source], result)


def main() -> None:
    """Time and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("heads", 6), ("tokens", 257), ("width", 64), ("runs", 200)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    codes = (1, args.heads, args.tokens, args.tokens)
    models = {"product": product(codes, args.width), "gathered": lookup(codes), "fixed table": fixed_table(codes)}
    times: dict[str, list[float]] = {name: [] for name in models}
    for run in range(args.runs + 5):
        for name, model in models.items():
            started = time.perf_counter()
            model.invoke()
            if run >= 5:
                times[name].append(time.perf_counter() - started)
    ratios = {n: [a / b for a, b in zip(t, times["product"], strict=True)] for n, t in times.items() if n != "product"}
    result = {
        "shape": vars(args),
        "ratio_to_product": {
            name: {"median": round(float(np.median(r)), 2), "worst": round(max(r), 2)} for name, r in ratios.items()
        },
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["ratio_to_product"]))


if __name__ == "__main__":
    main()
