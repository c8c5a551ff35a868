"""Where a bundle came from: its configuration and its float model, found again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeq.artifact import Artifact, Manifest
from edgeq.config import ExportConfig
from edgeq.errors import ModelError, UsageError
from edgeq.models import load_any
from edgeq.models.base import Composite, ModelAdapter, parse_model, parts_of


def open_whole(folder: Path, command: str) -> Artifact:
    """Open a bundle that is not one network of another.

    Args:
        folder: The bundle.
        command: For the hint, with `{}` for the folder.

    Raises:
        UsageError: EQ-U701 for one network of several.
        InputError: It is no bundle.
    """
    artifact = Artifact.open(folder)
    if "network" in artifact.manifest.model:
        raise UsageError(
            f"{folder.name} is one network of a model",
            code="EQ-U701",
            place=str(folder),
            hint=command.format(folder.parent),
        )
    return artifact


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


def float_model(manifest: Manifest, folder: Path, inputs: Mapping[str, Path | None]) -> ModelAdapter | Composite:
    """The float model that a bundle was made from.

    Args:
        manifest: Of the bundle.
        folder: The bundle.
        inputs: Where to find `model` and `weights` now, as for `recorded_config`.

    Raises:
        ModelError: It is not found, cannot be loaded, or is another one.
    """
    config = recorded_config(manifest, folder, inputs)
    model = load_any(parse_model(config.model, config.family, config.weights, config.shape))
    require_same_weights(manifest, next(iter(parts_of(model).values())).loaded.weights_sha256)
    return model


def require_same_weights(manifest: Manifest, sha256: str) -> None:
    """Check that a model is the one that a bundle was made from.

    Raises:
        ModelError: EQ-M023 when it is another one.
    """
    if sha256 != manifest.weights_sha256:
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
