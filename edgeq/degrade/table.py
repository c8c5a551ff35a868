"""All degradations with their levels, the named sets of them, and their spelling on a command line."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

from edgeq.degrade import audio, image, points
from edgeq.degrade.base import SEVERITIES, Condition, Degradation, Kind
from edgeq.errors import UsageError, unknown_name

QRID = "QRID"
"""A study of quantized YOLO12 on degraded photos; levels read from its scripts."""

_ALL = (
    Degradation("noise", "image", "sigma of 255", (8, 15, 25, 40, 60), image.gaussian_noise, "sensor noise"),
    Degradation("shot", "image", "photons at white", (800, 300, 120, 50, 20), image.shot_noise, "photon noise"),
    Degradation("blur", "image", "% of the shorter side", (0.3, 0.6, 1.0, 1.5, 2.2), image.gaussian_blur, "defocus"),
    Degradation("motion", "image", "% of the shorter side", (1, 2, 3.5, 5, 7), image.motion_blur, "movement"),
    Degradation("contrast", "image", "factor", (0.75, 0.6, 0.45, 0.3, 0.2), image.contrast, "low contrast"),
    Degradation("dark", "image", "stops", (1, 1.75, 2.5, 3.25, 4), image.low_light, "too little light"),
    Degradation("jpeg", "image", "quality", (60, 40, 25, 15, 8), image.jpeg, "strong compression"),
    Degradation("pixelate", "image", "share of a side", (0.7, 0.5, 0.4, 0.3, 0.2), image.pixelate, "few pixels"),
    Degradation("haze", "image", "transmission", (0.8, 0.65, 0.5, 0.35, 0.25), image.veil, "haze, without depth"),
    Degradation("noise_low", "image", "sigma of 255", ((10, 30),), image.grey_noise, "QRID's low noise", QRID),
    Degradation("noise_med", "image", "sigma of 255", ((35, 55),), image.grey_noise, "QRID's medium noise", QRID),
    Degradation("blur_low", "image", "kernels of 3 or 5 px", (1,), image.kernel_blur, "QRID's low blur", QRID),
    Degradation("blur_med", "image", "kernels of 7 to 11 px", (2,), image.kernel_blur, "QRID's medium blur", QRID),
    Degradation("contrast_low", "image", "factor", ((0.4, 0.7),), image.scaled_contrast, "QRID's low contrast", QRID),
    Degradation("jpeg_mod", "image", "quality", ((50, 75),), image.jpeg, "QRID's moderate JPEG", QRID),
    Degradation("jpeg_heavy", "image", "quality", ((20, 45),), image.jpeg, "QRID's heavy JPEG", QRID),
    Degradation("white", "recording", "dB SNR", (30, 20, 15, 10, 5), audio.white_noise, "white noise"),
    Degradation("babble", "recording", "dB SNR", (30, 20, 15, 10, 5), audio.speech_noise, "speech-shaped noise"),
    Degradation("reverb", "recording", "s RT60", (0.2, 0.4, 0.7, 1.0, 1.5), audio.reverberation, "a hollow room"),
    Degradation("clip", "recording", "dB over the limit", (6, 12, 18, 24, 30), audio.clipping, "overdriven microphone"),
    Degradation("band", "recording", "Hz", (6000, 4000, 3400, 2500, 1800), audio.band_limit, "narrow band"),
    Degradation("mulaw", "recording", "bits", (8, 7, 6, 5, 4), audio.companding, "coarse line coding"),
    Degradation("dropout", "recording", "% of packets", (2, 5, 10, 20, 30), audio.dropouts, "lost packets"),
    Degradation("jitter", "cloud", "% of the radius", (0.5, 1, 2, 3, 5), points.jitter, "range noise"),
    Degradation("thinning", "cloud", "% of the points", (25, 50, 70, 80, 90), points.thinning, "few returns"),
    Degradation("occlusion", "cloud", "% of the points", (10, 20, 30, 40, 50), points.occlusion, "a part is hidden"),
    Degradation("outliers", "cloud", "% of the points", (1, 2, 5, 10, 20), points.outliers, "stray returns"),
    Degradation("falloff", "cloud", "times fewer far off", (2, 4, 8, 16, 32), points.falloff, "density by distance"),
)
DEGRADATIONS: MappingProxyType[str, Degradation] = MappingProxyType({d.name: d for d in _ALL})

SETS: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {
        "all": tuple(d.name for d in _ALL if not d.source),
        "qrid": tuple(d.name for d in _ALL if d.source == QRID),
        "mix": (
            *(d.name for d in _ALL if d.source == QRID),
            *("white", "babble", "reverb", "clip"),
            *("jitter", "thinning", "occlusion", "outliers"),
        ),
    }
)
"""`all`: everything with five severities. `qrid`: the seven of that study, each at its own level. `mix`: what
calibration samples are mixed with, the same seven for images."""

MIX_SEVERITIES = (1, 2, 3)
"""Of what calibration samples are mixed with, where no severity is named."""


def parse_conditions(text: str, severities: Sequence[int], kind: Kind) -> tuple[Condition, ...]:
    """The conditions that `--degrade` and `--severity` name, for samples of a kind.

    Args:
        text: Names or sets, separated by commas; `name:severity` fixes one severity.
        severities: For names without one; those that a degradation does not have are left out.
        kind: Members of sets for other samples are left out; other names are refused.

    Raises:
        UsageError: EQ-U750 for a severity that does not exist, EQ-U751 for samples of another kind, EQ-U752 for an
            unknown name.
    """
    found: dict[str, Condition] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, fixed = part.partition(":")
        if name not in SETS and name not in DEGRADATIONS:
            raise unknown_name("degradation", name, [*SETS, *DEGRADATIONS], code="EQ-U752")
        members = [DEGRADATIONS[m] for m in SETS.get(name, (name,))]
        usable = [d for d in members if d.kind == kind]
        if not usable:
            raise UsageError(
                f"{name} degrades {members[0].kind}s, and these samples are {kind}s",
                code="EQ-U751",
                place="--degrade",
                hint=f"use {', '.join(d.name for d in _ALL if d.kind == kind)}",
            )
        for degradation in usable:
            for severity in _severities(degradation, fixed, severities, part):
                condition = Condition(degradation, severity)
                found[condition.name] = condition
    return tuple(found.values())


def _severities(degradation: Degradation, fixed: str, wanted: Sequence[int], part: str) -> Sequence[int]:
    offered = degradation.severities
    if not fixed:
        return [s for s in wanted if s in offered] or offered[:1]
    if not fixed.isdecimal() or int(fixed) not in offered:
        levels = f"1 to {offered[-1]}" if len(offered) > 1 else "only 1"
        raise UsageError(
            f"{part}: the severities of {degradation.name} are {levels}",
            code="EQ-U750",
            place="--degrade",
            hint=f"of {', '.join(map(str, SEVERITIES))}, such as {degradation.name}:{offered[-1]}",
        )
    return (int(fixed),)
