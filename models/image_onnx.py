"""ONNX files of networks that take one image, as the families of image models read them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgeq.errors import ModelError
from edgeq.graph.onnx_import import ImportedOnnx, import_onnx
from edgeq.graph.parity import check_parity


def import_image_network(
    path: Path, what: str, input_shapes: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[ImportedOnnx, float]:
    """A network of one image `(1, 3, H, W)`, and its largest relative error against onnxruntime.

    Args:
        path: The file.
        what: Such networks, for messages.
        input_shapes: Sizes of inputs that the file leaves open.

    Raises:
        ModelError: EQ-M008 for other inputs; the file cannot be used; the graph computes something else.
        MissingError: onnx or onnxruntime is absent.
    """
    imported = import_onnx(path, input_shapes)
    shape = imported.input_shapes[0]
    if len(imported.input_shapes) != 1 or len(shape) != 4 or shape[1] != 3:
        raise ModelError(
            f"{what} takes one image (1, 3, H, W); {path.name} takes {', '.join(map(str, imported.input_shapes))}",
            code="EQ-M008",
            place=path.name,
            hint="edgeq models lists the families and what they take",
        )
    return imported, check_parity(imported, path, seed=0).max_rel_error
