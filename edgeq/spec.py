"""What is quantized and how, as plain data: specs (wishes), parameters (results) and the plan (everything together).

`QuantSpec` says which grid a tensor should get, `QParams` (evenly spaced) or `TableParams` (any levels) is the grid it
got, `QuantPlan` is the complete decision for a graph and the only thing that passes between calibration, rounding,
allocation and legalizing. All round-trip through JSON. No torch here.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import InternalError, UsageError

Role = Literal["weight", "activation"]
Mode = Literal["static", "dynamic", "weights", "float"]


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor: `(...) -> scale ()`."""


@dataclass(frozen=True)
class PerChannel:
    """One scale per index of `axis`: `(O, I) -> scale (O,)` for axis 0."""

    axis: int = 0


@dataclass(frozen=True)
class PerGroup:
    """One scale per run of `size` consecutive values of the flattened row: `(O, I) -> scale (O, I / size)`.

    Args:
        size: Values that share a scale.
        half: Scales are numbers that float16 and bfloat16 both hold, see `half_scales`.
        two_level: Scales of a row are whole multiples of one step, see `two_levels`. Code times multiple is then an
            8-bit code, and the step the one scale of its row, which is what integer kernels read.
    """

    size: int = 32
    half: bool = False
    two_level: bool = False


HALF_SCALES = (2.0**-14, 255 * 2.0**8)
"""Smallest and largest of the scales that `half_scales` gives: ordinary numbers of float16."""


def half_scales(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest scales with eight significant bits in the range of float16.

    A kernel that reads float16 and one that rounds them to bfloat16 then compute the same.
    """
    result: NDArray[np.float32] = np.clip(_significant(scales, 8), *HALF_SCALES).astype(np.float32)
    return result


STEP_BITS = 16
"""Significant bits of the steps of two-level scales: every multiple by an 8-bit code is exact in float32, so that codes
times scales and 8-bit codes times steps are the same numbers."""


def two_levels(scales: NDArray[np.floating[Any]], largest: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The nearest scales that are whole multiples of a step a row; of equally near ones those with the largest steps.

    Args:
        scales: Positive, `(rows, groups)`.
        largest: Largest multiple.

    Returns:
        Steps `(rows,)` of `STEP_BITS` significant bits and multiples `(rows, groups)`, 1 to `largest`.
    """
    wanted = np.asarray(scales, np.float64)
    top = wanted.max(1, keepdims=True)
    steps, least = top, np.full_like(top, np.inf)
    for parts in range(1, largest + 1):
        step = _significant(top / parts, STEP_BITS)
        apart = np.abs(np.clip(np.rint(wanted / step), 1, largest) * step - wanted)
        error = np.square(apart).sum(1, keepdims=True)
        steps, least = np.where(error < least, step, steps), np.minimum(error, least)
        least[apart.max(1, keepdims=True) <= top * 2.0**-STEP_BITS] = 0  # the same but for the rounding of steps
    multiples = np.clip(np.rint(wanted / steps), 1, largest).astype(np.int32)
    common = np.gcd.reduce(multiples, axis=1, keepdims=True)
    steps = _significant(steps * common, STEP_BITS)
    return steps[:, 0].astype(np.float32), multiples // common


def _significant(values: NDArray[np.floating[Any]], bits: int) -> NDArray[np.floating[Any]]:
    """The nearest values with so many significant bits."""
    fraction, exponent = np.frexp(values)
    rounded: NDArray[np.floating[Any]] = np.ldexp(np.rint(fraction * 2**bits) / 2**bits, exponent)
    return rounded


Granularity: TypeAlias = PerTensor | PerChannel | PerGroup


def granularity_to_dict(granularity: Granularity) -> dict[str, Any]:
    """JSON form of a granularity."""
    return {"kind": type(granularity).__name__, **asdict(granularity)}


def granularity_from_dict(data: Mapping[str, Any]) -> Granularity:
    """Inverse of `granularity_to_dict`."""
    kinds: dict[str, type[PerTensor] | type[PerChannel] | type[PerGroup]] = {
        "PerTensor": PerTensor,
        "PerChannel": PerChannel,
        "PerGroup": PerGroup,
    }
    values = dict(data)
    kind = values.pop("kind", None)
    if kind not in kinds:
        raise UsageError(f"unknown granularity {kind!r}", code="EQ-U003", hint=f"known: {', '.join(kinds)}")
    return kinds[kind](**values)


@dataclass(frozen=True)
class QuantSpec:
    """The grid a tensor should get.

    Args:
        bits: Width of a code, 2 to 16.
        symmetric: Zero point fixed at 0.
        granularity: Which values share a scale.
        observer: How the range is chosen: `minmax`, `percentile:P` with P in (0.5, 1], `mse` or `sparse_grid`.
        narrow: Leave the lowest code unused (`-127..127` for 8 bit), as integer kernels require of weights.
    """

    bits: int = 8
    symmetric: bool = False
    granularity: Granularity = field(default_factory=PerTensor)
    observer: str = "minmax"
    narrow: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise UsageError(f"bits must be 2 to 16, not {self.bits}", code="EQ-U003")
        group = self.granularity
        if isinstance(group, PerGroup) and group.size < 1:
            raise UsageError(f"group size must be positive, not {group.size}", code="EQ-U003")
        if (
            isinstance(group, PerGroup)
            and group.two_level
            and (group.half or not self.symmetric or self.largest_multiple < 2)
        ):
            message = "two-level scales have steps in float32 and symmetric codes of 7 bits at most"
            raise UsageError(message, code="EQ-U003")

    @property
    def two_level(self) -> bool:
        """Whether scales are whole multiples of a step a row."""
        return isinstance(self.granularity, PerGroup) and self.granularity.two_level

    @property
    def largest_multiple(self) -> int:
        """Of two-level scales: the largest that keeps code times multiple an 8-bit code."""
        return 127 // max(-self.qmin, self.qmax)

    @property
    def qmin(self) -> int:
        """Lowest code (codes are signed)."""
        return -(1 << (self.bits - 1)) + int(self.narrow)

    @property
    def qmax(self) -> int:
        """Highest code."""
        return (1 << (self.bits - 1)) - 1

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "bits": self.bits,
            "symmetric": self.symmetric,
            "granularity": granularity_to_dict(self.granularity),
            "observer": self.observer,
            "narrow": self.narrow,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> QuantSpec:
        """Inverse of `to_dict`."""
        return cls(**{**data, "granularity": granularity_from_dict(data["granularity"])})


@dataclass(frozen=True, eq=False)
class QParams:
    """The uniform grid a tensor got: `real = scale * (code - zero_point)`.

    Args:
        spec: The grid's shape (bits, symmetry, granularity).
        scale: Positive float32; shape `()`, `(channels,)` or `(rows, groups)` by granularity, which may round it.
        zero_point: int32 of the same shape, within the codes.
    """

    spec: QuantSpec
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]

    def __post_init__(self) -> None:
        scale = np.asarray(self.scale, dtype=np.float32)
        object.__setattr__(self, "zero_point", np.asarray(self.zero_point, dtype=np.int32))
        if scale.shape != self.zero_point.shape:
            message = f"scale {scale.shape} and zero point {self.zero_point.shape} differ in shape"
            raise UsageError(message, code="EQ-U003")
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise UsageError("scales must be positive and finite", code="EQ-U003")
        granularity = self.spec.granularity
        if isinstance(granularity, PerGroup) and granularity.half:
            scale = half_scales(scale)
        if self.spec.two_level:
            if scale.ndim != 2:
                raise UsageError(f"scales {scale.shape} are not (rows, groups)", code="EQ-U003")
            steps, multiples = two_levels(scale, self.spec.largest_multiple)
            scale = steps[:, None] * multiples.astype(np.float32)
        object.__setattr__(self, "scale", scale)
        if ((self.zero_point < self.spec.qmin) | (self.zero_point > self.spec.qmax)).any():
            raise UsageError("a zero point lies outside the codes", code="EQ-U003")

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, QParams)
            and self.spec == other.spec
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def __hash__(self) -> int:
        return hash((self.spec, self.scale.tobytes(), self.zero_point.tobytes()))

    @property
    def multiples(self) -> NDArray[np.int32] | None:
        """Of two-level scales: how many steps each is, `(rows, groups)`; None of others."""
        return two_levels(self.scale, self.spec.largest_multiple)[1] if self.spec.two_level else None

    def on_rows(self) -> QParams:
        """Of two-level scales: the 8-bit grid, its scales the steps, that holds the same reals; itself of others."""
        if not self.spec.two_level:
            return self
        steps, _ = two_levels(self.scale, self.spec.largest_multiple)
        spec = replace(self.spec, bits=8, granularity=PerChannel(0), narrow=True)
        return QParams(spec, steps, np.zeros(steps.shape, np.int32))

    def to_dict(self) -> dict[str, Any]:
        """JSON form; float32 values survive the decimal round trip. Two-level scales are steps and multiples."""
        rows, multiples = self.on_rows(), self.multiples
        scale = {"scale": rows.scale.astype(float).tolist()}
        if multiples is not None:
            scale = {"step": scale["scale"], "multiple": multiples.tolist()}
        return {"spec": self.spec.to_dict(), **scale, "zero_point": self.zero_point.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> QParams:
        """Inverse of `to_dict`."""
        scale = data["scale"] if "scale" in data else np.asarray(data["step"])[:, None] * data["multiple"]
        return cls(QuantSpec.from_dict(data["spec"]), np.asarray(scale), np.asarray(data["zero_point"]))


@dataclass(frozen=True, eq=False)
class TableParams:
    """A grid that is not uniform: a code is an index into a table of levels, `real = levels[code]`.

    Args:
        kind: Name of the quantizer that maps reals to codes, such as `log2`.
        bits: Width of a code, 2 to 16.
        parameters: What that quantizer needs: one number, or one per head.
        levels: Finite float32 `(n,)`, or `(heads, n)` where every head has its own table; n is at most `2^bits`.
    """

    kind: str
    bits: int
    parameters: Mapping[str, float | tuple[float, ...]]
    levels: NDArray[np.float32]

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", np.asarray(self.levels, dtype=np.float32))
        values = {k: tuple(map(float, v)) if isinstance(v, Sequence) else float(v) for k, v in self.parameters.items()}
        object.__setattr__(self, "parameters", values)
        if not 2 <= self.bits <= 16:
            raise UsageError(f"bits must be 2 to 16, not {self.bits}", code="EQ-U200")
        if self.levels.ndim not in (1, 2) or self.levels.size == 0 or not np.isfinite(self.levels).all():
            message = f"levels must be finite numbers of shape (n,) or (heads, n), not {self.levels.shape}"
            raise UsageError(message, code="EQ-U200", hint="take them from the levels() of a quantizer")
        if self.levels.shape[-1] > 1 << self.bits:
            message = f"{self.levels.shape[-1]} levels do not fit {self.bits} bits"
            raise UsageError(message, code="EQ-U200", hint="a published form with an extra zero level cannot be stored")
        heads = {len(v) for v in values.values() if isinstance(v, tuple)}
        if heads - {len(self.levels) if self.levels.ndim == 2 else 0}:
            message = f"parameters for {sorted(heads)} heads, levels of shape {self.levels.shape}"
            raise UsageError(message, code="EQ-U200", hint="give every parameter once, or once per row of levels")

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TableParams)
            and (self.kind, self.bits, self.parameters) == (other.kind, other.bits, other.parameters)
            and np.array_equal(self.levels, other.levels)
        )

    def __hash__(self) -> int:
        return hash((self.kind, self.bits, tuple(sorted(self.parameters.items())), self.levels.tobytes()))

    def to_dict(self) -> dict[str, Any]:
        """JSON form; float32 values survive the decimal round trip."""
        return {
            "kind": self.kind,
            "bits": self.bits,
            "parameters": {k: list(v) if isinstance(v, tuple) else v for k, v in self.parameters.items()},
            "levels": self.levels.astype(float).tolist(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TableParams:
        """Inverse of `to_dict`."""
        return cls(data["kind"], data["bits"], data["parameters"], np.asarray(data["levels"]))


def grid_from_dict(data: Mapping[str, Any]) -> QParams | TableParams:
    """Inverse of the `to_dict` of either kind of grid."""
    return TableParams.from_dict(data) if "levels" in data else QParams.from_dict(data)


@dataclass(frozen=True)
class TensorPlan:
    """One tensor's grid.

    Args:
        name: Graph tensor: the FX node that produces it (activation) or the attribute path (weight).
        role: `weight` or `activation`.
        qparams: The grid; what only knows uniform grids reads it as `uniform`.
        provenance: Where the grid comes from, for people ("percentile:0.9999 over 96 samples", "fixed by SOFTMAX").
        rounding: How weights were rounded onto the grid; empty for activations.
        codes_sha256: Hash of the integer codes (weights only), so that an artifact can be proven to hold them.
    """

    name: str
    role: Role
    qparams: QParams | TableParams
    provenance: str
    rounding: str = ""
    codes_sha256: str = ""

    @property
    def uniform(self) -> QParams:
        """The grid where only a uniform one can stand.

        Raises:
            InternalError: It is a table: placement let it reach a backend that has none.
        """
        if isinstance(self.qparams, TableParams):
            message = f"{self.name} is on a {self.qparams.kind} grid where only a uniform one can be used"
            raise InternalError(message, code="EQ-Z200", place=self.name)
        return self.qparams

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.qparams.bits if isinstance(self.qparams, TableParams) else self.qparams.spec.bits


@dataclass(frozen=True)
class OpPlan:
    """How one operation runs.

    Args:
        name: FX node name.
        op: Operation in plain words (`linear`, `conv2d`, `matmul`, ...).
        mode: `static` (calibrated integers), `dynamic` (activations quantized at run time), `weights` (integer weights,
            float arithmetic) or `float`.
        reason: Why it stays float; empty otherwise.
    """

    name: str
    op: str
    mode: Mode
    reason: str = ""


@dataclass(frozen=True)
class QuantPlan:
    """The complete quantization decision for one graph.

    Args:
        scheme: `weights`, `dynamic`, `static` or `integer`.
        tensors: Grids by tensor name.
        ops: Modes by operation name, in execution order.
        notes: How the float graph was transformed before, and what was left alone and why; for people.
    """

    scheme: str
    tensors: Mapping[str, TensorPlan]
    ops: Mapping[str, OpPlan]
    notes: tuple[str, ...] = ()

    def weights(self) -> list[TensorPlan]:
        """The quantized weights, in order."""
        return [t for t in self.tensors.values() if t.role == "weight"]

    def to_dict(self) -> dict[str, Any]:
        """JSON form, schema `edgeq.plan/1`."""
        return {
            "schema": "edgeq.plan/1",
            "scheme": self.scheme,
            "tensors": [{**_shallow(t), "qparams": t.qparams.to_dict()} for t in self.tensors.values()],
            "ops": [_shallow(o) for o in self.ops.values()],
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> QuantPlan:
        """Inverse of `to_dict`."""
        if data.get("schema") != "edgeq.plan/1":
            raise UsageError(f"not a plan: schema {data.get('schema')!r}", code="EQ-U003")
        tensors = [TensorPlan(**{**t, "qparams": grid_from_dict(t["qparams"])}) for t in data["tensors"]]
        ops = [OpPlan(**o) for o in data["ops"]]
        named = {t.name: t for t in tensors}, {o.name: o for o in ops}
        return cls(data["scheme"], *named, tuple(data.get("notes", ())))


def _shallow(value: TensorPlan | OpPlan) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


_SETTINGS = ("mode", "weight", "activation", "output", "reason")


@dataclass(frozen=True)
class QuantRule:
    """One line of a `QuantConfig`: what matches gets these settings; None leaves a setting as it was.

    Args:
        name: Glob over operation names (`blocks_0_*`).
        op: Glob over operation kinds (`linear`, `conv2d`, `*`).
        mode: `static`, `dynamic`, `weights` or `float`.
        weight: Spec of the weights.
        activation: Spec of the activations.
        output: Spec of the result, where it differs from what is read.
        reason: Why what matches stays float, for people.
    """

    name: str = "*"
    op: str = "*"
    mode: Mode | None = None
    weight: QuantSpec | None = None
    activation: QuantSpec | None = None
    output: QuantSpec | None = None
    reason: str | None = None


@dataclass(frozen=True)
class OpConfig:
    """What a `QuantConfig` decides for one operation."""

    mode: Mode
    weight: QuantSpec
    activation: QuantSpec
    output: QuantSpec | None = None
    reason: str = "kept float by the scheme"


@dataclass(frozen=True)
class Precision:
    """What a user asks of the grids, before a runtime's rules turn it into a `QuantConfig`.

    Args:
        weight_bits: Width of weights; the first and the last layer keep 8.
        activation_bits: Width of activations; likewise.
        observer: Range estimator of activations.
        products_only: Of the integer scheme: only matrix products, convolutions and what moves or pools their codes
            are integers, the arithmetic between them is float.
        narrow: Layers whose weights get 4 bits whatever `weight_bits` says.
        keep_float: Operations that stay float, by name or glob.

    Raises:
        UsageError: A width is not 2 to 16.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    observer: str = "minmax"
    products_only: bool = False
    narrow: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for bits in (self.weight_bits, self.activation_bits):
            if not 2 <= bits <= 16:
                raise UsageError(f"bits must be 2 to 16, not {bits}", code="EQ-U003")


@dataclass(frozen=True)
class QuantConfig:
    """Ordered rules; later rules win.

    Args:
        base: Settings where no rule speaks.
        rules: Exceptions, in order.
    """

    base: OpConfig
    rules: tuple[QuantRule, ...] = ()

    def resolve(self, name: str, op: str) -> OpConfig:
        """Settings of the operation `name` of kind `op`."""
        result = self.base
        for rule in self.rules:
            if fnmatch.fnmatchcase(name, rule.name) and fnmatch.fnmatchcase(op, rule.op):
                changes = {k: v for k in _SETTINGS if (v := getattr(rule, k)) is not None}
                result = replace(result, **changes)
        return result

    def to_dict(self) -> dict[str, Any]:
        """JSON form, schema `edgeq.quant/1`."""

        def spec(value: QuantSpec | None) -> dict[str, Any] | None:
            return None if value is None else value.to_dict()

        def entry(value: OpConfig | QuantRule) -> dict[str, Any]:
            settings = {"mode": value.mode, "weight": spec(value.weight), "activation": spec(value.activation)}
            return {**settings, "output": spec(value.output), "reason": value.reason}

        return {
            "schema": "edgeq.quant/1",
            "base": entry(self.base),
            "rules": [{"name": r.name, "op": r.op, **entry(r)} for r in self.rules],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> QuantConfig:
        """Inverse of `to_dict`."""

        def specs(entry: Mapping[str, Any]) -> dict[str, Any]:
            return {k: QuantSpec.from_dict(v) if isinstance(v, Mapping) else v for k, v in entry.items()}

        return cls(OpConfig(**specs(data["base"])), tuple(QuantRule(**specs(r)) for r in data["rules"]))


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the network's input; stored in the manifest and repeated bit for bit by `run.py`.

    Args:
        height: Input height in pixels.
        width: Input width in pixels.
        mean: Per-channel mean, subtracted after scaling RGB to [0, 1]; of three channels.
        std: Per-channel divisor; 1/255 keeps the range of bytes.
        resize: `crop` (shorter side to `1/crop_fraction` of the input, then centre crop), `squash`, or `letterbox`
            (longer side to the input, the rest a border).
        crop_fraction: Share of the resized image that the centre crop keeps, in (0, 1].
        interpolation: `bilinear` or `bicubic`, both antialiased as in Pillow.
        fill: Grey level of the letterbox's border, 0 to 255.
        align: Where a letterbox puts the image: `center` or `corner` (top left).
        channels: Order of the channels.
    """

    height: int
    width: int
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    resize: Literal["crop", "squash", "letterbox"] = "crop"
    crop_fraction: float = 0.875
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    fill: int = 114
    align: Literal["center", "corner"] = "center"
    channels: Literal["rgb", "bgr"] = "rgb"

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1 or not 0 < self.crop_fraction <= 1 or min(self.std) <= 0:
            raise UsageError(f"impossible preprocessing: {self}", code="EQ-U003")
        if not 0 <= self.fill <= 255 or self.align not in ("center", "corner") or self.channels not in ("rgb", "bgr"):
            raise UsageError(f"impossible preprocessing: {self}", code="EQ-U003")
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))


def codes_hash(codes: NDArray[np.integer[Any]]) -> str:
    """SHA-256 over shape and int32 values of a weight's integer codes; the storage width does not matter."""
    digest = hashlib.sha256(str(codes.shape).encode())
    digest.update(np.ascontiguousarray(codes, dtype="<i4").tobytes())
    return digest.hexdigest()
