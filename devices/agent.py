"""The program that runs artifacts on a device: it is sent over a pipe with every session and never installed.

Needs Python 3.9, numpy and the runtime of the model file. `edgeq.devices.link` speaks with it: one JSON object a line
on stdin, and on stdout one a line behind a word that the host chose, so that whatever else a device prints is not taken
for an answer. It ends at once when its stdin closes: a cut connection leaves nothing running and no lock behind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import hashlib
import importlib
import json
import os
import platform
import re
import select
import shutil
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from edgeq.devices import sensors
from edgeq.devices.environment import environment, runtimes
from edgeq.errors import DeviceError, EdgeqError, MissingError

ALIVE_SECONDS = 5.0
PARTIAL_SECONDS, PARTIAL_RUNS = 1.0, 20_000
MAX_REQUEST = 1 << 22
CACHE_BYTES, CACHE_DAYS = 1 << 30, 30
SPARE_BYTES = 1 << 24  # a full disk makes other programs of the device fail
COLD_RUNS, COUNTED_SECONDS = 3, 1.0
MEASURED_SECONDS = 2.0  # neighbours come and go in seconds: a median of less is settled, and another one next time
WARM_MS = 200  # caches, branch predictors and a governor's clock
_KEY = re.compile(r"[0-9a-f]{64}")
_PARTIAL = ".partial"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


class Port:
    """The way to the host.

    Args:
        word: What begins every line that is meant for it.
        stdin: Requests, and the bytes of files.
        stdout: File descriptor.
    """

    def __init__(self, word: str, stdin: BinaryIO, stdout: int) -> None:
        self.word = word
        self.stdin = stdin
        self._stdout = stdout
        self._lock = threading.Lock()

    def send(self, event: str, **values: Any) -> None:
        """Write one event."""
        line = f"{self.word} {json.dumps({'event': event, **values})}\n".encode()
        with self._lock:
            while line:
                line = line[os.write(self._stdout, line) :]

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """While the body runs: tell the host that we are alive, and end this process when the host is gone."""
        wake, stop = os.pipe()
        watcher = threading.Thread(target=self._watch, args=(wake,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            os.close(stop)
            watcher.join()
            os.close(wake)

    def _watch(self, wake: int) -> None:
        try:
            while True:
                ready, _, _ = select.select([self.stdin.fileno(), wake], [], [], ALIVE_SECONDS)
                if wake in ready:
                    return
                if ready:  # the host sends nothing while it waits: this is the end of the connection
                    os._exit(1)
                self.send("alive")
        except OSError:
            os._exit(1)


def main(word: str) -> None:
    """Serve requests until stdin closes."""
    stdout = os.dup(1)
    os.dup2(2, 1)  # what the runtimes print is no answer
    port = Port(word, sys.stdin.buffer, stdout)
    port.send("hello", **describe())
    held: list[int] = []
    while line := port.stdin.readline(MAX_REQUEST):
        request = json.loads(line)
        try:
            port.send("done", result=_serve(port, request, held))
        except EdgeqError as error:
            port.send("error", **error.to_dict())
        except Exception as error:  # each runtime has its own kinds
            message = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
            port.send("error", **DeviceError(message, code="EQ-X878", hint="run `edgeq doctor --device`").to_dict())


def _serve(port: Port, request: dict[str, Any], held: list[int]) -> Any:
    do = request["do"]
    if do == "lock":
        with port.watched():
            return lock(port, request["wait"], request["who"], held)
    if do == "have":
        return have(request["key"])
    if do == "store":
        return store(port, request["key"], request["files"])
    if do == "clean":
        return clean()
    if do == "state":
        return sensors.state()
    work = {"verify": verify, "profile": profile, "look": look}[do]
    with port.watched():
        return work(port, request)


def describe() -> dict[str, Any]:
    """This machine, for the host to judge before it sends anything."""
    folder = cache()
    there = next(p for p in (folder, *folder.parents) if p.exists())
    return {
        "environment": environment(),
        "board": sensors.board(),
        "boot_id": sensors.boot_id(),
        "executable": sys.executable,
        "bits": 8 * struct.calcsize("P"),
        "kernel": platform.release(),
        "available_mb": sensors.available_mb(),
        "cache": str(folder),
        "disk_free": shutil.disk_usage(there).free,
        "runtimes": [[r.format, r.package] for r in runtimes() if r.usable],
        "numpy": importlib.util.find_spec("numpy") is not None,
    }


def cache() -> Path:
    """Where artifacts are kept on this device."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "edgeq" / "artifacts"


def lock(port: Port, wait: float, who: str, held: list[int]) -> str | None:
    """Be the only one who measures on this machine until this process ends; returns why that cannot be, if it cannot.

    The system drops the lock with the process, so that there are no stale ones.

    Raises:
        DeviceError: EQ-X875, another one holds it for longer than `wait` seconds; says who.
    """
    file = Path("/tmp/edgeq.lock")  # one for all users
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except PermissionError:  # made by another user: readable, and a reader may lock it
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    give_up, told = time.monotonic() + wait, False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            holder = os.pread(handle, 400, 0).decode(errors="replace").strip() or "another user"
            if time.monotonic() >= give_up:
                message = f"the device is being measured by {holder}, for longer than {wait:g} s"
                hint = "try again when that has ended, or wait longer: --wait SECONDS"
                raise DeviceError(message, code="EQ-X875", hint=hint) from None
            if not told:
                port.send("waiting", holder=holder)
                told = True
            time.sleep(0.1)
        except OSError as error:
            return f"the device has no locks ({error.strerror}): another one may have measured at the same time"
    held.append(handle)
    with contextlib.suppress(OSError):  # another user's file cannot be written, and says nothing then
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{who} (process {os.getpid()} of {getpass.getuser()})\n".encode(), 0)
    return None


def have(key: str) -> bool:
    """Whether the artifact `key` is complete here; that it is wanted keeps it from being tidied away."""
    folder = cache() / _key(key)
    if not folder.is_dir():
        return False
    os.utime(folder)
    return True


def _key(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no key")
    return key


def store(port: Port, key: str, files: list[dict[str, Any]]) -> int:
    """Read files from stdin into a folder of their own, which gets its name when every one of them is right.

    Args:
        port: The way to the host; `ready` is sent when there is room, then the bytes of the files follow.
        key: Name of the folder.
        files: `path` inside it, `bytes` and `sha256` of each.

    Returns:
        Bytes that were stored.

    Raises:
        DeviceError: EQ-X874 there is no room, or the folder cannot be written; EQ-X873 other bytes came than were sent.
    """
    total: int = sum(f["bytes"] for f in files)
    final = cache() / _key(key)
    partial = final.with_name(f"{_PARTIAL}-{key}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        tidy(CACHE_BYTES - total)
        free = shutil.disk_usage(final.parent).free
        if free < total + SPARE_BYTES:
            raise _no_room(f"{free / 1e6:.0f} MB are free, {total / 1e6:.0f} MB are needed")
        port.send("ready")
        partial.mkdir()
        for file in files:
            _receive(port.stdin, partial / _inside(file["path"]), file)
        partial.rename(final)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if error.errno in _FULL:
            raise _no_room(str(error.strerror)) from error
        raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return total


def _no_room(reason: str) -> DeviceError:
    hint = "make room there, for example with `edgeq devices --clean ADDRESS`"
    return DeviceError(f"the artifact cannot be stored on the device: {reason}", code="EQ-X874", hint=hint)


def _inside(path: str) -> PurePosixPath:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts:
        raise ValueError(f"{path!r} leaves the folder")
    return PurePosixPath(path)


def _receive(source: BinaryIO, path: Path, file: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    left, digest = file["bytes"], hashlib.sha256()
    with path.open("wb") as target:
        while left:
            block = source.read(min(left, 1 << 16))
            if not block:
                raise _mangled("the connection ended before the file did", file)
            digest.update(block)
            target.write(block)
            left -= len(block)
        target.flush()
        os.fsync(target.fileno())
    if digest.hexdigest() != file["sha256"]:
        raise _mangled("the file that arrived is not the one that was sent", file)


def _mangled(what: str, file: dict[str, Any]) -> DeviceError:
    return DeviceError(what, code="EQ-X873", place=file["path"], hint="run the command again")


def tidy(budget: int) -> None:
    """Remove rests of cut transfers, what nobody used for `CACHE_DAYS`, and the oldest beyond `budget` bytes."""
    for rest in cache().glob(f"{_PARTIAL}-*"):
        shutil.rmtree(rest, ignore_errors=True)
    for age, size, folder in sorted((time.time() - f.stat().st_mtime, _size(f), f) for f in _stored()):
        budget -= size
        if budget < 0 or age > CACHE_DAYS * 86400:
            shutil.rmtree(folder, ignore_errors=True)


def clean() -> dict[str, int]:
    """Remove everything that was ever stored here; returns how many artifacts, and their bytes."""
    folders = _stored()
    sizes = [_size(folder) for folder in folders]
    for folder in (*folders, *cache().glob(f"{_PARTIAL}-*")):
        shutil.rmtree(folder)
    return {"artifacts": len(folders), "bytes": sum(sizes)}


def _stored() -> list[Path]:
    return [f for f in cache().glob("*") if _KEY.fullmatch(f.name) and f.is_dir()]


def _size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def _folder(place: dict[str, str]) -> Path:
    """Of an artifact: `{"key"}` of a stored one, or `{"path"}` of one on this machine."""
    return cache() / _key(place["key"]) if "key" in place else Path(place["path"])


def load(place: dict[str, str], threads: int) -> tuple[Any, dict[str, Any], Any]:
    """`run.py`, the manifest and the model of an artifact.

    Raises:
        MissingError: EQ-P872, numpy or the runtime is absent or does not load.
        DeviceError: EQ-X878, the model cannot be loaded.
    """
    try:
        run: Any = importlib.import_module("edgeq.artifact.run")
    except SystemExit as error:
        raise MissingError("numpy is absent", code="EQ-P872", hint=_pip("numpy")) from error
    except (ImportError, OSError) as error:
        message = f"numpy is installed but fails: {error}"
        raise MissingError(message, code="EQ-P872", hint=_pip("--force-reinstall numpy")) from error
    folder = _folder(place)
    try:
        manifest = run.load_manifest(folder)
        _import_runtime(Path(run.model_entry(manifest)["path"]).suffix)
        return run, manifest, run.Model(manifest, threads, folder)
    except run.Failure as failure:
        if "key" in place:  # whatever became of it since it was stored: it is sent again next time
            shutil.rmtree(folder, ignore_errors=True)
        raise _failed(failure) from failure


def _import_runtime(suffix: str) -> None:
    """Import the runtime first, so that a broken one is told from a broken model."""
    modules = {".tflite": ("ai_edge_litert", "tflite_runtime"), ".xml": ("openvino",), ".onnx": ("onnxruntime",)}
    for name in modules[suffix]:
        if importlib.util.find_spec(name) is None:
            continue
        try:
            importlib.import_module(f"{name}.interpreter" if suffix == ".tflite" else name)
        except (ImportError, OSError) as error:
            message = f"{name} is installed but fails: {' '.join(str(error).split())[:300]}"
            hint = _pip(f"--force-reinstall {name.replace('_', '-')}")
            raise MissingError(message, code="EQ-P872", hint=hint) from error
        return


def _failed(failure: Any) -> EdgeqError:
    """A failure of `run.py` as an error; it numbers them as edgeq numbers exit codes."""
    message, _, hint = str(failure).partition("\n  try: ")
    if failure.code == 4:
        return MissingError(message, code="EQ-P872", hint=hint)
    return DeviceError(message, code="EQ-X878", hint=hint or "run the command again, or with `--on local`")


def _pip(packages: str) -> str:
    return f"on the device: {sys.executable} -m pip install {packages}"


def verify(port: Port, request: dict[str, Any]) -> dict[str, Any]:
    """The golden vectors. Raises as `load`."""
    del port
    run, manifest, model = load(request["artifact"], request["threads"])
    try:
        return dict(run.check_golden(model, manifest))
    except run.Failure as failure:
        raise _failed(failure) from failure


def profile(port: Port, request: dict[str, Any]) -> dict[str, Any]:
    """Measure an inference of the first golden vector. Raises as `load`, and as `edgeq.devices.timing.measure`.

    The times go to the host as they are measured, so that a lost connection does not lose them.
    """
    before_load, start = sensors.resident(), time.perf_counter()
    run, manifest, model = load(request["artifact"], request["threads"])
    loaded = time.perf_counter()
    timing: Any = importlib.import_module("edgeq.devices.timing")
    try:
        inputs, expected = ([array[0] for array in run.golden_arrays(model.folder, *n)] for n in _golden_files(model))
        model.place(inputs)
        first = time.perf_counter()
        model.invoke()
        first_ms = 1e3 * (time.perf_counter() - first)
        before, joules = sensors.state(), sensors.energy()
        times, warmup = _Times(port), max(3, min(500, int(WARM_MS / first_ms)))
        latency = timing.measure(
            model.invoke,
            runs=request["runs"],
            warmup=warmup,
            max_seconds=request["seconds"],
            min_seconds=MEASURED_SECONDS,
            observe=times.add,
        )
        after, used = sensors.state(), sensors.energy()
        peak, outputs = sensors.resident(peak=True), model.loaded.results()
        against = _against(request, model, timing)
        census = _census(model.loaded)
        layers = _layers(run, manifest, model, request["threads"], inputs)
    except run.Failure as failure:
        raise _failed(failure) from failure
    return {
        "latency": latency.to_dict(),
        "load_ms": round(1e3 * (loaded - start), 3),
        "first_ms": round(first_ms, 3),
        "memory": {"peak_rss": peak, "before_load": before_load},
        "state": {"before": before, "after": after},
        # The warm-up lies between the readings too.
        "energy": sensors.spent(joules, used, latency.runs + warmup),
        "output": _output(run, expected, outputs),
        "census": census,
        "layers": layers,
        "against": against,
    }


def look(port: Port, request: dict[str, Any]) -> dict[str, Any]:
    """What running the first golden vector once gives, apart from its time. Raises as `load`."""
    del port
    run, _, model = load(request["artifact"], request["threads"])
    try:
        inputs, expected = ([array[0] for array in run.golden_arrays(model.folder, *n)] for n in _golden_files(model))
        outputs = model.run(inputs)
    except run.Failure as failure:
        raise _failed(failure) from failure
    return {
        "memory": {"peak_rss": sensors.resident(peak=True)},
        "output": _output(run, expected, outputs),
        "census": _census(model.loaded),
    }


def _golden_files(model: Any) -> tuple[tuple[str, str, int], ...]:
    return ("inputs.npz", "input", len(model.inputs)), ("expected.npz", "output", len(model.outputs))


class _Times:
    """Milliseconds of runs, sent about every second, or before a line gets long."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._new: list[float] = []
        self._since = 0.0

    def add(self, seconds: float) -> None:
        """Keep one; it is called between timed runs, and does as little as it can."""
        self._new.append(seconds)
        self._since += seconds
        if self._since > PARTIAL_SECONDS or len(self._new) >= PARTIAL_RUNS:
            self._port.send("times", ms=[round(1e3 * s, 6) for s in self._new])
            self._new, self._since = [], 0.0


def _against(request: dict[str, Any], model: Any, timing: Any) -> dict[str, Any] | None:
    """Another artifact and this one in alternation, when there is another."""
    if request.get("against") is None:
        return None
    run, _, other = load(request["against"], request["threads"])
    other.place([array[0] for array in run.golden_arrays(other.folder, *_golden_files(other)[0])])
    pair = timing.paired_latency(other.invoke, model.invoke, runs=request["runs"], max_seconds=2 * request["seconds"])
    found = dict(pair.to_dict())
    return {"paired": True, "baseline": found.pop("float"), "this": found.pop("quantized"), **found}


def _census(loaded: Any) -> dict[str, int] | None:
    """How often each operation of a TFLite file occurs; `DELEGATE` counts the parts that XNNPACK runs as a whole."""
    details = getattr(getattr(loaded, "interpreter", None), "_get_ops_details", None)
    return None if details is None else dict(Counter(op["op_name"] for op in details()).most_common())


def _layers(run: Any, manifest: dict[str, Any], model: Any, threads: int, inputs: list[Any]) -> list[dict[str, Any]]:
    """Milliseconds of every node, the mean of some runs, where the runtime tells: OpenVINO does.

    Counting costs time: these are not the runs that were timed.
    """
    if not isinstance(model.loaded, run.OpenVino):
        return []
    path = model.folder / run.model_entry(manifest)["path"]
    counting = run.OpenVino(path, threads, {**manifest.get("runtime", {}), "PERF_COUNT": "YES"})
    for i, array in enumerate(inputs):
        counting.place(i, array)

    def read(runs: int) -> list[tuple[str, str, float]]:
        for _ in range(runs):
            counting.invoke()
        nodes = counting.request.profiling_info
        return [(n.node_name, n.node_type, 1e3 * n.real_time.total_seconds()) for n in nodes]

    # A node that took any time in the first run, its slowest, is one that runs.
    real = {(name, op) for name, op, value in read(1) if value > 0}
    first, start = read(COLD_RUNS - 1), time.perf_counter()
    read(1)
    more = max(10, min(200, int(COUNTED_SECONDS / (time.perf_counter() - start))))
    last = [node for node in read(more) if node[:2] in real]
    return between(first, COLD_RUNS, last, COLD_RUNS + 1 + more)


def between(
    first: list[tuple[str, str, float]], early: int, last: list[tuple[str, str, float]], late: int
) -> list[dict[str, Any]]:
    """Mean of the runs after the first `early` of `late`, from means over all runs so far, which OpenVINO gives.

    The first run allocates and compiles: a mean that holds it says little about the others.
    """
    before = {name: value for name, _, value in first}
    nodes = [(name, op, (value * late - before.get(name, value) * early) / (late - early)) for name, op, value in last]
    # Of nodes that take less than the counters' microsecond, the difference may be anything around 0.
    return [{"name": name, "op": op, "value": round(max(value, 0.0), 6)} for name, op, value in nodes]


def _output(run: Any, expected: list[Any], found: list[Any]) -> dict[str, Any]:
    """Whether what was timed also computes what it should."""
    digest = hashlib.sha256()
    for array in found:
        digest.update(array.tobytes())
    pairs = list(zip(expected, found))  # noqa: B905 (Python 3.9)
    return {
        "sha256": digest.hexdigest(),
        "exact": all(bool((e == f).all()) for e, f in pairs),
        "sqnr_db": run.finite(min(run.sqnr_db(e, f) for e, f in pairs)),
    }
