"""A bundle appears whole or not at all: exceptions, kills, races, full disks, foreign folders."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Literal

import pytest

from edgeq.artifact import check_out, staged, write_json
from edgeq.artifact import staging as module
from edgeq.artifact.manifest import SCHEMA
from edgeq.errors import UsageError
from tests.unit.artifact.conftest import Builder


def listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def refused(work: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as caught:
        work()
    assert caught.value.hint
    return caught.value.code


def test_folder_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "bundle"
    with staged(out) as folder:
        assert folder.parent == out.parent
        (folder / "x").write_text("1")
        assert not out.exists()
    assert listing(out) == ["x"]
    assert listing(out.parent) == ["bundle"]
    assert out.stat().st_mode & 0o777 == 0o777 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3), OSError(errno.EIO, "broken")])
def test_nothing_stays_after_an_exception(tmp_path: Path, error: BaseException) -> None:
    def work() -> None:
        with staged(tmp_path / "deep" / "bundle") as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "x").write_text("1")
            raise error

    with pytest.raises(type(error)):
        work()
    assert listing(tmp_path) == []


def interrupted(line: int, work: Callable[[], object]) -> bool:
    """Whether Ctrl-C at the given line of `staging.py`, counted as they run, ended the work."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> object:
        nonlocal count
        if frame.f_code.co_filename != module.__file__:
            return None
        count += event == "line"
        if event == "line" and count == line:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("can_exchange", [True, False])
def test_interrupted_at_every_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool) -> None:
    """Whenever Ctrl-C comes, the bundle is there and whole, or nothing is."""
    if not can_exchange:
        monkeypatch.setattr(module, "_exchange", lambda *_: False)
    old = tmp_path / "old"
    for replaced in (False, True):
        line = 1
        while True:
            place = tmp_path / f"{replaced}-{line}"
            place.mkdir()
            out = place / "deep" / "a"
            if replaced:
                shutil.copytree(old, out)

            def work(out: Path = out, exist: Literal["fail", "replace"] = "replace" if replaced else "fail") -> None:
                with staged(out, exist) as folder:
                    (folder / "model").write_text("new")
                    write_json(folder / "manifest.json", {"schema": SCHEMA, "files": [{"path": "model"}]})

            stopped = interrupted(line, work)
            if out.exists():
                assert listing(out) == ["manifest.json", "model"], line
                assert listing(out.parent) == ["a"], line
            else:
                assert stopped and not replaced and listing(place) == [], line
            if not stopped:
                break
            line += 1
        assert line > 60
        shutil.copytree(out, old, dirs_exist_ok=True)
        (old / "model").write_text("old")


@pytest.mark.parametrize("can_exchange", [True, False])
def test_replace_takes_the_place_of_a_bundle(
    build: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(module, "_exchange", lambda *_: False)
    out = build(tmp_path / "a")
    with staged(out, "replace") as folder:
        (folder / "new").write_text("1")
        assert "manifest.json" in listing(out)
    assert listing(out) == ["new"]
    assert listing(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
def test_old_bundle_survives_any_failure(
    build: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    out = build(tmp_path / "a")
    before = (out / "manifest.json").read_bytes()

    def in_the_block() -> None:
        with staged(out, "replace"):
            raise error

    def in_the_second_move() -> None:
        rename = Path.rename
        monkeypatch.setattr(module, "_exchange", lambda *_: False)

        def fail(self: Path, target: Path) -> Path:
            if ".partial-" in self.name:
                raise error
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", fail)
        with staged(out, "replace"):
            pass

    for work in (in_the_block, in_the_second_move):
        with pytest.raises(type(error)):
            work()
        assert (out / "manifest.json").read_bytes() == before
        assert listing(tmp_path) == ["a"]


def test_existing_output_is_refused(build: Builder, tmp_path: Path) -> None:
    assert refused(lambda: check_out(build(tmp_path / "a"))) == "EQ-U042"
    (tmp_path / "file").write_text("x")
    assert refused(lambda: check_out(tmp_path / "file", "replace")) == "EQ-U042"
    assert refused(lambda: check_out(tmp_path / "file" / "below")) == "EQ-U043"
    assert refused(lambda: check_out("")) == "EQ-U043"
    assert refused(lambda: check_out("a\0b")) == "EQ-U043"


def test_replace_deletes_only_bundles(build: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    assert check_out(mine, "replace") == mine
    (mine / "thesis.tex").write_text("years")
    assert refused(lambda: check_out(mine, "replace")) == "EQ-U044"
    for text in ("{}", "[]", "nonsense", '{"schema": "edgeq.artifact/1", "files": 3}'):
        (mine / "manifest.json").write_text(text)
        assert refused(lambda: check_out(mine, "replace")) == "EQ-U044"
    write_json(mine / "manifest.json", {"schema": "edgeq.artifact/1", "files": []})
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        check_out(mine, "replace")
    bundle = build(tmp_path / "a")
    assert check_out(bundle, "replace") == bundle
    (bundle / "link").symlink_to(mine)
    with pytest.raises(UsageError, match="link"):
        check_out(bundle, "replace")
    (bundle / "link").unlink()
    monkeypatch.chdir(bundle / "golden")
    assert refused(lambda: check_out(bundle, "replace")) == "EQ-U044"


def test_a_build_of_the_c_project_does_not_hinder_a_replacement(build: Builder, tmp_path: Path) -> None:
    bundle = build(tmp_path / "a")
    made = bundle / "c" / "build"
    made.mkdir(parents=True)
    for name in ("net.o", "net_kernels.o", "libnet.a", "selftest"):
        (made / name).write_text("")
    assert refused(lambda: check_out(bundle, "replace")) == "EQ-U044"  # no Makefile of ours
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"].append({"path": "c/Makefile"})
    write_json(bundle / "manifest.json", manifest)
    assert check_out(bundle, "replace") == bundle
    (made / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"c/build/notes\.txt"):
        check_out(bundle, "replace")


def test_links_are_followed(build: Builder, tmp_path: Path) -> None:
    bundle = build(tmp_path / "real" / "a")
    (tmp_path / "link").symlink_to(bundle)
    build(tmp_path / "link", "replace")
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "dangling").symlink_to(tmp_path / "real" / "b")
    build(tmp_path / "dangling")
    assert listing(tmp_path / "real") == ["a", "b"]


def test_long_names_are_refused_cleanly(tmp_path: Path) -> None:
    def work() -> None:
        with staged(tmp_path / "deep" / ("n" * 250)):
            pass

    assert refused(work) == "EQ-U043"
    assert listing(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_parent_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    assert refused(lambda: check_out(tmp_path / "a")) == "EQ-U043"


def test_unwritable_parent_is_refused_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert refused(lambda: check_out(tmp_path / "x" / "a")) == "EQ-U043"


def test_slower_of_two_runs_loses(tmp_path: Path) -> None:
    out = tmp_path / "a"

    def work() -> None:
        with staged(out) as folder:
            (folder / "mine").write_text("1")
            out.mkdir()
            (out / "theirs").write_text("1")

    assert refused(work) == "EQ-U042"
    assert listing(out) == ["theirs"]
    assert listing(tmp_path) == ["a"]


def test_full_disk_tells_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(error: Exception) -> None:
        with staged(tmp_path / "a") as folder:
            (folder / "x").write_bytes(bytes(2_000_000))
            raise error

    with pytest.raises(UsageError, match=r"at least 2\.0 MB are needed") as caught:
        work(OSError(errno.ENOSPC, "No space left on device"))
    assert caught.value.code == "EQ-U045"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    with pytest.raises(UsageError, match=r"0\.0 MB are free"):
        work(RuntimeError("native writer failed"))
    with pytest.raises(UsageError, match=r"5\.0 MB are needed"), staged(tmp_path / "a", needs_bytes=5_000_000):
        pass
    assert listing(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs root and the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_really_full_disk(small_disk: Path) -> None:
    def work() -> None:
        with staged(small_disk / "a") as folder:
            (folder / "x").write_bytes(bytes(3_000_000))

    assert refused(work) == "EQ-U045"
    assert listing(small_disk) == []


def test_read_only_disk(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert refused(lambda: check_out(small_disk / "deep" / "a")) == "EQ-U043"


KILLED = """
import signal, sys, time
from pathlib import Path
from edgeq.artifact import staged
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background inherit that it is ignored
with staged(Path(sys.argv[1]), sys.argv[2]) as folder:
    (folder / "half").write_text("1")
    print("ready", flush=True)
    time.sleep(60)
"""


def start(root: Path, out: Path, exist: str = "fail") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", KILLED, str(out), exist]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str], signal_: signal.Signals) -> None:
    process.send_signal(signal_)
    process.wait(timeout=30)
    assert process.stdout is not None
    process.stdout.close()


def test_killed_run_is_cleaned_up_by_the_next(root: Path, build: Builder, tmp_path: Path) -> None:
    build(tmp_path / "a")
    end(start(root, tmp_path / "a", "replace"), signal.SIGKILL)
    names = listing(tmp_path)
    assert "a" in names
    assert [n for n in names if n.startswith(".a.partial-")]
    (tmp_path / ".a.partial.txt").write_text("not ours")
    build(tmp_path / "a", "replace")
    assert listing(tmp_path) == [".a.partial.txt", "a"]


def test_living_run_is_left_alone(root: Path, build: Builder, tmp_path: Path) -> None:
    process = start(root, tmp_path / "a")
    try:
        build(tmp_path / "a")
        assert [n for n in listing(tmp_path) if n.startswith(".a.partial-")]
    finally:
        end(process, signal.SIGINT)
    assert listing(tmp_path) == ["a"]
    assert "manifest.json" in listing(tmp_path / "a")


def test_kill_between_two_moves_is_undone(build: Builder, tmp_path: Path) -> None:
    """Where folders cannot be exchanged, a kill may leave the old bundle aside; the next run restores it."""
    out = build(tmp_path / "a")
    before = (out / "manifest.json").read_bytes()
    out.rename(tmp_path / ".a.old-1-00000000")

    def work() -> None:
        with staged(out):
            pass

    assert refused(work) == "EQ-U042"
    assert (out / "manifest.json").read_bytes() == before
    assert listing(tmp_path) == ["a"]


def test_many_kills_leave_old_or_new(root: Path, build: Builder, tmp_path: Path) -> None:
    """SIGKILL at random moments around the exchange: the output is always one whole bundle."""
    out = build(tmp_path / "a")
    files = set(listing(out))
    code = (
        "import sys, shutil\nfrom pathlib import Path\nfrom edgeq.artifact import staged\n"
        "print('go', flush=True)\n"
        "while True:\n"
        "    with staged(Path(sys.argv[1]), 'replace') as folder:\n"
        "        shutil.copytree(sys.argv[2], folder, dirs_exist_ok=True)\n"
    )
    model = shutil.copytree(out, tmp_path / "model")
    for turn in range(6):
        command = [sys.executable, "-c", code, str(out), str(model)]
        with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.02 + 0.013 * turn)
            process.kill()
        assert set(listing(out)) == files
    build(out, "replace")
    assert listing(tmp_path) == ["a", "model"]
