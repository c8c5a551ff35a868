"""`Target`: what a piece of hardware is and can run, as data. A connected one is a device, not a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeq.errors import InternalError


@dataclass(frozen=True)
class Target:
    """A kind of hardware.

    Args:
        name: Key of the table.
        description: One line for people.
        family: Architecture of the CPU (`aarch64`, `x86_64`).
        cpu: Core and chip.
        isa: Features that integer kernels use, as `/proc/cpuinfo` spells them.
        cores: Number of cores.
        mhz: Clock of a core at most; 0 where it varies.
        ram_mb: Memory of the smallest variant in MiB; 0 where it varies.
        runtimes: Runtimes that run there.
        format: File format that `--format auto` takes.
        schemes: Format to the schemes that the runtime's kernels hold up on this CPU.
        aliases: Other names.
        sources: Field to the document that states it.
    """

    name: str
    description: str
    family: str
    cpu: str
    isa: tuple[str, ...]
    cores: int
    mhz: int
    ram_mb: int
    runtimes: tuple[str, ...]
    format: str
    schemes: Mapping[str, tuple[str, ...]]
    aliases: tuple[str, ...] = ()
    sources: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.cores < 1 or min(self.mhz, self.ram_mb) < 0:
            raise InternalError(f"target {self.name!r} has impossible figures", code="EQ-Z041")
        if self.format not in self.runtimes or set(self.schemes) != set(self.runtimes):
            raise InternalError(f"target {self.name!r} names a format without a runtime", code="EQ-Z041")

    @property
    def dot_product(self) -> bool:
        """Whether the CPU multiplies and adds four bytes in one instruction (`asimddp`, `avx512_vnni`, `avx_vnni`)."""
        return bool({"asimddp", "avx512_vnni", "avx_vnni"} & set(self.isa))

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "name": self.name,
            "description": self.description,
            "family": self.family,
            "cpu": self.cpu,
            "isa": list(self.isa),
            "cores": self.cores,
            "mhz": self.mhz,
            "ram_mb": self.ram_mb,
            "runtimes": list(self.runtimes),
            "format": self.format,
            "schemes": {name: list(schemes) for name, schemes in self.schemes.items()},
            "aliases": list(self.aliases),
            "dot_product": self.dot_product,
            "sources": dict(self.sources or {}),
        }
