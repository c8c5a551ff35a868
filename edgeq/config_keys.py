"""The settings table: for each key of an export what it accepts, an example and a line of help.

One truth for the validation of `ExportConfig`, the commented file of `edgeq init` and the messages about bad values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from edgeq.errors import unknown_name
from edgeq.preprocessing import WORDS, changes_of

FORMATS = ("auto", "tflite", "openvino", "onnx", "c")
SUFFIXES = MappingProxyType({".tflite": "tflite", ".xml": "openvino", ".onnx": "onnx", ".intgraph": "c"})
"""Format of a model file by its suffix; what belongs to it (the `.bin` of an `.xml`) has the same stem."""
PEERS = ("nncf", "ort", "aeq")
MIXED = "mixed"
BITS = ("w8a8", "w4a8", MIXED)
SCHEMES = MappingProxyType(
    {
        "auto": "measure the candidates that the target allows, ship the fastest that holds the fidelity floor",
        "weights": "integer weights, float arithmetic; OpenVINO only",
        "dynamic": "integer weights; activations are quantized at run time, which needs no ranges",
        "static": "calibrated integer activations, float islands where they pay (attention, LayerNorm)",
        "integer": "every matrix product and convolution on calibrated integers, attention included",
    }
)
METHODS = MappingProxyType(
    {
        "auto": "what was measured best: `rotate` (weights, dynamic), `transformer`, or `convolution` for such nets",
        "transformer": "rotate streams and heads, centre keys, balance MLPs, split probabilities; then minmax",
        "convolution": "even out the channels of convolutions, around SiLU and ReLU; then mse",
        "rotate": "rotate residual streams only, which needs no data; then minmax",
        "minmax": "the full range that calibration saw; no value is clipped",
        "percentile": "cut rare outliers on both sides: `percentile:P` keeps the share P in (0.5, 1]; 1 equals minmax",
        "mse": "the range with the least mean squared error of the quantized histogram",
        "sparse_grid": "the same between half and all of the range; for maps that are mostly zeros (LiDAR-PTQ)",
    }
)


ROUNDINGS = MappingProxyType(
    {
        "auto": "what was measured best: `gptq`, or `nearest` where the method is a range",
        "nearest": "each weight to the nearest code",
        "gptq": "input by input, the rest makes good what rounding does wrong (GPTQ)",
        "coordinate": "GPTQ, then single codes moved while the output improves",
        "erq": "ridge regression, then halves of the inputs refined and corrected (ERQ)",
        "adaround": "learns for each weight whether to round up or down (AdaRound); slow",
        "flexround": "learns divisors of weights and the scales; codes may move far (FlexRound); slow",
        "signround": "learns shifts and clips by the sign of the gradient (SignRound); slow",
        "decoupleq": "best codes for the grid and best grid for the codes, in turn (decoupleQ); slow",
    }
)


SELECTIONS = MappingProxyType(
    {
        "random": "as the seed draws them",
        "diverse": "those that the network tells apart best, of eight times as many that the seed draws",
    }
)
"""How calibration samples are chosen; copies of each other and of what is measured on are never taken."""

KEEP_FLOAT = MappingProxyType(
    {"auto": "operations stay float where 8 bits cost the outputs most, by measurement; convolutional networks only"}
)
"""What `--keep-float` takes besides numbers and names."""


def split_bits(bits: str) -> tuple[int, int]:
    """Widths of weights and activations in a spelling such as `w4a8`; of `mixed`, those that are not narrowed."""
    if bits == MIXED:
        return 8, 8
    weights, _, activations = bits.removeprefix("w").partition("a")
    return int(weights), int(activations)


@dataclass(frozen=True)
class Key:
    """One setting.

    Args:
        name: Field of `ExportConfig`.
        help: One line for people.
        expected: What a value must be, completing "is not ...".
        example: A valid value, spelled as in `edgeq.toml`.
        check: Turns a native value into the field's value; ValueError, TypeError or an EdgeqError when unusable.
        parse: Turns the text of an environment variable into a native value; ValueError when it cannot be read.
    """

    name: str
    help: str
    expected: str
    example: str
    check: Callable[[object], object]
    parse: Callable[[str], object] = str


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError
    return value


def _path(value: object) -> Path:
    if isinstance(value, Path):
        return value
    try:
        return Path(_text(value)).expanduser()
    except RuntimeError as exc:  # ~nobody
        raise ValueError from exc


def _whole(low: int, high: int | None = None) -> Callable[[object], int]:
    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
            raise ValueError
        return value

    return check


def _number(low: float) -> Callable[[object], float]:
    def check(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError
        try:
            number = float(value)
        except OverflowError as exc:
            raise ValueError from exc
        if not math.isfinite(number) or number < low:
            raise ValueError
        return number

    return check


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _flag_text(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError


def _name(kind: str, known: tuple[str, ...]) -> Callable[[object], str]:
    def check(value: object) -> str:
        if (name := _text(value)) not in known:
            raise unknown_name(kind, name, known, code="EQ-U007")
        return name

    return check


def _method(value: object) -> str:
    name, colon, share = _text(value).partition(":")
    if name not in METHODS or (colon and name != "percentile"):
        spelled = ("percentile:P" if known == "percentile" else known for known in METHODS)
        raise unknown_name("method", _text(value), spelled, code="EQ-U007", command="edgeq methods")
    if name == "percentile" and not 0.5 < float(share) <= 1:
        raise ValueError
    return _text(value)


def _keep_float(value: object) -> str:
    text = _text(value)
    return text if text.isdigit() or text in ("auto", "none") else _names(text)


def _names(value: object) -> str:
    names = [name.strip() for name in _text(value).split(",")]
    if not all(re.fullmatch(r"[\w*?\[\]]+", name) for name in names):
        raise ValueError
    return ",".join(dict.fromkeys(names))


def _shape(value: object) -> str:
    sides = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", _text(value).strip().lower())
    if sides is None:
        raise ValueError
    return f"{sides[1]}x{sides[2]}"


def _preprocess(value: object) -> str:
    words = _text(value)
    changes_of(words)
    return words


def _patches(value: object) -> str:
    text = _text(value)
    if text not in ("auto", "none") and not (text.isascii() and text.isdigit() and 2 <= int(text) <= 256):
        raise ValueError
    return text


def _peers(value: object) -> str:
    names = [_name("peer", PEERS)(name.strip()) for name in _text(value).split(",")]
    return ",".join(dict.fromkeys(names))


def _runs(value: object) -> int | str:
    return "auto" if value == "auto" else _whole(1)(value)


def _runs_text(text: str) -> object:
    return text if text == "auto" else int(text)


_TABLE = (
    Key("model", "family:variant, a reference name, or a model file", "the name of a model", '"vit_nano"', _text),
    Key("device", "target, see `edgeq devices`", "the name of a target", '"rpi"', _text),
    Key("family", "family of a model file, where it cannot be inferred", "the name of a family", '"vit"', _text),
    Key("weights", "checkpoint to load into a named architecture", "a path", '"model.safetensors"', _path),
    Key(
        "shape",
        "height and width that an ONNX network is to take: open in its file, or replaced where all of it follows",
        "HEIGHTxWIDTH",
        '"480x640"',
        _shape,
    ),
    Key(
        "preprocess",
        "how photos become the input, where the file does not tell",
        f"words of {WORDS}",
        '"half,squash"',
        _preprocess,
    ),
    Key("format", "artifact format", "a format", '"auto"', _name("format", FORMATS)),
    Key("bits", "widths of weights and activations", "a width", '"w8a8"', _name("bits", BITS)),
    Key("budget_kb", "largest size of the model file, in kB", "a number of kilobytes", "12000", _number(0), float),
    Key(
        "budget_minutes",
        "time to learn roundings on the calibration samples, in minutes",
        "a number of minutes, at least 0",
        "20",
        _number(0),
        float,
    ),
    Key("learn_steps", "the same as steps per block", "a whole number of at least 1", "200", _whole(1), int),
    Key("scheme", "what runs as integers", "a scheme", '"auto"', _name("scheme", tuple(SCHEMES))),
    Key(
        "method",
        "how ranges are chosen, see `edgeq methods`",
        "a method (for `percentile:P`, P lies in (0.5, 1])",
        '"percentile:0.9999"',
        _method,
    ),
    Key(
        "rounding",
        "how weights are rounded, see `edgeq methods`",
        "a rounding",
        '"auto"',
        _name("rounding", tuple(ROUNDINGS)),
    ),
    Key(
        "keep_float",
        "operations that stay float: auto (chosen by measurement in convolutional networks), none, the N worst, names",
        "auto, none, a number, or names of operations separated by commas",
        '"auto"',
        _keep_float,
    ),
    Key(
        "narrow",
        "layers whose weights get 4 bits, by name, see `edgeq search`",
        "names of layers separated by commas",
        '"blocks_0_mlp_fc1"',
        _names,
    ),
    Key(
        "patches",
        "on microcontrollers, run the first layers in bands of rows: auto (where RAM is short), none, how many",
        "auto, none or a number from 2 to 256",
        '"auto"',
        _patches,
    ),
    Key("calib", "calibration samples: folder, packed .npz or one file", "a path", '"photos"', _path),
    Key("degrade", "degradations of half of them, see `edgeq validate --help`", "a list of names", '"mix"', _text),
    Key("samples", "number of calibration samples", "a whole number of at least 1", "128", _whole(1), int),
    Key("select", "how they are chosen: random, or diverse", "a rule", '"random"', _name("rule", tuple(SELECTIONS))),
    Key("data", "labelled data for the task metric", "a path", '"test.npz"', _path),
    Key("limit", "evaluate at most this many items", "a whole number of at least 1", "1000", _whole(1), int),
    Key("out", "folder of the artifact; default out/MODEL-DEVICE", "a path", '"out/mine"', _path),
    Key("exist", "when that folder exists", "a choice", '"fail"', _name("exist", ("fail", "replace"))),
    Key("dry_run", "decide and report, write nothing", "true or false", "false", _flag, _flag_text),
    Key(
        "min_sqnr_db",
        "floor of the median fidelity to float, in dB",
        "a number of decibels",
        "20.0",
        _number(-1e9),
        float,
    ),
    Key(
        "max_drop",
        "largest accepted drop of the metric, in points",
        "a number of points, at least 0",
        "0.5",
        _number(0),
        float,
    ),
    Key("force", "ship although a gate failed", "true or false", "false", _flag, _flag_text),
    Key("compare", "other quantizers to run on the same model and data", "a list of peers", '"nncf,ort,aeq"', _peers),
    Key("runs", "paired latency runs", '"auto" or a whole number of at least 1', '"auto"', _runs, _runs_text),
    Key("seed", "seed of every random choice", "a whole number from 0 to 4294967295", "0", _whole(0, 2**32 - 1), int),
    Key("threads", "CPU threads", "a whole number from 1 to 1024", "4", _whole(1, 1024), int),
)
KEYS = MappingProxyType({key.name: key for key in _TABLE})
PATHS = frozenset(key.name for key in _TABLE if key.check is _path)


def template() -> str:
    """A commented `edgeq.toml` with every key."""
    lines = [
        "# Settings of edgeq. Flags and EDGEQ_* variables win over this file; paths are relative to its folder.",
        "# `edgeq export --show-config` prints every value and where it comes from.",
        "",
        "[export]",
    ]
    lines += [f"{f'# {key.name} = {key.example}':<36}# {key.help}" for key in _TABLE]
    lines += ["", "# What changes for one target:", "# [device.rpi4]", "# threads = 2", ""]
    return "\n".join(lines)
