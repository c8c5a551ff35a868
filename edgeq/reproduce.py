"""Build an artifact again from its manifest and compare the bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeq.artifact import Artifact, Manifest, describe_files
from edgeq.build import build_scheme, share_bytes
from edgeq.bundle import BundleParts, Choice, write_artifact_files
from edgeq.candidate import Candidate
from edgeq.config import ExportConfig
from edgeq.hashing import file_sha256
from edgeq.origin import open_whole, recorded_config, require_same_weights
from edgeq.ported import is_ported, resolve_ported, write_ported
from edgeq.progress import Progress
from edgeq.session import Job, Stages, prepare


@dataclass(frozen=True)
class Reproduction:
    """The comparison of a rebuilt artifact with its manifest.

    Args:
        equal: Files with the same bytes.
        different: Files whose bytes differ.
        missing: Files that the rebuild did not write.
    """

    equal: tuple[str, ...]
    different: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every file came out the same."""
        return bool(self.equal) and not self.different and not self.missing


def build_again(
    folder: Path, config: ExportConfig, scratch: Path, stages: Stages, calibration: Sequence[str] | None = None
) -> tuple[Job, dict[str, Candidate]]:
    """The candidates that a bundle shipped, by network, built from a configuration like its own.

    Args:
        folder: The bundle, which says the scheme of each network.
        config: As recorded, or with another seed.
        scratch: Folder for the files.
        stages: Takes the time.
        calibration: SHA-256 of the calibration items; chosen by the configuration's seed when None.

    Raises:
        ModelError: EQ-M023, the model is another one.
        DataError: EQ-D022, calibration items are not there.
    """
    job = prepare(config, scratch, stages, calibration)
    require_same_weights(Artifact.open(folder).manifest, job.first.adapter.loaded.weights_sha256)
    job = replace(job, sessions=share_bytes(job.sessions, scratch, stages))
    shipped = {}
    for name, session in job.sessions.items():
        scheme = Artifact.open(folder / name).manifest.scheme
        shipped[name] = build_scheme(session, scheme, scratch / name, stages.of(name))[0]
    return job, shipped


def reproduce(folder: Path, inputs: Mapping[str, Path | None], progress: Progress) -> Reproduction:
    """Rebuild the bundle in `folder` in a scratch folder.

    Args:
        folder: A bundle.
        inputs: Where to find `model`, `weights` and `calib` now; None looks for the recorded file name in the current
            folder and beside the bundle.
        progress: Where to show the stages.

    Raises:
        ModelError: The model file is not found, or is another one.
        DataError: The calibration images are not found, or are others.
    """
    manifest = open_whole(folder, "edgeq reproduce {}").manifest
    config = recorded_config(manifest, folder, inputs)
    stages = Stages(progress)
    if is_ported(config):
        return _ported_again(config, manifest)
    with tempfile.TemporaryDirectory(prefix="edgeq-") as scratch:
        items = [item["sha256"] for item in manifest.calibration]
        job, shipped = build_again(folder, config, Path(scratch), stages, items)
        rebuilt = Path(scratch) / "bundle"
        rebuilt.mkdir()
        judged = {name: (candidate,) for name, candidate in shipped.items()}
        write_artifact_files(rebuilt, BundleParts(job, Choice(shipped, judged)))
        found = {f["path"]: f["sha256"] for f in describe_files(rebuilt)}
    return _compared(manifest, found)


def _ported_again(config: ExportConfig, manifest: Manifest) -> Reproduction:
    """The C of a file of integers written again."""
    require_same_weights(manifest, file_sha256(Path(config.model)))
    with tempfile.TemporaryDirectory(prefix="edgeq-") as scratch:
        write_ported(config, resolve_ported(config), Path(scratch))
        found = {f["path"]: f["sha256"] for f in describe_files(Path(scratch))}
    return _compared(manifest, found)


def _compared(manifest: Manifest, found: Mapping[str, str]) -> Reproduction:
    recorded = {f["path"]: f["sha256"] for f in manifest.files}
    return Reproduction(
        equal=tuple(p for p, h in recorded.items() if found.get(p) == h),
        different=tuple(p for p, h in recorded.items() if p in found and found[p] != h),
        missing=tuple(p for p in recorded if p not in found),
    )
