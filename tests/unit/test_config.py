from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.config import ExportConfig, find_config, load_config, render_sources, resolve_export
from edgeq.config_keys import KEYS, METHODS, template
from edgeq.errors import UsageError

BASE = {"model": "vit_nano", "device": "rpi"}


def write(folder: Path, text: str) -> Path:
    path = folder / "edgeq.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(folder: Path, text: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_config(write(folder, text))
    return caught.value


def test_each_source_wins_over_those_below_it(tmp_path: Path) -> None:
    text = "[export]\nsamples = 3\nseed = 3\nlimit = 3\nmin_sqnr_db = 3\n[device.rpi]\nlimit = 4\n"
    file = load_config(write(tmp_path, text))
    env = {"EDGEQ_SAMPLES": "2", "EDGEQ_SEED": "2", "EDGEQ_LIMIT": "", "UNRELATED": "1"}
    defaults = {"threads": 7, "samples": 7, "min_sqnr_db": 7.0}
    config, sources = resolve_export({**BASE, "samples": 1}, env, file, lambda device: defaults)
    assert (config.samples, sources["samples"]) == (1, "--samples")
    assert (config.seed, sources["seed"]) == (2, "EDGEQ_SEED")
    assert (config.limit, sources["limit"]) == (4, f"{file.path}:7 [device.rpi]")
    assert (config.min_sqnr_db, sources["min_sqnr_db"]) == (3.0, f"{file.path}:5 [export]")
    assert (config.threads, sources["threads"]) == (7, "target rpi")
    assert (config.bits, sources["bits"]) == ("w8a8", "default")
    assert sources["model"] == "MODEL"


def test_flags_may_be_text_or_values() -> None:
    config, _ = resolve_export({**BASE, "runs": "12", "samples": 5, "calib": Path("a"), "dry_run": True}, {}, None)
    assert (config.runs, config.samples, config.calib, config.dry_run) == (12, 5, Path("a"), True)


def test_model_and_device_may_come_from_the_file(tmp_path: Path) -> None:
    file = load_config(write(tmp_path, '[export]\nmodel = "vit_nano"\ndevice = "rpi4"\n[device.rpi4]\nthreads = 2\n'))
    config, _ = resolve_export({}, {}, file)
    assert (config.model, config.device, config.threads) == ("vit_nano", "rpi4", 2)


@pytest.mark.parametrize("missing", ["model", "device"])
def test_a_missing_model_or_device_is_named(missing: str) -> None:
    flags = {name: value for name, value in BASE.items() if name != missing}
    with pytest.raises(UsageError, match=f"no {missing} given") as caught:
        resolve_export(flags, {}, None)
    assert caught.value.code == "EQ-U006"


def test_paths_in_the_file_are_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "net.onnx").touch()
    text = '[export]\nmodel = "net.onnx"\ndevice = "rpi"\ncalib = "photos"\ndata = "/abs/test.npz"\n'
    file = load_config(write(tmp_path, text))
    monkeypatch.chdir(tmp_path / "below")
    config, _ = resolve_export({}, {}, file)
    assert (config.model, config.calib, config.data) == ("../net.onnx", Path("../photos"), Path("/abs/test.npz"))
    # A name that is no file beside edgeq.toml stays a name.
    config, _ = resolve_export({"model": "vit_nano"}, {}, file)
    assert config.model == "vit_nano"


def test_the_nearest_file_upward_is_found(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    assert find_config(deep) is None or not find_config(deep).is_relative_to(tmp_path)  # type: ignore[union-attr]
    above = write(tmp_path, "")
    assert find_config(deep) == above
    assert find_config(deep.parent) == above
    nearer = write(tmp_path / "a", "")
    assert find_config(deep) == nearer


@pytest.mark.parametrize(
    ("text", "code", "message", "line", "hint"),
    [
        ("[export]\n\nsampels = 3\n", "EQ-U002", "unknown key 'sampels' in [export]", 3, "did you mean 'samples'?"),
        ("# top\n[exprot]\nsamples = 3\n", "EQ-U002", "unknown key 'exprot'", 2, "did you mean 'export'?"),
        ("zzz = 1\n", "EQ-U002", "unknown key 'zzz'", 1, "known: device, export"),
        ("[device.rpi]\nmodel = 'x'\n", "EQ-U002", "unknown key 'model' in [device.rpi]", 2, None),
        ("export = 3\n", "EQ-U004", "'export' must be a table, not 3", 1, "write [export]"),
        ("[device]\nrpi = 3\n", "EQ-U004", "'device.rpi' must be a table, not 3", None, "write [device.rpi]"),
        ("[export]\nsamples = '128'\n", "EQ-U004", "samples = '128' is not a whole number of at least 1", 2, None),
        ("[export]\nsamples = true\n", "EQ-U004", "samples = True is not a whole number of at least 1", 2, None),
        ("[export]\nsamples = 0\n", "EQ-U004", "samples = 0 is not a whole number of at least 1", 2, None),
        ("[export]\nmin_sqnr_db = inf\n", "EQ-U004", "min_sqnr_db = inf is not a number of decibels", 2, None),
        ("[export]\nmax_drop = -1\n", "EQ-U004", "max_drop = -1 is not a number of points, at least 0", 2, None),
        ("[export]\nforce = 'yes'\n", "EQ-U004", "force = 'yes' is not true or false", 2, None),
        ("[export]\ncalib = ''\n", "EQ-U004", "calib = '' is not a path", 2, None),
        ("[export]\nruns = 'some'\n", "EQ-U004", "runs = 'some' is not \"auto\" or a whole number", 2, None),
        ("[export]\nbits = 'w8a9'\n", "EQ-U007", "unknown bits 'w8a9'", 2, "did you mean 'w8a8'?"),
        ("[export]\nscheme = 'statik'\n", "EQ-U007", "unknown scheme 'statik'", 2, "did you mean 'static'?"),
        ("[export]\nformat = 'coreml'\n", "EQ-U007", "unknown format 'coreml'", 2, "onnx, openvino, tflite"),
        ("[export]\nmethod = 'msee'\n", "EQ-U007", "unknown method 'msee'", 2, "did you mean 'mse'?"),
        ("[export]\nmethod = 'mse:0.9'\n", "EQ-U007", "unknown method 'mse:0.9'", 2, None),
        ("[export]\nmethod = 'percentile'\n", "EQ-U004", "method = 'percentile' is not a method", 2, None),
        ("[export]\nmethod = 'percentile:0.5'\n", "EQ-U004", "(for `percentile:P`, P lies in (0.5, 1])", 2, None),
        ("[export]\nmethod = 'percentile:nan'\n", "EQ-U004", "is not a method", 2, None),
        ("[export\n", "EQ-U005", "is not valid TOML", None, None),
        ("[export]\nseed = 1\nseed = 2\n", "EQ-U005", "is not valid TOML", None, None),
    ],
)
def test_a_bad_file_is_refused_with_its_line(
    tmp_path: Path, text: str, code: str, message: str, line: int | None, hint: str | None
) -> None:
    error = refused(tmp_path, text)
    assert error.code == code
    assert message in error.message
    assert error.place == f"{tmp_path / 'edgeq.toml'}" + (f":{line}" if line else "")
    assert error.hint
    assert (hint or "") in error.hint


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "edgeq.toml").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "edgeq.toml", tmp_path / "absent.toml", tmp_path):
        with pytest.raises(UsageError, match="cannot read") as caught:
            load_config(path)
        assert caught.value.code == "EQ-U005"


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("SAMPLES", "many"),
        ("SAMPLES", "0"),
        ("FORCE", "maybe"),
        ("MIN_SQNR_DB", "nan"),
        ("RUNS", "0"),
        ("THREADS", "-1"),
    ],
)
def test_a_bad_environment_names_the_variable(variable: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_export(BASE, {f"EDGEQ_{variable}": text}, None)
    assert (caught.value.code, caught.value.place) == ("EQ-U004", f"EDGEQ_{variable}")


@pytest.mark.parametrize(("text", "value"), [("1", True), ("Yes", True), ("off", False), ("FALSE", False)])
def test_switches_in_the_environment(text: str, value: bool) -> None:
    assert resolve_export(BASE, {"EDGEQ_FORCE": text}, None)[0].force is value


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown key 'sample'"):
        resolve_export({**BASE, "sample": 3}, {}, None)


def test_a_config_validates_itself() -> None:
    with pytest.raises(UsageError, match="samples = 0"):
        ExportConfig("vit_nano", "rpi", samples=0)
    with pytest.raises(UsageError, match="model = ''"):
        ExportConfig("", "rpi")


def test_every_field_has_a_key_in_the_same_order() -> None:
    assert list(KEYS) == list(ExportConfig("a", "b").to_dict())


def test_examples_and_template_are_valid(tmp_path: Path) -> None:
    uncommented = re.sub(r"^# (?=\[|\w+ = )", "", template(), flags=re.MULTILINE)
    file = load_config(write(tmp_path, uncommented))
    assert set(file.export) == set(KEYS)
    assert file.devices == {"rpi4": {"threads": 2}}
    assert load_config(write(tmp_path, template())).export == {}


def test_sources_are_rendered() -> None:
    config, sources = resolve_export(BASE, {}, None)
    rows = render_sources(config, sources)
    assert rows[0] == ("model", "vit_nano", "MODEL")
    assert ("calib", "-", "default") in rows
    assert len(rows) == len(KEYS)


NAMES = st.text(min_size=1, max_size=8).filter(lambda s: s.strip() and "\0" not in s)
CONFIGS = st.builds(
    ExportConfig,
    model=NAMES,
    device=NAMES,
    method=st.sampled_from([name for name in METHODS if name != "percentile"] + ["percentile:0.999", "percentile:1"]),
    calib=st.none() | st.sampled_from([Path("a"), Path("/b/c")]),
    samples=st.integers(1, 10**6),
    min_sqnr_db=st.floats(-100, 100),
    max_drop=st.floats(0, 100),
    force=st.booleans(),
    runs=st.just("auto") | st.integers(1, 10**6),
    seed=st.integers(0, 2**32 - 1),
    threads=st.none() | st.integers(1, 1024),
)


@given(CONFIGS)
def test_json_round_trip(config: ExportConfig) -> None:
    assert ExportConfig.from_dict(config.to_dict()) == config


def test_a_manifest_with_foreign_or_missing_keys_is_refused() -> None:
    data = ExportConfig("a", "b").to_dict()
    with pytest.raises(UsageError, match="unknown key 'sedd'"):
        ExportConfig.from_dict({**data, "sedd": 1})
    del data["device"]
    with pytest.raises(UsageError, match="no 'device'"):
        ExportConfig.from_dict(data)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=2)


@given(st.dictionaries(st.sampled_from(sorted(KEYS)) | st.text(max_size=6), SCALARS))
def test_any_flags_give_a_config_or_a_usage_error(flags: dict[str, object]) -> None:
    try:
        config, sources = resolve_export({**BASE, **flags}, {}, None)
    except UsageError as error:
        assert error.hint
    else:
        assert isinstance(config, ExportConfig)
        assert set(sources) == set(KEYS)


@given(st.text(max_size=40))
def test_any_text_as_a_file_gives_a_usage_error_or_a_config(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edgeq.toml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            load_config(path)
        except UsageError as error:
            assert error.place
