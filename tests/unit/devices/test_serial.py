"""Boards on a serial line: an emulated one that reports over its UART, and pretended ones that misbehave."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import tty
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq import firmware
from edgeq.artifact import Artifact
from edgeq.cli.main import main
from edgeq.devices.attached import open_device
from edgeq.devices.boards import SerialDevice
from edgeq.devices.cortex_m import EMULATOR, build, missing_tools, run_emulated
from edgeq.devices.frames import FrameReader, Report
from edgeq.devices.link import Limits
from edgeq.devices.serial_line import Address, SerialLine
from edgeq.errors import DeviceError, MissingError, UsageError
from edgeq.exporters.c.memory import memory_of
from edgeq.graph.intgraph.file import save
from tests.unit.devices.conftest import finish
from tests.unit.exporters.test_c_project import compiler
from tests.unit.graph.intgraphs import SmallCnn, lowered, noise

SHORT = Limits(hello=2, silence=1, answer=60)
UART = 0x40004000


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder, samples = tmp_path_factory.mktemp("program"), noise(1, 3, 9, 9, count=2)
    graph = lowered(SmallCnn().eval(), samples)
    save(graph, folder / "model.intgraph")
    inputs = [tuple(x.numpy() for x in sample) for sample in samples]
    firmware.write_firmware(folder, "small", folder / "model.intgraph", inputs)
    return finish(folder, "model.intgraph", inputs, asdict(memory_of(graph)), target="cortex-m4")


def digest_of(artifact: Artifact) -> str:
    found = re.search(r'SMALL_HASH "(\w+)"', (artifact.folder / "c" / "small.h").read_text())
    assert found is not None
    return found[1]


def frame(sequence: int, text: str) -> bytes:
    body = f"{sequence:04x} {text}".encode()
    return b"\n$EQ1 %02x %08x %s\r\n" % (len(body), zlib.crc32(body), body)


class Script:
    """What a firmware prints; frames are numbered."""

    def __init__(self, digest: str, layers: int, unit: str = "cycles") -> None:
        self.digest, self.layers, self.unit, self.sequence = digest, layers, unit, 0

    def say(self, text: str) -> bytes:
        self.sequence = 1 if text == "boot" else self.sequence + 1
        return frame(self.sequence - 1, text)

    def report(self, ticks: int = 100, different: int = 0) -> list[bytes]:
        said = [f"begin {self.digest} {self.unit} 2 {self.layers}"]
        said += [f"layer {i} {ticks + i}" for i in range(self.layers)]
        said += [f"vector {v} {1000 + ticks} {different} {3 * different}" for v in (0, 1)]
        return [self.say(text) for text in (*said, "end 1")]


Body = Callable[[Callable[[bytes], None]], None]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Body], str]]:
    """Starts a board that does what a function says once its port is open; gives its port."""
    pytest.importorskip("serial", reason="pip install 'edgeq[mcu]'")
    open_ends: list[int] = []
    workers: list[threading.Thread] = []
    opened = threading.Event()
    listens = SerialLine.reports

    def reports(self: SerialLine, digest: str) -> Generator[Report, None, None]:
        opened.set()  # what came before was thrown away
        return listens(self, digest)

    monkeypatch.setattr(SerialLine, "reports", reports)

    def start(body: Body) -> str:
        opened.clear()
        master, slave = os.openpty()
        tty.setraw(slave)
        open_ends.extend((master, slave))

        def send(data: bytes) -> None:
            os.write(master, data)

        def work() -> None:
            opened.wait(60)
            with suppress(OSError):
                body(send)

        workers.append(threading.Thread(target=work, daemon=True))
        workers[-1].start()
        return os.ttyname(slave)

    yield start
    opened.set()
    for worker in workers:
        worker.join(5)
    for end in open_ends:
        with suppress(OSError):
            os.close(end)


def device(port: str, limits: Limits = SHORT) -> SerialDevice:
    return SerialDevice(Address(port), 5, limits)


def layers_of(artifact: Artifact) -> int:
    found = re.search(r"SMALL_LAYERS (\d+)", (artifact.folder / "c" / "small.h").read_text())
    assert found is not None
    return int(found[1])


@pytest.fixture
def script(program: Artifact) -> Script:
    return Script(digest_of(program), layers_of(program))


def test_a_board_that_behaves(program: Artifact, script: Script, pretend: Callable[[Body], str]) -> None:
    def body(send: Callable[[bytes], None]) -> None:
        for part in script.report()[2:]:  # the end of a report that began before anybody listened
            send(part)
        for ticks in (100, 200, 300):
            for part in script.report(ticks):
                send(part)

    found = device(pretend(body)).profile(program, 3).to_dict()
    assert (found["unit"], found["runs"], found["p50"], found["complete"]) == ("cycles", 3, 1200, True)
    assert [layer["value"] for layer in found["layers"]][:2] == [200, 201]
    assert any("never a real one" in note for note in found["notes"])


def test_codes_that_differ_fail(program: Artifact, script: Script, pretend: Callable[[Body], str]) -> None:
    port = pretend(lambda send: [send(part) for part in script.report(different=2)] and None)
    found = device(port).verify(program)
    assert (found.passed, found.max_lsb, found.details["different"]) == (False, 6, 4)


def cut(parts: list[bytes], at: int) -> list[bytes]:
    return [*parts[:at], parts[at][:-9]]


def test_every_trouble_has_its_own_code(program: Artifact, script: Script, pretend: Callable[[Body], str]) -> None:
    whole = script.report()
    damaged = [part.replace(b" vector", b" vectos") for part in whole]
    other = Script("0123456789abcdef", 2).report()
    again = [*whole[:3], script.say("boot"), *script.report()]
    troubles: list[tuple[str, list[bytes]]] = [
        ("EQ-X921", []),
        ("EQ-X922", [bytes(np.random.default_rng(0).integers(128, 256, 400).astype(np.uint8))]),
        ("EQ-X923", [b"Hello from Zephyr\r\n" * 20]),
        ("EQ-X924", other),
        ("EQ-X925", again),
        ("EQ-X926", damaged * 3),
        ("EQ-X927", cut(whole, 3)),
        ("EQ-X929", [script.say(f"begin {script.digest} cycles 2 3"), script.say("unaligned")]),
    ]
    for code, parts in troubles:
        port = pretend(lambda send, parts=parts: [send(part) for part in parts] and None)  # type: ignore[misc]
        with pytest.raises(DeviceError) as failed:
            device(port).verify(program)
        assert failed.value.code == code, failed.value.message
        assert failed.value.hint and port in str(failed.value.place)


def test_noise_between_frames_costs_one_report(
    program: Artifact, script: Script, pretend: Callable[[Body], str]
) -> None:
    def body(send: Callable[[bytes], None]) -> None:
        broken = script.report(100)
        broken[2] = broken[2][:20] + b"\xff" + broken[2][21:]
        for part in (b"\x00\xfe garbage", *broken, b"tick\n", *script.report(200), b"[ISR] noise"):
            send(part)

    assert device(pretend(body)).profile(program, 1).p50 == 1200


def test_a_profile_that_is_cut_keeps_its_reports(
    program: Artifact, script: Script, pretend: Callable[[Body], str]
) -> None:
    parts = [*script.report(100), *script.report(300), *script.report()[:2]]
    found = device(pretend(lambda send: [send(part) for part in parts] and None)).profile(program, 5)
    assert found.runs == 2 and found.p50 == 1200 and found.error is not None and found.error.code == "EQ-X927"


def test_a_counter_that_stands_still(program: Artifact, script: Script, pretend: Callable[[Body], str]) -> None:
    script.unit = "none"
    parts = script.report() * 5
    port = pretend(lambda send: [send(part) for part in parts] and None)
    with pytest.raises(DeviceError) as failed:
        device(port).profile(program, 1)
    assert failed.value.code == "EQ-X930" and "EDGEQ_TICKS" in str(failed.value.hint)


def test_a_port_that_goes_away(program: Artifact, pretend: Callable[[Body], str]) -> None:
    def body(send: Callable[[bytes], None]) -> None:
        send(b"Hello\n")
        board.abort()

    board = device(pretend(body), Limits(hello=60, silence=60, answer=60))
    with pytest.raises(DeviceError) as failed:
        board.verify(program)
    assert failed.value.code == "EQ-X928"


def test_ports_that_do_not_open(program: Artifact, pretend: Callable[[Body], str], tmp_path: Path) -> None:
    with pytest.raises(DeviceError) as failed:
        device("/dev/no-such-port").verify(program)
    assert failed.value.code == "EQ-X920" and failed.value.hint == "edgeq devices --scan"
    import serial

    port = pretend(lambda send: None)
    with serial.Serial(port, exclusive=True), pytest.raises(DeviceError) as failed:
        device(port).verify(program)
    assert failed.value.code == "EQ-X920" and "close the program" in str(failed.value.hint)


def test_pyserial_is_asked_for(program: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "serial", None)
    with pytest.raises(MissingError) as lacking:
        device("/dev/ttyACM0").verify(program)
    assert lacking.value.code == "EQ-P920" and "edgeq[mcu]" in str(lacking.value.hint)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("serial:///dev/ttyACM0", "serial:///dev/ttyACM0"),
        ("serial:///dev/serial/by-id/usb-STM_STLINK-if02", "serial:///dev/serial/by-id/usb-STM_STLINK-if02"),
        ("serial:///dev/ttyUSB1?baud=460800", "serial:///dev/ttyUSB1?baud=460800"),
        ("serial://COM3?baud=115200", "serial://COM3"),
    ],
)
def test_addresses(text: str, name: str) -> None:
    assert open_device(text).name == name


@pytest.mark.parametrize(
    "text", ["serial://", "serial://ttyACM0", "serial:///dev/x?baud=fast", "serial:///dev/x?", "serial:///a b"]
)
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        open_device(text)
    assert refused.value.code == "EQ-U920"


def test_what_a_line_cannot_run(tflite: Artifact, program: Artifact) -> None:
    with pytest.raises(UsageError) as refused:
        device("/dev/ttyACM0").verify(tflite)
    assert refused.value.code == "EQ-U603"
    with pytest.raises(UsageError) as refused:
        device("/dev/ttyACM0").profile(program, "auto", program)
    assert refused.value.code == "EQ-U921"


@given(st.binary(max_size=300))
def test_no_bytes_whatever_break_the_reader(data: bytes) -> None:
    reader = FrameReader()
    assert not [event for event in reader.feed(data) if isinstance(event, Report)]


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_byte_that_changes_never_changes_a_figure(place: int, byte: int) -> None:
    script = Script("00112233", 3)
    sound = b"".join([*script.report(100), *script.report(100)])
    place %= len(sound)
    reader = FrameReader()
    heard = sound[:place] + bytes([byte]) + sound[place + 1 :]
    reports = [event for i in range(0, len(heard), 7) for event in reader.feed(heard[i : i + 7])]
    good = [event for event in reports if isinstance(event, Report)]
    assert len(good) >= 1 or byte == sound[place] or reader.damaged
    assert all(report.layers == (100, 101, 102) and report.ticks == (1100, 1100) for report in good)


@pytest.mark.skipif(bool(missing_tools()), reason=missing_tools())
def test_an_emulated_board_reports_over_its_uart(
    program: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("serial", reason="pip install 'edgeq[mcu]'")
    image = build(program.folder / "c", "cortex-m4", tmp_path, ("-O3", f"-DEDGEQ_UART={UART:#x}u"))
    words = [EMULATOR, "-M", "mps2-an386", "-display", "none", "-monitor", "none", "-serial", "pty"]
    emulator = subprocess.Popen([*words, "-icount", "shift=6", "-kernel", str(image)], stdout=subprocess.PIPE)
    try:
        assert emulator.stdout is not None
        port = re.findall(rb"/dev/pts/\d+", emulator.stdout.readline())[0].decode()
        address = f"serial://{port}"
        assert main(["verify", str(program.folder), "--on", address]) == 0
        assert "every integer equal" in capsys.readouterr().out
        found = open_device(address).profile(program, 2)
        counted = run_emulated(program.folder / "c", "cortex-m4")
        assert found.p50 is not None and found.unit == "ticks" and found.runs == 2
        assert found.p50 == pytest.approx(1.6 * counted.total, rel=0.02)
        for layer, value in zip(found.layers, counted.layers, strict=True):
            assert layer.value == pytest.approx(1.6 * value, rel=0.02, abs=40)
    finally:
        emulator.kill()
        emulator.wait()


def test_the_report_compiles_without_warnings_for_a_computer(program: Artifact, tmp_path: Path) -> None:
    name, _ = compiler("gcc -O2")
    subprocess.run(
        ["make", "-s", f"CC={name}", "CFLAGS=-O2 -Werror", "board"], cwd=_copy(program, tmp_path), check=True
    )
    main_c = tmp_path / "main.c"
    main_c.write_text(
        '#include "small.h"\n#include "small_board.h"\n#include <stdio.h>\n'
        "void small_write(const char *b, int n) { fwrite(b, 1, (size_t)n, stdout); }\n"
        "int main(void) { static _Alignas(8) uint8_t arena[SMALL_ARENA_BYTES];"
        " small_report(arena); small_report(arena); return 0; }\n"
    )
    folder = tmp_path / "c"
    link = [name, "-I", str(folder), str(main_c), str(folder / "build" / "libsmall_board.a"), "-o", str(tmp_path / "p")]
    subprocess.run(link, check=True)
    said = subprocess.run([str(tmp_path / "p")], capture_output=True, check=True).stdout
    reports = [event for event in FrameReader().feed(said) if isinstance(event, Report)]
    assert len(reports) == 2 and reports[0].begin.digest == digest_of(program)
    assert reports[0].begin.unit == "none" and reports[0].different == 0 and reports[0].begin.vectors == 2


def _copy(artifact: Artifact, to: Path) -> Path:
    (to / "c").mkdir()
    for file in (artifact.folder / "c").iterdir():
        (to / "c" / file.name).write_bytes(file.read_bytes())
    return to / "c"
