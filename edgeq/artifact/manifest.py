"""`manifest.json`: everything that is needed to know, run and rebuild a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, TypeAlias

from edgeq.artifact.files import jsonable, portable
from edgeq.config_keys import SUFFIXES
from edgeq.errors import EdgeqError, InputError
from edgeq.spec import Preprocess

SCHEMA = "edgeq.artifact/1"

Entry: TypeAlias = Mapping[str, Any]

# What each entry of a list, and each mapping, must hold.
_ENTRIES: Mapping[str, Mapping[str, type]] = {
    "calibration": {"id": str, "sha256": str},
    "files": {"path": str, "bytes": int, "sha256": str},
    "inputs": {"name": str, "shape": list},
    "outputs": {"name": str, "shape": list},
}
_VALUES: Mapping[str, type | tuple[type, ...]] = {
    "command": list,
    "config": dict,
    "seed": int,
    "versions": dict,
    "model": dict,
    "weights_sha256": str,
    "target": str,
    "scheme": str,
    "preprocess": (dict, type(None)),
    "labels": (list, type(None)),
    "input_files": dict,
    "golden": dict,
    **dict.fromkeys(_ENTRIES, list),
}


@dataclass(frozen=True)
class GoldenCheck:
    """What a device must reach on the golden vectors.

    Integer kernels differ between runtimes and cores by single steps that deep networks amplify, so the limits are on
    signal and decision, not on the largest difference.

    Args:
        min_sqnr_db: Least signal-to-noise ratio in dB of the median vector against the expected outputs. A right
            runtime on another core gives 25 or more, a wrong kernel around 0.
        min_agreement: Least share of vectors with the expected top class; for models with labels.
    """

    min_sqnr_db: float = 20.0
    min_agreement: float = 0.75


@dataclass(frozen=True)
class Manifest:
    """The manifest, schema `edgeq.artifact/1`.

    Absolute paths in command, configuration and model are reduced to their last part: a bundle says what went in by
    hashes, not by where it lay.

    Args:
        command: The command line, program name left out.
        config: The resolved configuration.
        seed: Seed of every random choice.
        versions: Package to version, of the packages that decide the bytes.
        weights_sha256: Hash over all weights as captured.
        model: Origin of the weights: `name`, `family`, `source`.
        calibration: `{"id", "sha256"}` of each item, in the order used.
        files: `{"path", "bytes", "sha256"}` of each file that the same inputs give again.
        preprocess: How an image becomes the first input; None for models without images.
        inputs: `{"name", "shape"}` of each input, in call order.
        outputs: `{"name", "shape"}` of each output.
        labels: Class names by index of the first output, None for models that do not classify.
        target: Target name.
        scheme: `weights`, `dynamic`, `static` or `integer`.
        input_files: Option (`model`, `calib`, ...) to name of the file or folder it named; `reproduce` asks for these.
        golden: Limits on the golden vectors.
        networks: Folders of the networks of a model that has several, each a bundle of its own; empty for one network.
        driver: Name of the module in the bundle that makes several networks one.
        postprocess: How `detection.py` beside the model makes boxes of the outputs, or `depthmap.py` maps; None for
            neither.
        cloud: How `points.py` beside the model makes inputs of a point cloud; None for other samples.
        runtime: Options that the runtime must be given for the results that were measured, by its own names.

    Raises:
        InputError: EQ-I041 when a value has the wrong kind or a file path leaves the folder.
    """

    command: tuple[str, ...]
    config: Mapping[str, Any]
    seed: int
    versions: Mapping[str, str]
    weights_sha256: str
    model: Mapping[str, Any]
    calibration: tuple[Entry, ...]
    files: tuple[Entry, ...]
    preprocess: Mapping[str, Any] | None
    inputs: tuple[Entry, ...]
    outputs: tuple[Entry, ...]
    labels: tuple[str, ...] | None
    target: str
    scheme: str
    input_files: Mapping[str, str] = field(default_factory=dict)
    golden: GoldenCheck = field(default_factory=GoldenCheck)
    postprocess: Mapping[str, Any] | None = None
    cloud: Mapping[str, Any] | None = None
    runtime: Mapping[str, str] = field(default_factory=dict)
    networks: tuple[str, ...] = ()
    driver: str = ""

    def __post_init__(self) -> None:
        for name in ("command", "config", "model", "input_files"):
            object.__setattr__(self, name, portable(getattr(self, name)))
        _check({**self.to_dict()})

    @property
    def entry(self) -> str:
        """Path of the model file inside the bundle.

        Raises:
            InputError: EQ-I041 when the manifest lists no model file, or several; EQ-I700 when it is that of a model of
                several networks.
        """
        if self.networks:
            raise InputError(
                f"{self.model.get('name', 'the model')} has several networks: {', '.join(self.networks)}",
                code="EQ-I700",
                hint=f"give the folder of one of them, such as FOLDER/{self.networks[0]}",
            )
        models = [f["path"] for f in self.files if PurePosixPath(f["path"]).suffix in SUFFIXES]
        if len(models) != 1:
            raise corrupt(f"it lists {len(models)} model files instead of one")
        return str(models[0])

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        data["golden"] = vars(self.golden)
        return {"schema": SCHEMA, **{key: jsonable(value) for key, value in data.items()}}

    @classmethod
    def from_dict(cls, data: object) -> Manifest:
        """Inverse of `to_dict`; unknown keys are ignored, so that later minor additions can be read.

        Raises:
            InputError: EQ-I041 for another schema, a missing key or a value of the wrong kind.
        """
        if not isinstance(data, Mapping):
            raise corrupt("not a JSON object")
        schema = data.get("schema")
        if schema != SCHEMA:
            newer = str(schema).startswith("edgeq.artifact/")
            hint = "upgrade edgeq: pip install --upgrade edgeq" if newer else None
            raise corrupt(f"its schema is {schema!r}, this edgeq reads {SCHEMA!r}", hint)
        _check(data)
        values = {name: data[name] for name in cls.__dataclass_fields__ if name in data or name in _VALUES}
        for name in ("command", "calibration", "files", "inputs", "outputs", "labels", "networks"):
            values[name] = None if values.get(name, ()) is None else tuple(values.get(name, ()))
        known = GoldenCheck.__dataclass_fields__
        values["golden"] = GoldenCheck(**{k: float(v) for k, v in data["golden"].items() if k in known})
        return cls(**values)


def corrupt(cause: str, hint: str | None = None, place: str | None = None) -> InputError:
    """The error for a manifest that cannot be used."""
    hint = hint or "restore the folder, or run the export again"
    return InputError(f"the manifest cannot be used: {cause}", code="EQ-I041", place=place, hint=hint)


def _check(data: Mapping[str, Any]) -> None:
    for key, kind in _VALUES.items():
        if key not in data:
            raise corrupt(f"key {key!r} is missing")
        if not isinstance(data[key], kind) or isinstance(data[key], bool):
            raise corrupt(f"key {key!r} holds {type(data[key]).__name__}")
    for key, fields in _ENTRIES.items():
        for entry in data[key]:
            if not isinstance(entry, Mapping) or any(not isinstance(entry.get(f), t) for f, t in fields.items()):
                raise corrupt(f"key {key!r} holds {entry!r}; each entry needs {', '.join(fields)}")
    for entry in data["files"]:
        parts = PurePosixPath(entry["path"]).parts
        if not parts or entry["path"].startswith("/") or "\\" in entry["path"] or ".." in parts:
            raise corrupt(f"file path {entry['path']!r} leaves the folder")
    if any(not isinstance(n, str) for n in (*data["command"], *(data["labels"] or ()))):
        raise corrupt("command and labels hold strings only")
    runtime = data.get("runtime", {})  # bundles of 0.1 have none
    if not isinstance(runtime, Mapping) or any(not isinstance(v, str) for v in runtime.values()):
        raise corrupt("key 'runtime' holds strings only")
    networks = data.get("networks", [])  # bundles of 0.1 have none
    names = networks if isinstance(networks, list) else [None]
    if not isinstance(data.get("driver", ""), str) or any(
        not isinstance(n, str) or not n.isidentifier() for n in names
    ):
        raise corrupt("keys 'networks' and 'driver' hold names of folders and of a module")
    for key in ("postprocess", "cloud"):
        if not isinstance(data.get(key), (Mapping, type(None))):
            raise corrupt(f"key {key!r} holds no object")
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in data["golden"].values()):
        raise corrupt("key 'golden' holds numbers only")
    if data["preprocess"] is not None:
        try:
            Preprocess(**data["preprocess"])
        except (TypeError, ValueError, EdgeqError) as error:
            raise corrupt(f"key 'preprocess': {error}") from error
