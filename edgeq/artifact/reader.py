"""Reading a bundle back."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.arrays import Array, DamagedArraysError, read_arrays
from edgeq.artifact.files import EVIDENCE, GOLDEN_EXPECTED, GOLDEN_INPUTS, MANIFEST, PLAN
from edgeq.artifact.manifest import Entry, Manifest, corrupt
from edgeq.errors import EdgeqError, InputError
from edgeq.hashing import file_sha256
from edgeq.spec import Preprocess, QuantPlan

_AGAIN = "restore the folder, or export the model again"


@dataclass(frozen=True)
class Golden:
    """Golden vectors: `inputs[i]` and `expected[i]` have shape `(vectors, *shape of input or output i)`, reals."""

    inputs: tuple[Array, ...]
    expected: tuple[Array, ...]


@dataclass(frozen=True)
class Artifact:
    """A bundle that was opened: its folder and its manifest."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> Artifact:
        """Open a bundle by its folder or by its `manifest.json`; hashes are not checked, see `verify_files`.

        Raises:
            InputError: EQ-I040 when there is no bundle, EQ-I041 when its manifest cannot be used.
        """
        folder = Path(path)
        if folder.name == MANIFEST and not folder.is_dir():
            folder = folder.parent
        file = folder / MANIFEST
        try:
            text = file.read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            message = f"no artifact bundle: {MANIFEST} cannot be read ({reason})"
            hint = "give the folder that `edgeq export` wrote"
            raise InputError(message, code="EQ-I040", place=str(path), hint=hint) from error
        try:
            return cls(folder, Manifest.from_dict(json.loads(text)))
        except (ValueError, RecursionError) as error:
            raise corrupt(f"not JSON: {error}", place=str(file)) from error
        except InputError as error:
            error.place = str(file)
            raise

    @property
    def model_file(self) -> Path:
        """Path of the model file. Raises as `Manifest.entry`."""
        return self.folder / self.manifest.entry

    @property
    def model_entries(self) -> tuple[Entry, ...]:
        """The manifest's entries of the model file and of what belongs to it, such as weights apart from it."""
        return tuple(f for f in self.manifest.files if f["path"].startswith(f"{self.model_file.stem}."))

    @property
    def model_sha256(self) -> str:
        """SHA-256 over the hashes of `model_entries`."""
        return hashlib.sha256("".join(f["sha256"] for f in self.model_entries).encode()).hexdigest()

    @property
    def preprocess(self) -> Preprocess | None:
        """How an image becomes the first input, None for models without images."""
        return None if self.manifest.preprocess is None else Preprocess(**self.manifest.preprocess)

    def verify_files(self) -> None:
        """Compare size and hash of every listed file with the manifest.

        Raises:
            InputError: EQ-I042 naming every file that is missing or differs.
        """
        bad = [problem for entry in self.manifest.files if (problem := self._difference(**entry))]
        if bad:
            raise InputError("; ".join(bad), code="EQ-I042", place=str(self.folder), hint=_AGAIN)

    def plan(self) -> QuantPlan:
        """The quantization plan.

        Raises:
            InputError: EQ-I042 when the file is missing or damaged.
        """
        data = self._json(PLAN)
        try:
            return QuantPlan.from_dict(data)
        except (KeyError, TypeError, ValueError, AttributeError, EdgeqError) as error:
            raise self._damaged(PLAN, error) from error

    def evidence(self) -> dict[str, Any]:
        """What was measured on the artifact and on the candidates that were not shipped.

        Raises:
            InputError: EQ-I042 when the file is missing or damaged.
        """
        return self._json(EVIDENCE)

    def golden(self) -> Golden:
        """The golden vectors.

        Raises:
            InputError: EQ-I042 when a file is missing or damaged.
        """
        return Golden(self._arrays(GOLDEN_INPUTS, "input"), self._arrays(GOLDEN_EXPECTED, "output"))

    def _difference(self, path: str, bytes: int, sha256: str, **_: object) -> str | None:
        file = self.folder / path
        try:
            size = file.stat().st_size
            if size != bytes:
                return f"{path} has {size} bytes instead of {bytes}"
            return None if file_sha256(file) == sha256 else f"{path} was changed"
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"

    def _json(self, name: str) -> dict[str, Any]:
        try:
            data = json.loads((self.folder / name).read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise self._damaged(name, error) from error
        if not isinstance(data, dict):
            raise self._damaged(name, "not a JSON object")
        return data

    def _arrays(self, name: str, prefix: str) -> tuple[Array, ...]:
        try:
            arrays = read_arrays(self.folder / name)
            return tuple(arrays[f"{prefix}_{i}"] for i in range(len(arrays)))
        except (OSError, DamagedArraysError, KeyError) as error:
            raise self._damaged(name, error) from error

    def _damaged(self, name: str, cause: object) -> InputError:
        place = str(self.folder / name)
        return InputError(f"{name} cannot be used: {cause}", code="EQ-I042", place=place, hint=_AGAIN)
