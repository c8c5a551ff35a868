"""What `NAME_report` of a generated C project says, in frames that survive a bad line.

A frame is a line `$EQ1 LENGTH CRC SEQUENCE WORD NUMBERS`: LENGTH and CRC-32 (hexadecimal) of what follows them,
SEQUENCE counts frames since the board started. Whatever else stands on the line is looked at only to tell what it is.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_FRAME = re.compile(rb"\$EQ1 ([0-9a-f]{2}) ([0-9a-f]{8}) (.*)", re.DOTALL)
_MARK = b"$EQ1 "
_LINE = 4096  # bytes without an end that are kept
_TAIL = 200
_TEXT = frozenset(range(32, 127)) | set(b"\t\r\n")
MOSTLY_TEXT = 0.9


@dataclass(frozen=True)
class Begin:
    """The head of a report.

    Args:
        digest: Of the network that the board runs, `NAME_HASH` of its header.
        unit: What is counted: `cycles`, `ticks`; `none` where the counter stands still.
        vectors: Golden vectors of a report.
        layers: Layers of the network.
    """

    digest: str
    unit: str
    vectors: int
    layers: int


@dataclass(frozen=True)
class Report:
    """All golden vectors, once.

    Args:
        begin: Its head.
        layers: Ticks of each layer for the first vector; all 0 where the layers are not told apart.
        ticks: Of the whole network, a vector each.
        different: Codes of the outputs that differ from the expected ones.
        largest: By how many steps, at most.
    """

    begin: Begin
    layers: tuple[int, ...]
    ticks: tuple[int, ...]
    different: int
    largest: int


@dataclass(frozen=True)
class Boot:
    """The board has started."""


@dataclass(frozen=True)
class Refusal:
    """The network refused to run, for the reason named."""

    reason: str


Event = Boot | Begin | Report | Refusal


@dataclass
class _Open:
    """A report that is being received."""

    begin: Begin
    layers: list[int] = field(default_factory=list)
    vectors: list[tuple[int, int, int]] = field(default_factory=list)


class FrameReader:
    """Turns bytes into events, whatever comes between the frames.

    Attributes:
        frames: Sound frames so far.
        damaged: Frames that were cut, changed or lost so far.
        seen: Bytes so far.
    """

    def __init__(self) -> None:
        self.frames, self.damaged, self.seen = 0, 0, 0
        self._line, self._tail = b"", b""
        self._text = 0
        self._next: int | None = None
        self._open: _Open | None = None

    @property
    def inside(self) -> bool:
        """Whether a report has begun and not ended."""
        return self._open is not None

    @property
    def last_words(self) -> str:
        """The last line that was no frame, as far as it is text."""
        lines = [line.strip() for line in self._tail.decode("ascii", "replace").splitlines() if line.strip()]
        return lines[-1][:_TAIL] if lines else ""

    @property
    def is_text(self) -> bool:
        """Whether most of what came is text."""
        return self._text >= MOSTLY_TEXT * self.seen

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that `data` completes."""
        self.seen += len(data)
        self._text += sum(byte in _TEXT for byte in data)
        *lines, self._line = (self._line + data).split(b"\n")
        self._line = self._line[-_LINE:]
        for line in lines:
            body = self._body(line)
            if body is not None and (event := self._event(body)) is not None:
                yield event

    def _body(self, line: bytes) -> list[str] | None:
        """Words of a sound frame; None for anything else."""
        start = line.rfind(_MARK)
        if start < 0:
            self._tail = (self._tail + line + b"\n")[-2 * _TAIL :]
            return None
        found = _FRAME.fullmatch(line[start:].rstrip(b"\r"))
        if found is None or len(found[3]) != int(found[1], 16) or zlib.crc32(found[3]) != int(found[2], 16):
            self._lose()
            return None
        self.frames += 1
        return found[3].decode("ascii", "replace").split()

    def _lose(self) -> None:
        """A frame is missing: the report it belonged to is, too."""
        self.damaged += 1
        self._open, self._next = None, None

    def _event(self, words: list[str]) -> Event | None:
        """What the words of a sound frame mean; raises nothing, whoever wrote them."""
        try:
            sequence, word, numbers = int(words[0], 16), words[1], words[2:]
            if word == "boot":
                self._next, self._open = 1, None
                return Boot()
            if self._next is not None and sequence != self._next % 65536:
                self._lose()
            self._next = sequence + 1
            return self._part(word, numbers)
        except (ValueError, IndexError):
            self._lose()
            return None

    def _part(self, word: str, values: Sequence[str]) -> Event | None:
        """A part of a report, which must come in order."""
        if word == "begin":
            begin = Begin(values[0], values[1], int(values[2]), int(values[3]))
            self._open = _Open(begin)
            return begin
        if self._open is None:  # the rest of a report whose head was not seen
            return None
        if word == "unaligned":
            self._open = None
            return Refusal("the arena is not aligned to 8 bytes")
        numbers = [int(value) for value in values]
        if word == "layer":
            _expect(numbers[0] == len(self._open.layers))
            self._open.layers.append(numbers[1])
        elif word == "vector":
            _expect(numbers[0] == len(self._open.vectors))
            self._open.vectors.append((numbers[1], numbers[2], numbers[3]))
        elif word == "end":
            return self._whole()
        return None

    def _whole(self) -> Report:
        assert self._open is not None
        found, self._open = self._open, None
        _expect(len(found.layers) == found.begin.layers and len(found.vectors) == found.begin.vectors)
        ticks, different, largest = zip(*found.vectors, strict=True)
        return Report(found.begin, tuple(found.layers), tuple(ticks), sum(different), max(largest))


def _expect(met: bool) -> None:
    if not met:
        raise ValueError("a frame that does not belong there")
