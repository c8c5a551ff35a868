"""ONNX files of networks that take one image, as the families of image models read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from edgeq.errors import ModelError
from edgeq.graph.onnx_file import describe_file
from edgeq.graph.onnx_import import ImportedOnnx, import_onnx
from edgeq.graph.parity import check_parity

Usual = Callable[[Mapping[str, str]], "tuple[int, int] | None"]
"""Height and width by the notes of a file; None where they do not tell."""


def import_image_network(
    path: Path, what: str, shape: tuple[int, int] | None, usual: Usual | None = None
) -> tuple[ImportedOnnx, float]:
    """A network of one image `(1, 3, H, W)`, and its largest relative error against onnxruntime.

    Args:
        path: The file.
        what: Such networks, for messages.
        shape: Height and width that the user wants.
        usual: Those of a file that leaves them open, by its notes, where the user wants none.

    Raises:
        ModelError: EQ-M008 for other inputs; the file cannot be used; the graph computes something else.
        UsageError: The file has another shape.
        MissingError: onnx or onnxruntime is absent.
    """
    notes, inputs = describe_file(path) if shape or usual else ({}, {})
    sides = usual(notes) if usual and not shape and any(inputs.values()) else shape
    imported = import_onnx(path, {next(iter(inputs)): (1, 3, *sides)} if sides and len(inputs) == 1 else None)
    found = imported.input_shapes[0]
    if len(imported.input_shapes) != 1 or len(found) != 4 or found[1] != 3:
        raise ModelError(
            f"{what} takes one image (1, 3, H, W); {path.name} takes {', '.join(map(str, imported.input_shapes))}",
            code="EQ-M008",
            place=path.name,
            hint="edgeq models lists the families and what they take",
        )
    return imported, check_parity(imported, path, seed=0).max_rel_error
