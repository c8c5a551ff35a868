"""PyTorch module -> canonical graph, the form that every later stage reads.

The canonical graph is a plain `fx.GraphModule` of `placeholder`, `get_attr`, `call_function` (ATen overloads and
`operator.getitem`) and one `output` node: no submodules, no copies, no dropout, no batch norm, no fused attention;
shapes are static and stand in `meta["val"]` of every node. `meta["path"]` is the module an operation came from.
"""

from __future__ import annotations

import contextlib
import math
import operator
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from edgeq.errors import EdgeqError, ModelError, UsageError
from edgeq.graph.naming import rebuild
from edgeq.graph.passes import PASSES
from edgeq.graph.recognize import annotate_attention, recognize
from edgeq.graph.rewrite import fetch, path_of, refresh

# Masks legitimately hold infinities; these are the operations that read them.
_MASK_READERS = ("add", "sub", "where", "masked_fill", "maximum", "minimum", "clamp", "max", "min")


def capture(module: nn.Module, example: tuple[Tensor, ...]) -> fx.GraphModule:
    """Trace `module` in inference mode with the shapes of `example` into a canonical graph.

    The module is left as it was. The graph shares the memory of weights that no clean-up had to change.

    Args:
        module: Any module that `torch.export` can trace; float32.
        example: Its positional inputs; batch size and all other sizes are fixed to theirs.

    Returns:
        A graph module that is called with tensors shaped like `example` and returns a flat tuple of tensors.

    Raises:
        ModelError: The module cannot be traced, has weights that are not finite or not float32, keeps state, or uses
            an operation outside ATen.
        UsageError: `example` is not a tuple of tensors.
    """
    return canonicalize(trace(module, example))


def trace(module: nn.Module, example: tuple[Tensor, ...]) -> fx.GraphModule:
    """The first half of `capture`: an ATen graph with functional operations, flat outputs and `meta["path"]`.

    Raises:
        ModelError: As for `capture`.
        UsageError: As for `capture`.
    """
    given: object = example
    if not isinstance(given, tuple) or not given or not all(isinstance(t, Tensor) for t in given):
        raise UsageError("example must be a non-empty tuple of tensors", code="EQ-U101")
    _check_weights(module)
    with _inference(module), torch.no_grad():
        try:
            program = torch.export.export(module, example, strict=False)
            program = program.run_decompositions({})
        except EdgeqError:
            raise
        except Exception as error:
            raise _cannot_trace(module, error) from error
    signature = program.graph_signature
    changed = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    if changed:
        message = f"the model changes its own state or input while it runs: {', '.join(changed)}"
        hint = "pass state in as an input and return it as an output"
        raise ModelError(message, code="EQ-M102", place=changed[0], hint=hint)
    graph = program.module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    _flatten_output(graph)
    for node in graph.graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        value = node.meta.get("val")
        node.meta = {"path": str(stack[-1][0])} if stack else {}
        if value is not None:
            node.meta["val"] = value
    graph.graph.set_codegen(fx.graph.CodeGen())
    return graph


def canonicalize(graph: fx.GraphModule) -> fx.GraphModule:
    """The second half of `capture`: clean-ups, checks, names and shapes.

    Raises:
        ModelError: An operation outside ATen is left, or folding produced values that are not finite.
    """
    for clean in PASSES:
        clean(graph)
    recognize(graph)
    _check_operations(graph)
    _check_constants(graph)
    result = rebuild(graph)
    refresh(result)
    annotate_attention(result)
    result.eval()
    return result


@contextlib.contextmanager
def _inference(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without the fused transformer kernels, undone on exit."""
    training = {m: m.training for m in module.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    module.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for part, mode in training.items():
            part.training = mode


def _check_weights(module: nn.Module) -> None:
    """Refuse weights that are not finite or not single precision."""
    for name, weight in module.named_parameters():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise _not_finite(name, weight)
    tensors: list[tuple[str, Tensor]] = [*module.named_parameters(), *module.named_buffers()]
    for name, value in tensors:
        if value.is_floating_point() and bool(torch.isnan(value).any()):
            raise _not_finite(name, value)
        if value.is_complex() or (value.is_floating_point() and value.dtype != torch.float32):
            message = f"{name!r} is {str(value.dtype).removeprefix('torch.')}; edgeq quantizes from float32"
            raise ModelError(message, code="EQ-M104", place=name, hint="convert the model first: model.float()")


def _not_finite(name: str, value: Tensor) -> ModelError:
    """The error for a tensor with NaN or infinity."""
    bad = int((~torch.isfinite(value)).sum())
    message = f"{name!r} holds {bad} values of {value.numel()} that are NaN or infinite"
    return ModelError(
        message, code="EQ-M105", place=name, hint="load an intact checkpoint; this one is damaged or diverged"
    )


def _cannot_trace(module: nn.Module, error: Exception) -> ModelError:
    """What `torch.export` says, reduced to its first line and the innermost line of the model's code."""
    text = str(error)
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    frames = re.findall(r'File "([^"]+)", line (\d+), in (\S+)', text)
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        frames.append((code.co_filename, str(traceback.tb_lineno), code.co_name))
        traceback = traceback.tb_next
    inside = [f for f in frames if f"{Path(torch.__file__).parent}" not in f[0] and "edgeq" not in Path(f[0]).parts]
    place = f"{Path(inside[-1][0]).name}:{inside[-1][1]} in {inside[-1][2]}" if inside else type(module).__name__
    message = f"{type(module).__name__} cannot be traced: {type(error).__name__}: {first[:300]}"
    hint = "make control flow and shapes independent of tensor values, and run the example through the model once"
    return ModelError(message, code="EQ-M101", place=place, hint=hint)


def _flatten_output(graph: fx.GraphModule) -> None:
    """Make the output a flat tuple of tensor nodes; None entries vanish."""
    output = graph.graph.output_node()
    leaves = [v for v in pytree.tree_leaves(output.args[0]) if v is not None]
    for leaf in leaves:
        if not isinstance(leaf, fx.Node):
            message = f"the model returns {leaf!r}, which is not a tensor"
            raise ModelError(message, code="EQ-M102", place="output", hint="return tensors only")
    output.args = (tuple(leaves),)


def _check_operations(graph: fx.GraphModule) -> None:
    """Only ATen overloads and `getitem` may be left."""
    foreign = []
    for node in graph.graph.nodes:
        if node.op in ("call_module", "call_method"):
            foreign.append(f"{node.target} in {node.meta.get('path') or 'the model'}")
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
            foreign.append(f"{node.target} in {node.meta.get('path') or 'the model'}")
    if foreign:
        message = f"operations that no target knows: {', '.join(sorted(set(foreign)))}"
        hint = "replace custom kernels and data-dependent control flow by standard PyTorch operations"
        raise ModelError(message, code="EQ-M106", place=foreign[0], hint=hint)


def _check_constants(graph: fx.GraphModule) -> None:
    """Constants must be finite after folding too; masks may hold infinities."""
    for node in graph.graph.nodes:
        if node.op != "get_attr":
            continue
        value = fetch(graph, str(node.target))
        if not value.is_floating_point() or bool(torch.isfinite(value).all()):
            continue
        mask = all(any(r == str(u.target).split(".")[1] for r in _MASK_READERS) for u in node.users)
        if bool(torch.isnan(value).any()) or not mask or value.max() == math.inf:
            raise _not_finite(path_of(node), value)
