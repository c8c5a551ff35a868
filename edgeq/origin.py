"""Where a bundle came from: its configuration and its float model, found again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeq.artifact import Manifest
from edgeq.config import ExportConfig
from edgeq.errors import ModelError
from edgeq.models import load_model
from edgeq.models.base import ModelAdapter, parse_model


def recorded_config(manifest: Manifest, folder: Path, inputs: Mapping[str, Path | None]) -> ExportConfig:
    """The configuration of an export with today's paths.

    Args:
        manifest: Of the bundle.
        folder: The bundle.
        inputs: Where to find `model`, `weights` and `calib` now; those without a path are looked for by the recorded
            file name in the current folder and beside the bundle. What is not a key here is not looked for.

    Raises:
        ModelError: EQ-M002 when one is not found.
    """
    values: dict[str, Any] = {**manifest.config, "data": None}
    for name, path in inputs.items():
        if path is not None:
            values[name] = str(path)
        elif name in manifest.input_files:
            values[name] = str(_find(manifest.input_files[name], folder, name))
    return ExportConfig.from_dict(values)


def float_model(manifest: Manifest, folder: Path, inputs: Mapping[str, Path | None]) -> ModelAdapter:
    """The float model that a bundle was made from.

    Args:
        manifest: Of the bundle.
        folder: The bundle.
        inputs: Where to find `model` and `weights` now, as for `recorded_config`.

    Raises:
        ModelError: It is not found, cannot be loaded, or is another one.
    """
    config = recorded_config(manifest, folder, inputs)
    adapter = load_model(parse_model(config.model, config.family, config.weights))
    require_same_weights(manifest, adapter)
    return adapter


def require_same_weights(manifest: Manifest, adapter: ModelAdapter) -> None:
    """Check that a model is the one that a bundle was made from.

    Raises:
        ModelError: EQ-M023 when it is another one.
    """
    if adapter.loaded.weights_sha256 != manifest.weights_sha256:
        raise ModelError(
            "the model is another one: its weights have a different hash",
            code="EQ-M023",
            hint=f"the manifest wants sha256 {manifest.weights_sha256[:16]}...",
        )


def _find(recorded: str, folder: Path, option: str) -> Path:
    for place in (Path.cwd(), folder, folder.parent):
        if (place / recorded).exists():
            return place / recorded
    raise ModelError(
        f"{recorded} is neither here nor beside the bundle",
        code="EQ-M002",
        place=recorded,
        hint=f"say where it is now: --{option} PATH",
    )
