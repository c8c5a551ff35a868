"""The settings of an export and where each one comes from.

Precedence: flag > environment (`EDGEQ_SAMPLES`) > `edgeq.toml` > default of the target > built-in. Every resolved
value remembers its source, which `edgeq export --show-config` prints. Paths written in `edgeq.toml` are relative to
the folder of that file.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from edgeq.config_keys import KEYS, MIXED, PATHS
from edgeq.errors import EdgeqError, UsageError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE_NAME = "edgeq.toml"
_REQUIRED = {
    "model": "name a model: `edgeq export vit_nano --device rpi` (see `edgeq models`)",
    "device": "name a target: `--device rpi` (see `edgeq devices`)",
}


@dataclass(frozen=True)
class ExportConfig:
    """Everything that decides an export.

    Args:
        model: `family:variant`, a reference name, or a model file.
        device: Name of the target.
        family: Family of a model file, where it cannot be inferred.
        weights: Checkpoint to load into a named architecture.
        shape: Height and width of the image that an ONNX network is to take, such as `480x640`.
        preprocess: How photos become the input, in words of `edgeq.preprocessing`, where the file does not tell.
        format: Artifact format, or `auto` for the target's first.
        bits: Widths of weights and activations, or `mixed` for the best ones within `budget_kb`.
        budget_kb: Largest size of the model file in kB (1000 bytes).
        budget_minutes: Time to learn roundings and grids block by block after the rounding, per export.
        learn_steps: The same in steps of each block, which can be repeated exactly.
        scheme: What runs as integers; `auto` measures the candidates and ships the best.
        method: How tensors are made to fit their grids, and how ranges are chosen.
        rounding: How weights are rounded.
        keep_float: Operations that stay float: `auto`, `none`, how many tensors to free, or names.
        narrow: Layers whose weights get 4 bits whatever `bits` says, by name, separated by commas.
        patches: Whether the first operations on a microcontroller run in patches: `auto` (where RAM does not suffice
            otherwise), `none`, or how many patches.
        calib: Calibration samples.
        degrade: Degradations of half the calibration samples, where weights are rounded and widths tried.
        samples: Number of calibration samples to use.
        select: How they are chosen.
        data: Labelled data for the task metric.
        limit: Evaluate at most this many items of `data`.
        out: Folder of the artifact; None means `out/MODEL-DEVICE`.
        exist: What to do when `out` exists.
        dry_run: Decide and report, write nothing.
        min_sqnr_db: Floor of the median fidelity to float in dB; None for what the family knows to be enough.
        max_drop: Largest accepted drop of the metric in points, where `data` is given.
        force: Ship although a gate failed.
        compare: Other quantizers to show beside, separated by commas.
        runs: Paired latency runs, or `auto` for as many as the interval needs.
        seed: Seed of every random choice.
        threads: CPU threads, None for the runtime's choice.

    Raises:
        UsageError: EQ-U004 for a value of the wrong type or range, EQ-U007 for an unknown name.
    """

    model: str
    device: str
    family: str | None = None
    weights: Path | None = None
    shape: str | None = None
    preprocess: str | None = None
    format: str = "auto"
    bits: str = "w8a8"
    budget_kb: float | None = None
    budget_minutes: float | None = None
    learn_steps: int | None = None
    scheme: str = "auto"
    method: str = "auto"
    rounding: str = "auto"
    keep_float: str = "auto"
    narrow: str | None = None
    patches: str = "auto"
    calib: Path | None = None
    degrade: str = "none"
    samples: int = 128
    select: str = "random"
    data: Path | None = None
    limit: int | None = None
    out: Path | None = None
    exist: Literal["fail", "replace"] = "fail"
    dry_run: bool = False
    min_sqnr_db: float | None = None
    max_drop: float = 0.5
    force: bool = False
    compare: str | None = None
    runs: int | Literal["auto"] = "auto"
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        for key in KEYS.values():
            value = getattr(self, key.name)
            if value is not None or key.name in _REQUIRED:
                object.__setattr__(self, key.name, _checked(key.name, value, key.name))
        if self.bits == MIXED and self.budget_kb is None:
            raise UsageError(
                "--bits mixed spends a budget, and there is none",
                code="EQ-U331",
                hint="add --budget-kb N; sizes of --bits w8a8 and w4a8 are the ends of what is possible",
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON form; paths with forward slashes."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value.as_posix() if isinstance(value, Path) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ExportConfig:
        """Inverse of `to_dict`.

        Raises:
            UsageError: EQ-U002 for an unknown key, EQ-U004 or EQ-U007 for a bad value, EQ-U006 for a missing one.
        """
        for name in data:
            if name not in KEYS:
                raise _unknown_key(name, KEYS, "configuration")
        for name, hint in _REQUIRED.items():
            if name not in data:
                raise UsageError(f"the configuration has no {name!r}", code="EQ-U006", hint=hint)
        return cls(**{name: _checked(name, value, name) for name, value in data.items() if value is not None})


@dataclass(frozen=True)
class ConfigFile:
    """A parsed `edgeq.toml`.

    Args:
        path: Where it lies.
        text: Its content, kept to find line numbers.
        export: Table `[export]`.
        devices: Tables `[device.NAME]`: what changes for one target.
    """

    path: Path
    text: str
    export: Mapping[str, object]
    devices: Mapping[str, Mapping[str, object]]

    def line(self, table: str, key: str) -> int | None:
        """Line number (from 1) where `key` of `table` is set, if the plain spelling is found."""
        return _line_of(self.text, table, key)


def find_config(start: Path) -> Path | None:
    """The nearest `edgeq.toml` in `start` or a folder above it."""
    folder = start.resolve()
    for candidate in (folder, *folder.parents):
        path = candidate / FILE_NAME
        try:
            if path.is_file():
                return path
        except OSError:  # a parent we may not look into
            continue
    return None


def load_config(path: Path) -> ConfigFile:
    """Read and check an `edgeq.toml`.

    Raises:
        UsageError: EQ-U005 when it cannot be read or is no TOML, EQ-U002 for an unknown key, EQ-U004 or EQ-U007 for
            a value that cannot be used.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as exc:
        reason = getattr(exc, "strerror", None) or "it is not UTF-8 text"
        hint = "edgeq init  # writes a commented one"
        raise UsageError(f"cannot read {path}: {reason}", code="EQ-U005", place=str(path), hint=hint) from exc
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as exc:
        hint = "compare with the file that `edgeq init` writes"
        raise UsageError(f"{path} is not valid TOML: {exc}", code="EQ-U005", place=str(path), hint=hint) from exc
    for name, value in tables.items():
        if name not in ("export", "device"):
            raise _unknown_key(name, ("export", "device"), _at(path, _line_of(text, "", name)))
        if not isinstance(value, dict):
            message = f"{name!r} must be a table, not {value!r}"
            raise UsageError(message, code="EQ-U004", place=_at(path, _line_of(text, "", name)), hint=f"write [{name}]")
    file = ConfigFile(path, text, tables.get("export", {}), tables.get("device", {}))
    _check_table(file, "export", file.export, KEYS)
    for device, table in file.devices.items():
        if not isinstance(table, dict):
            message = f"'device.{device}' must be a table, not {table!r}"
            raise UsageError(message, code="EQ-U004", place=str(path), hint=f"write [device.{device}]")
        _check_table(file, f"device.{device}", table, [name for name in KEYS if name not in _REQUIRED])
    return file


def resolve_export(
    flags: Mapping[str, object],
    env: Mapping[str, str],
    file: ConfigFile | None,
    target_defaults: Callable[[str], Mapping[str, object]] | None = None,
) -> tuple[ExportConfig, dict[str, str]]:
    """Combine all sources into one configuration.

    Args:
        flags: Values from the command line by field name, as text or already converted; None means not given.
        env: The environment; `EDGEQ_<FIELD>` in capitals is read, an empty value counts as absent.
        file: The configuration file, if any.
        target_defaults: Gives the defaults of a target by its name.

    Returns:
        The configuration, and for each of its fields where the value comes from.

    Raises:
        UsageError: EQ-U002 for an unknown flag name, EQ-U004 or EQ-U007 for a bad value, EQ-U006 when the model or
            the device is named nowhere.
    """
    for name in flags:
        if name not in KEYS:
            raise _unknown_key(name, KEYS, "flags")
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}

    def offer(name: str, value: object, source: str) -> None:
        if value is not None and name not in values:
            values[name] = _checked(name, value, source)
            sources[name] = source

    for name, value in flags.items():
        option = "MODEL" if name == "model" else f"--{name.replace('_', '-')}"
        offer(name, _from_text(name, value, option) if isinstance(value, str) else value, option)
    for name in KEYS:
        variable = f"EDGEQ_{name.upper()}"
        if text := env.get(variable):
            offer(name, _from_text(name, text, variable), variable)
    if file is not None:
        device = values.get("device", file.export.get("device"))
        for table_name, table in ((f"device.{device}", file.devices.get(str(device), {})), ("export", file.export)):
            for name, value in table.items():
                place = f"{_at(file.path, file.line(table_name, name))} [{table_name}]"
                offer(name, _beside(file.path, name, value), place)
    for name, hint in _REQUIRED.items():
        if name not in values:
            raise UsageError(f"no {name} given", code="EQ-U006", place=name, hint=hint)
    if target_defaults is not None:
        for name, value in target_defaults(values["device"]).items():
            offer(name, value, f"target {values['device']}")
    config = ExportConfig(**values)
    return config, {f.name: sources.get(f.name, "default") for f in fields(config)}


def render_sources(config: ExportConfig, sources: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Rows `(setting, value, source)` for `--show-config`; an unset value reads `-`."""
    values = config.to_dict()
    return [(name, "-" if value is None else str(value), sources[name]) for name, value in values.items()]


def _checked(name: str, value: object, place: str) -> Any:
    key = KEYS[name]
    try:
        return key.check(value)
    except EdgeqError as exc:
        exc.place = exc.place or place
        raise
    except (TypeError, ValueError) as exc:
        message = f"{name} = {value!r} is not {key.expected}"
        raise UsageError(message, code="EQ-U004", place=place, hint=f"{name} = {key.example}") from exc


def _from_text(name: str, text: str, source: str) -> object:
    key = KEYS[name]
    try:
        return key.parse(text)
    except ValueError as exc:
        message = f"{name} = {text!r} is not {key.expected}"
        raise UsageError(message, code="EQ-U004", place=source, hint=f"{name} = {key.example}") from exc


def _beside(path: Path, name: str, value: object) -> object:
    """A path in the file means a place beside the file; kept relative, so that no machine's folders leak."""
    if not isinstance(value, str) or "\0" in value or not (name in PATHS or name == "model"):
        return value
    candidate = path.parent / Path(value).expanduser()
    if Path(value).is_absolute() or value.startswith("~") or (name == "model" and not candidate.exists()):
        return value
    return os.path.relpath(candidate)


def _check_table(file: ConfigFile, table: str, values: Mapping[str, object], known: Any) -> None:
    for name, value in values.items():
        place = _at(file.path, file.line(table, name))
        if name not in known:
            raise _unknown_key(name, known, place, table)
        _checked(name, value, place)


def _unknown_key(name: str, known: Any, place: str, table: str = "") -> UsageError:
    close = nearest(name, known)
    hint = f"did you mean {close!r}?" if close else f"known: {', '.join(sorted(known))}"
    where = f" in [{table}]" if table else ""
    return UsageError(f"unknown key {name!r}{where}", code="EQ-U002", place=place, hint=hint)


def _at(path: Path, line: int | None) -> str:
    return f"{path}:{line}" if line else str(path)


def _line_of(text: str, table: str, key: str) -> int | None:
    """First line that sets `key` in `table`, or that opens the table `key` itself."""
    current = ""
    quoted = rf"[\"']?{re.escape(key)}[\"']?"
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
        if header:
            current = header[1].replace('"', "").replace("'", "").replace(" ", "")
            if not table and current.split(".")[0] == key:
                return number
        elif current == table and re.match(rf"\s*{quoted}\s*[=.]", line):
            return number
    return None
