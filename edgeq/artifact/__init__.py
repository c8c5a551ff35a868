"""The artifact bundle on disk: manifest, model file, plan, golden vectors, evidence and runner in one folder.

A bundle appears whole or not at all (`staged`), holds no paths of the machine that built it, and the files its
manifest lists depend only on what went in. `Artifact.open` reads one back and proves every file by its hash.
"""

from __future__ import annotations

from edgeq.artifact.files import (
    describe_files,
    model_bytes,
    model_files,
    write_golden,
    write_json,
    write_runner,
)
from edgeq.artifact.manifest import Manifest
from edgeq.artifact.reader import Artifact, Golden
from edgeq.artifact.staging import check_out, staged

__all__ = [
    "Artifact",
    "Golden",
    "Manifest",
    "check_out",
    "describe_files",
    "model_bytes",
    "model_files",
    "staged",
    "write_golden",
    "write_json",
    "write_runner",
]
