"""ONNX files of networks that take one image, as the families of image models read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from torch import fx

from edgeq.errors import ModelError
from edgeq.graph.onnx_file import Sizes, describe_file
from edgeq.graph.onnx_import import ImportedOnnx, import_onnx
from edgeq.graph.parity import check_one_by_one, check_parity
from edgeq.graph.rewrite import shape_of

IMAGE_AXES = 4
STIFF = "EQ-M116"
UNFIT = "EQ-M113"  # an operation that cannot be imported as it is, among others for its shapes

Usual = Callable[[Mapping[str, str]], "tuple[int, int] | None"]
"""Height and width by the notes of a file; None where they do not tell."""


def import_image_network(
    path: Path, what: str, shape: tuple[int, int] | None, usual: Usual | None = None
) -> tuple[ImportedOnnx, float]:
    """A network of one image `(1, 3, H, W)`, and its largest relative error against onnxruntime.

    Args:
        path: The file.
        what: Such networks, for messages.
        shape: Height and width that the user wants; they replace those of the file where its operations follow. So does
            one image for a batch that the file fixes, if it gives each image what it gives it alone.
        usual: Those of a file that leaves them open, by its notes, where the user wants none.

    Raises:
        ModelError: EQ-M008 for other inputs; EQ-M116, the file fixes other sizes and does not follow; the file cannot
            be used; the graph computes something else.
        MissingError: onnx or onnxruntime is absent.
    """
    notes, inputs = describe_file(path)
    name, sizes = next(iter(inputs.items())) if len(inputs) == 1 else ("", ())
    sides = shape or (usual(notes) if usual and None in _numbers(sizes[1:]) else None)
    wanted = _wanted(sizes, sides)
    try:
        imported = import_onnx(path, {name: wanted} if wanted else None)
        if imported.resized:
            _check_follows(imported, path, _numbers(sizes))
    except ModelError as error:
        if error.code != UNFIT or wanted is None or not _replaces(_numbers(sizes), wanted):
            raise
        message = f"{path.name} is for {list(sizes)}, and not all of it follows to {wanted}: {error.message}"
        hint = "leave --shape out, or export the model for this size" if shape else "export the model for a batch of 1"
        raise ModelError(message, code=STIFF, place=error.place, hint=hint) from error
    found = imported.input_shapes[0]
    if len(imported.input_shapes) != 1 or len(found) != IMAGE_AXES or found[1] != 3:
        raise ModelError(
            f"{what} takes one image (1, 3, H, W); {path.name} takes {', '.join(map(str, imported.input_shapes))}",
            code="EQ-M008",
            place=path.name,
            hint="edgeq models lists the families and what they take",
        )
    return imported, check_parity(imported, path, seed=0).max_rel_error


def _numbers(sizes: Sizes) -> tuple[int | None, ...]:
    """Sizes, None for what is left open."""
    return tuple(n if isinstance(n, int) else None for n in sizes)


def _replaces(sizes: tuple[int | None, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a shape has another size than the file fixes."""
    return len(sizes) == len(wanted) and any(n not in (None, w) for n, w in zip(sizes, wanted, strict=True))


def _wanted(sizes: Sizes, sides: tuple[int, int] | None) -> tuple[int, ...] | None:
    """The shape to import an input with, None for that of the file."""
    numbers = _numbers(sizes)
    if sides is not None and sizes:
        return (1, 3, *sides)
    one_image = len(sizes) == IMAGE_AXES and None not in numbers and numbers[1] == 3
    return (1, *(n or 1 for n in numbers[1:])) if one_image else None


def _check_follows(imported: ImportedOnnx, path: Path, sizes: tuple[int | None, ...]) -> None:
    """Require that a network takes another batch or size than its file fixes. Raises EQ-M116."""
    ((name, shape),) = zip(imported.input_names, imported.input_shapes, strict=True)
    of_file = (1, *(old or new for old, new in zip(sizes[1:], shape[1:], strict=True)))
    original = imported if of_file == shape else import_onnx(path, {name: of_file})
    if sizes[0] not in (None, 1):
        check_one_by_one(original, path, sizes[0])
    before, after = (_output_shapes(i) for i in (original, imported))
    for output, old, new in zip(imported.output_names, before, after, strict=True):
        if len(old) != len(new) or old[:1] != new[:1]:  # a flattened image that became several
            message = f"{path.name} is for {of_file}: from {shape} its output {output!r} is {new} instead of {old}"
            hint = "leave --shape out, or export the model for this size"
            raise ModelError(message, code=STIFF, place=output, hint=hint)


def _output_shapes(imported: ImportedOnnx) -> list[tuple[int, ...]]:
    (outputs,) = imported.graph.graph.output_node().args
    return [shape_of(node) for node in cast("list[fx.Node]", outputs)]
