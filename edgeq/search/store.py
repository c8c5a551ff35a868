"""Costs of layers by device, kept between searches: another model with layers of the same shapes begins with them."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from edgeq.places import state_dir

SCHEMA = "edgeq.costs/2"


@dataclass
class CostStore:
    """Extra cost of a layer by shape and width on one device, against its reference width.

    Args:
        path: File.
        device: What the file must be about: device, runtime, format, threads.
        known: By scheme, shape and width.
        measured_at: When they were last written, UTC; empty before.
        damaged: Why a file that is there was not used; empty where it was, or where there is none.
    """

    path: Path
    device: str
    known: dict[tuple[str, str, int], float] = field(default_factory=dict)
    measured_at: str = ""
    damaged: str = ""

    @classmethod
    def open(cls, key: str, device: str) -> CostStore:
        """The store of a device; a damaged file is an empty one that says so, and is written anew.

        Args:
            key: Name of the file, a hash of `device`.
            device: See above.
        """
        path = state_dir() / "costs" / f"{key}.json"
        try:
            data = json.loads(path.read_bytes())
            if data["schema"] != SCHEMA or data["device"] != device:
                raise ValueError("it is of another device or another version")
            known = {(str(s), str(n), int(b)): float(value) for s, n, b, value in data["costs"]}
            if not all(map(math.isfinite, known.values())):
                raise ValueError("a cost is not finite")
            return cls(path, device, known, str(data["measured_at"]))
        except FileNotFoundError:
            return cls(path, device)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            return cls(path, device, damaged=f"{type(error).__name__}: {error}")

    def of(self, scheme: str) -> dict[tuple[str, int], float]:
        """What is known of layers in a scheme, by shape and width."""
        return {(shape, bits): value for (s, shape, bits), value in self.known.items() if s == scheme}

    def keep(self, scheme: str, costs: Mapping[tuple[str, int], float]) -> bool:
        """Add or replace costs, on disk too; False where the disk refuses, which costs time later and nothing else."""
        self.known |= {(scheme, *cell): value for cell, value in costs.items()}
        self.measured_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        rows = [[*cell, value] for cell, value in sorted(self.known.items())]
        data = {"schema": SCHEMA, "device": self.device, "measured_at": self.measured_at, "costs": rows}
        aside: Path | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, suffix=".tmp", delete=False) as stream:
                aside = Path(stream.name)
                stream.write(json.dumps(data, indent=1))
            aside.replace(self.path)
        except OSError:
            return False
        finally:
            if aside is not None:
                with suppress(OSError):
                    aside.unlink()
        return True

    def forget(self) -> None:
        """Begin anew."""
        self.known.clear()
        self.measured_at = ""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
