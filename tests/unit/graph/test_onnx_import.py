"""Reading ONNX files: what is accepted, what is refused and how, and the two real files."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from edgeq.errors import EdgeqError, ModelError, UsageError
from edgeq.graph.onnx_import import import_onnx
from edgeq.graph.parity import check_parity
from edgeq.graph.recognize import attention_sites, count_ops
from tests.unit.graph.onnx_build import build, node

W = np.random.default_rng(3).standard_normal((4, 5)).astype(np.float32)


def small(folder: Path, **changes: object) -> Path:
    nodes = [node("MatMul", "x w", "h"), node("Add", "h b", "s"), node("Relu", "s", "y")]
    constants = {"w": W, "b": np.ones(5, np.float32)}
    options = {"inputs": {"x": (2, 4)}, "outputs": ["y"], "constants": constants, **changes}
    return build(folder / "small.onnx", nodes, **options)  # type: ignore[arg-type]


def code_of(path: Path, **options: object) -> str:
    with pytest.raises(EdgeqError) as caught:
        import_onnx(path, **options)  # type: ignore[arg-type]
    assert caught.value.hint or caught.value.place
    return caught.value.code


def test_matmul_and_bias_become_one_linear(tmp_path: Path) -> None:
    path = small(tmp_path)
    imported = import_onnx(path)
    assert count_ops(imported.graph) == {"linear": 1, "relu": 1}
    assert imported.input_names == ("x",)
    assert imported.input_shapes == ((2, 4),)
    assert imported.output_names == ("y",)
    assert imported.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    (linear,) = [n for n in imported.graph.graph.nodes if "linear" in str(n.target)]
    weight = imported.graph.get_parameter(str(linear.args[1].target))
    np.testing.assert_array_equal(weight.numpy(), W.T)
    assert linear.meta["onnx_name"] == "s"
    assert "Add_s" in linear.meta["onnx_node"]
    check_parity(imported, path)


def test_free_batch_is_one_and_other_sizes_must_be_given(tmp_path: Path) -> None:
    assert import_onnx(small(tmp_path, inputs={"x": ("n", 4)})).input_shapes == ((1, 4),)
    free = build(tmp_path / "free.onnx", [node("Relu", "x")], {"x": ("n", 3, "h", "w")}, ["y"])
    with pytest.raises(ModelError, match="free sizes") as caught:
        import_onnx(free)
    assert (caught.value.code, caught.value.place) == ("EQ-M112", "x")
    assert "x=(1, 3, 224, 224)" in (caught.value.hint or "")
    assert import_onnx(free, {"x": (2, 3, 8, 9)}).input_shapes == ((2, 3, 8, 9),)
    assert code_of(free, input_shapes={"x": (1, 4, 8, 9)}) == "EQ-U102"
    assert code_of(free, input_shapes={"x": (1, 3, 8)}) == "EQ-U102"
    assert code_of(free, input_shapes={"z": (1, 3, 8, 8)}) == "EQ-U102"


def test_all_unsupported_operations_are_listed_with_their_place(tmp_path: Path) -> None:
    nodes = [node("Det", "x", "a"), node("Unique", "a", "b"), node("Det", "b", "y")]
    with pytest.raises(ModelError) as caught:
        import_onnx(build(tmp_path / "m.onnx", nodes, {"x": (2, 2)}, ["y"]))
    assert caught.value.code == "EQ-M114"
    assert "Det (2x), Unique (1x)" in caught.value.message
    assert caught.value.place is not None
    assert "Det Det_a: x -> a" in caught.value.place
    assert "Unique Unique_b: a -> b" in caught.value.place


def test_a_quantized_model_is_recognized(tmp_path: Path) -> None:
    constants = {"s": np.float32(0.1), "z": np.int8(0)}
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")]
    with pytest.raises(ModelError) as caught:
        import_onnx(build(tmp_path / "m.onnx", nodes, {"x": (2, 2)}, ["y"], constants))
    assert "already quantized" in (caught.value.hint or "")


def test_files_that_are_no_models(tmp_path: Path) -> None:
    assert code_of(tmp_path / "absent.onnx") == "EQ-M002"
    assert code_of(tmp_path) == "EQ-M002"
    for name, content in {"empty": b"", "text": b"hello, world\n", "zeros": bytes(1000)}.items():
        (tmp_path / name).write_bytes(content)
        assert code_of(tmp_path / name) == "EQ-M110"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 400), flip=st.integers(0, 400), value=st.integers(0, 255))
def test_damaged_files_give_errors_and_never_tracebacks(tmp_path: Path, cut: int, flip: int, value: int) -> None:
    content = bytearray(small(tmp_path).read_bytes())
    content[flip % len(content)] = value
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(content[: len(content) - cut % len(content)])
    try:
        imported = import_onnx(damaged)
    except EdgeqError as error:
        assert error.code.startswith("EQ-")
    else:
        assert imported.output_names


def test_truncated_file(tmp_path: Path) -> None:
    content = small(tmp_path).read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[:-60])
    assert code_of(tmp_path / "cut.onnx") == "EQ-M110"


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    bad = W.copy()
    bad[1, 2] = np.nan
    with pytest.raises(ModelError, match="'w'") as caught:
        import_onnx(small(tmp_path, constants={"w": bad, "b": np.ones(5, np.float32)}))
    assert caught.value.code == "EQ-M105"
    bad[1, 2] = np.inf
    assert code_of(small(tmp_path, constants={"w": bad, "b": np.ones(5, np.float32)})) == "EQ-M105"


def test_masks_may_be_infinite(tmp_path: Path) -> None:
    mask = np.triu(np.full((3, 3), -np.inf, np.float32), 1)
    nodes = [node("Add", "x m", "a"), node("Softmax", "a", "y")]
    path = build(tmp_path / "m.onnx", nodes, {"x": (1, 2, 3, 3)}, ["y"], {"m": mask})
    imported = import_onnx(path)
    check_parity(imported, path)


def test_tensors_may_have_awkward_names(tmp_path: Path) -> None:
    names = ["type.weight", "half", "half.weight", "class.in", "a", "a.b", "/x/y::1", "", "7", "forward"]
    names = [n for n in names if n]
    nodes = [node("Mul", f"{'x' if i == 0 else f'h{i - 1}'} {n}", f"h{i}") for i, n in enumerate(names)]
    constants = {n: np.random.default_rng(i).standard_normal((2, 3)).astype(np.float32) for i, n in enumerate(names)}
    path = build(tmp_path / "m.onnx", nodes, {"x": (2, 3)}, [f"h{len(names) - 1}"], constants)
    imported = import_onnx(path)
    check_parity(imported, path)
    assert len(imported.graph.state_dict()) == len(names)


def test_old_opsets_are_refused(tmp_path: Path) -> None:
    path = build(tmp_path / "m.onnx", [node("Relu", "x")], {"x": (2,)}, ["y"], opset=6)
    assert code_of(path) == "EQ-M115"


def test_half_precision_is_refused(tmp_path: Path) -> None:
    path = small(tmp_path, constants={"w": W.astype(np.float16), "b": np.ones(5, np.float16)}, metadata=False)
    assert code_of(path) in ("EQ-M104", "EQ-M110")


def test_weights_in_other_files(tmp_path: Path) -> None:
    path = small(tmp_path)
    big = tmp_path / "big"
    big.mkdir()
    model = onnx.load(path)
    onnx.save(model, big / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    imported = import_onnx(big / "m.onnx")
    check_parity(imported, big / "m.onnx")
    data = (big / "m.data").read_bytes()
    (big / "m.data").write_bytes(data[:-8])
    assert code_of(big / "m.onnx") == "EQ-M111"
    (big / "m.data").unlink()
    assert code_of(big / "m.onnx") == "EQ-M111"
    (tmp_path / "m.data").write_bytes(data)
    (big / "m.data").symlink_to(tmp_path / "m.data")
    assert code_of(big / "m.onnx") == "EQ-M111"


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "", "."])
def test_weights_outside_the_folder_are_never_read(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(80))
    folder = tmp_path / "model"
    folder.mkdir()
    model = onnx.load(small(tmp_path))
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], location, 0, 80)
    model.graph.initializer[0].ClearField("raw_data")
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="outside"):
        import_onnx(folder / "m.onnx")


def test_constant_conditions_choose_a_branch(tmp_path: Path) -> None:
    then = helper.make_graph([node("Relu", "x", "t")], "then", [], [onnx.ValueInfoProto(name="t")])
    other = helper.make_graph([node("Neg", "x", "e")], "else", [], [onnx.ValueInfoProto(name="e")])
    for graph in (then, other):
        graph.output[0].CopyFrom(helper.make_tensor_value_info(graph.output[0].name, 1, [2, 3]))
    branch = node("If", "c", "h", then_branch=then, else_branch=other)
    path = build(tmp_path / "m.onnx", [branch, node("Exp", "h")], {"x": (2, 3)}, ["y"], {"c": np.array(False)})
    imported = import_onnx(path)
    assert count_ops(imported.graph) == {"exp": 1, "neg": 1}
    check_parity(imported, path)
    decided = [node("ReduceSum", "x", "s", keepdims=0), node("Greater", "s z", "c"), branch, node("Exp", "h")]
    path = build(tmp_path / "n.onnx", decided, {"x": (2, 3)}, ["y"], {"z": np.float32(0)})
    with pytest.raises(ModelError, match="depends on the data"):
        import_onnx(path)


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    path = small(tmp_path)
    model = onnx.load(path)
    body = [helper.make_node("Relu", ["a"], ["b"])]
    function = helper.make_function("own", "Act", ["a"], ["b"], body, [helper.make_opsetid("", 18)])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[-1].op_type, model.graph.node[-1].domain = "Act", "own"
    onnx.save(model, path)
    assert count_ops(import_onnx(path).graph) == {"linear": 1, "relu": 1}


def test_several_inputs_and_outputs_of_other_types(tmp_path: Path) -> None:
    nodes = [
        node("Gather", "table ids", "e"),
        node("Add", "e x", "y"),
        node("Shape", "x", "shape"),
        node("Not", "m", "n"),
    ]
    types = {"ids": "int64", "m": "bool"}
    inputs = {"ids": (3,), "x": (3, 5), "m": (2,)}
    path = build(tmp_path / "m.onnx", nodes, inputs, ["y", "shape", "n", "x"], {"table": W}, types=types)
    imported = import_onnx(path)
    check_parity(imported, path, seed=5)
    results = imported.graph(torch.tensor([0, 1, 1]), torch.ones(3, 5), torch.tensor([True, False]))
    assert results[1].tolist() == [3, 5]


def test_the_same_file_gives_the_same_graph(tmp_path: Path) -> None:
    path = small(tmp_path)
    first, second = import_onnx(path), import_onnx(path)
    assert str(first.graph.graph) == str(second.graph.graph)
    assert list(first.graph.state_dict()) == list(second.graph.state_dict())


def test_parity_names_the_first_bad_node(tmp_path: Path) -> None:
    path = small(tmp_path)
    imported = import_onnx(path)
    with torch.no_grad():
        next(p for p in imported.graph.parameters() if p.dim() == 2).mul_(1.5)
    with pytest.raises(ModelError) as caught:
        check_parity(imported, path)
    assert caught.value.code == "EQ-M120"
    assert caught.value.place is not None
    assert caught.value.place.startswith("first at Add Add_s: h, b -> s")


def test_parity_inputs_must_fit(tmp_path: Path) -> None:
    path = small(tmp_path)
    imported = import_onnx(path)
    good = check_parity(imported, path, inputs={"x": np.ones((2, 4), np.float32)})
    assert good.max_rel_error < 1e-6
    with pytest.raises(UsageError, match="no input"):
        check_parity(imported, path, inputs={"z": np.ones((2, 4))})
    with pytest.raises(UsageError, match="shape"):
        check_parity(imported, path, inputs={"x": np.ones((2, 5))})


@pytest.mark.real
def test_real_vit(vit_s_focus: Path) -> None:
    imported = import_onnx(vit_s_focus)
    for seed in range(2):
        assert check_parity(imported, vit_s_focus, seed).max_rel_error <= 1e-4
    counts = count_ops(imported.graph)
    assert (counts["layer_norm"], counts["gelu"], counts["linear"], counts["matmul"]) == (25, 12, 72, 24)
    assert not {"erf", "pow", "sqrt", "div", "sub", "mean"} & set(counts)
    sites = attention_sites(imported.graph)
    assert [(s.heads, s.tokens, s.head_dim) for s in sites] == [(6, 257, 64)] * 12
    names = {n.name for n in imported.graph.graph.nodes}
    assert "backbone_encoder_layer_0_attention_attention_query" in names
    assert {s.softmax for s in sites} <= names
    image = torch.randn(1, 3, 224, 224)
    again = torch.export.export(copy.deepcopy(imported.graph), (image,), strict=False).module()
    torch.testing.assert_close(again(image)[0], imported.graph(image)[0])


@pytest.mark.real
def test_real_yolox(real_data: Path) -> None:
    path = real_data / "yolo" / "yolox_nano.onnx"
    imported = import_onnx(path)
    assert check_parity(imported, path).max_rel_error <= 1e-3
    counts = count_ops(imported.graph)
    assert (counts["silu"], counts["sigmoid"], counts["conv2d"]) == (104, 6, 113)
    assert "mul" not in counts
    image = torch.randn(1, 3, 416, 416)
    torch.export.export(imported.graph, (image,), strict=False)


@pytest.mark.real
@pytest.mark.slow
def test_real_vit_converts_to_tflite(vit_s_focus: Path, tmp_path: Path) -> None:
    litert_torch = pytest.importorskip("litert_torch")
    interpreter_of = pytest.importorskip("ai_edge_litert.interpreter").Interpreter
    graph, image = import_onnx(vit_s_focus).graph, torch.randn(1, 3, 224, 224)
    litert_torch.convert(graph.eval(), (image,)).export(str(tmp_path / "m.tflite"))
    runner = interpreter_of(str(tmp_path / "m.tflite"))
    runner.allocate_tensors()
    runner.set_tensor(runner.get_input_details()[0]["index"], image.numpy())
    runner.invoke()
    result = runner.get_tensor(runner.get_output_details()[0]["index"])
    with torch.no_grad():
        expected = graph(image)[0].numpy()
    assert np.abs(result - expected).max() / np.abs(expected).max() <= 1e-3
