"""ONNX files that take one image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgeq.errors import ModelError
from edgeq.graph.onnx_import import ImportedOnnx, import_onnx
from edgeq.graph.parity import check_parity


def import_image_network(
    path: Path, family: str, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[ImportedOnnx, float]:
    """A network of one image `(1, 3, H, W)`, and its largest relative output error against onnxruntime.

    Args:
        path: The file.
        family: For messages.
        shapes: Of inputs whose sizes the file leaves open.

    Raises:
        ModelError: EQ-M008, it takes something else; or as `import_onnx` and `check_parity`.
        MissingError: onnx or onnxruntime is absent.
    """
    imported = import_onnx(path, shapes)
    shape = imported.input_shapes[0]
    if len(imported.input_shapes) != 1 or len(shape) != 4 or shape[1] != 3:
        raise ModelError(
            f"{family} takes one image (1, 3, H, W); {path.name} takes {', '.join(map(str, imported.input_shapes))}",
            code="EQ-M008",
            place=path.name,
            hint="edgeq models lists the families and what they take",
        )
    return imported, check_parity(imported, path, seed=0).max_rel_error
