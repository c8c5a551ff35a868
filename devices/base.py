"""`Target`: what a piece of hardware is and can run, as data; and what every runtime offers (`RuntimeModel`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from edgeq.errors import InternalError

if TYPE_CHECKING:  # numpy is not needed to look at targets
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[Any]"


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
        ram_mb: Memory of the smallest variant in MiB; 0 where it varies, and where `ram_kb` says it.
        runtimes: Runtimes that run there.
        format: File format that `--format auto` takes.
        schemes: Format to the schemes that the runtime's kernels hold up on this CPU.
        aliases: Other names.
        sources: Field to the document that states it.
        flash_kb: Flash of a microcontroller in KiB; 0 where it varies.
        ram_kb: RAM of a microcontroller in KiB; 0 where it varies.
        machine: The machine of QEMU with such a core, if there is one.
        defaults: Settings of an export that are better here than the general ones.
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
    flash_kb: int = 0
    ram_kb: int = 0
    machine: str = ""
    defaults: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.cores < 1 or min(self.mhz, self.ram_mb, self.flash_kb, self.ram_kb) < 0:
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
            "flash_kb": self.flash_kb,
            "ram_kb": self.ram_kb,
            "machine": self.machine,
            "defaults": dict(self.defaults or {}),
            "sources": dict(self.sources or {}),
        }


@dataclass(frozen=True)
class ExecutedOp:
    """An operation as the runtime executes it, after its own fusions.

    Args:
        name: The runtime's name for it.
        op: The runtime's kind (`FULLY_CONNECTED`, `Convolution`).
        kernel: Implementation that runs it (`XNNPACK`, `brgemm_avx512_I8`).
        integer: Whether it is an operation on integers.
        covers: Operations of the file that it stands for, by name.
    """

    name: str
    op: str
    kernel: str
    integer: bool
    covers: tuple[str, ...]


@dataclass(frozen=True)
class Execution:
    """What a runtime made of a file.

    Args:
        ops: Executed operations, in order.
        partitions: Parts that a delegate runs; 1 where the runtime compiles the graph as a whole.
        conversions: Operations that only convert between integers and float.
        settings: Options the model was loaded with that change its results.
    """

    ops: tuple[ExecutedOp, ...]
    partitions: int = 1
    conversions: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)

    def kernels(self) -> dict[str, int]:
        """How often each kernel ran, by `KIND kernel`."""
        counts = Counter(f"{o.op} {o.kernel}" for o in self.ops)
        return dict(sorted(counts.items()))

    def to_dict(self) -> dict[str, Any]:
        """JSON form for `evidence.json`."""
        return {"kernels": self.kernels(), "conversions": self.conversions, "settings": dict(self.settings)}


@dataclass(frozen=True)
class LayerCost:
    """What a layer costs on a device.

    Args:
        name: Of the layer.
        op: Kind of operation.
        value: Milliseconds or instructions.
    """

    name: str
    op: str
    value: float


@runtime_checkable
class Recording(Protocol):
    """A model that shows what it computes on the way."""

    def record(self, names: Collection[str], *arrays: Array) -> dict[str, Array]:
        """Run once and return tensors of the file as real values, by name; those that it does not have are absent.

        Kernels may be fused less than in `run`: what is read has to be written.
        """


class RuntimeModel(Protocol):
    """A model file loaded by its runtime in this process: real arrays in, real arrays out."""

    threads: int

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        """Run once: one array per input, of the input's exact shape; the outputs survive the next run."""

    def prepare(self, *arrays: Array) -> None:
        """Place the inputs, so that `invoke` can be timed alone."""

    def invoke(self) -> None:
        """Run once on the inputs placed by `prepare`; nothing is copied."""

    def execution(self) -> Execution:
        """What the runtime really executes."""
