"""Where is the next valid record in a file that may be cut short, full of holes, damaged, or still growing?

**Invariants**: flat memory: a window of the file at a time. The hash decides; a length only says how much to look at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from milepost.runs.segment import HEADER_BYTES, LARGEST_PAYLOAD, Header, find_record, salt_of, walk

__all__ = ["Damage", "FileWalk"]

_WINDOW = 256 << 10
_BLOCK = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Bytes ``[start, end)`` of a file that hold no readable record, and the sequence numbers they stood for."""

    file: str
    start: int
    end: int
    first_sequence: int
    end_sequence: int


class FileWalk:
    """Reads one durable log file forward; may be asked again when the file has grown.

    Args:
        path: The file.
        header: Its header.
        damage: Gets what had to be skipped.
        live: The writer may still be writing: an unreadable end is not there yet.
        patient: Look twice, at two calls, before taking something for damage that may be half visible only now.

    Attributes:
        sequence: Where the next record begins.
    """

    def __init__(self, path: Path, header: Header, *, damage: list[Damage], live: bool, patient: bool) -> None:
        self.sequence = header.base + HEADER_BYTES
        self._path = path
        self._first = header.base
        self._segment = header.segment_size
        self._salt = salt_of(header.log_id)
        self._damage = damage
        self._live = live
        self._patient = patient
        self._suspect = 0
        self._fd = -1

    def begin_near_the_end(self, length: int) -> None:
        """Begin ``length`` bytes before the end, somewhere inside a record: what lies there counts as damage."""
        try:
            size = self._path.stat().st_size
        except OSError:
            return
        self.sequence = max(self.sequence, self._first + size - length & -8)

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Sequence numbers and payloads up to the end of what is readable now; an unreadable file has none."""
        try:
            self._fd = os.open(self._path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
        except OSError:
            return
        try:
            while True:
                yield from self._follow()
                if not self._skip():
                    return
        finally:
            os.close(self._fd)

    def _follow(self) -> Iterator[tuple[int, bytes]]:
        """Records that follow each other, over windows and segments, up to the first that is none."""
        wanted = _WINDOW
        while True:
            self._step_over_header()
            start = self.sequence
            room = self._room(start)
            window = memoryview(self._read(start, min(wanted, room)))
            for sequence, payload in walk(window, 0, len(window), start, self._salt):
                self.sequence = (sequence + 16 + len(payload) + 7) & -8
                yield sequence, bytes(payload)
            if self.sequence > start:
                wanted = _WINDOW
                continue
            needed = 16 + int.from_bytes(window[:8], "little")
            if not len(window) < needed <= min(room, 16 + LARGEST_PAYLOAD) or len(window) < wanted:
                return
            wanted = needed  # it may only be longer than the window

    def _step_over_header(self) -> None:
        if self.sequence % self._segment == 0:
            self.sequence += HEADER_BYTES

    def _room(self, sequence: int) -> int:
        """Bytes up to the end of the segment, which no record crosses."""
        return self._segment - sequence % self._segment

    def _skip(self) -> bool:
        """Step over what is no record at ``sequence``: the unused end of a segment, a hole, or damage.

        Returns:
            Whether there is something to read after it.
        """
        written = self._first_written(self.sequence)
        if written is None:
            return False  # zeros or nothing up to the end of the file
        following = self.sequence + self._room(self.sequence)
        if written >= following:
            self.sequence = following
            return True
        found = self._search(max(written, self.sequence + 8))
        if found is None:
            return self._end_in_damage()
        if self._patient and self._suspect != self.sequence:
            self._suspect = self.sequence
            return False
        self._report(self.sequence, found)
        self.sequence = found
        return True

    def _end_in_damage(self) -> bool:
        if not self._live:
            end = self._first + os.fstat(self._fd).st_size
            self._report(self.sequence, end)
            self.sequence = end + 7 & -8
        return False

    def _first_written(self, sequence: int) -> int | None:
        """Where the next byte stands that is not zero, rounded down to a word."""
        while window := self._read(sequence, _WINDOW):
            rest = window.lstrip(b"\0")
            if rest:
                return sequence + len(window) - len(rest) & -8
            sequence += len(window)
        return None

    def _search(self, sequence: int) -> int | None:
        """The next place at or after ``sequence`` where a valid record begins."""
        end = self._first + os.fstat(self._fd).st_size
        while sequence + 16 < end:
            window = memoryview(self._read(sequence, _WINDOW))
            found, unclear = find_record(window, end - sequence, self._salt)
            if unclear is not None and (found is None or unclear < found):
                if self._holds_record(sequence + unclear):
                    return sequence + unclear
                sequence += unclear + 8
            elif found is not None:
                return sequence + found
            else:
                sequence += max(8, len(window) - 16 & -8)
        return None

    def _holds_record(self, sequence: int) -> bool:
        length = int.from_bytes(self._read(sequence, 8), "little")
        window = memoryview(self._read(sequence, 16 + length))
        return any(True for _ in walk(window, 0, len(window), 0, self._salt))

    def _read(self, sequence: int, length: int) -> bytes:
        place = sequence - self._first
        try:
            return _read_at(self._fd, length, place)
        except OSError:
            return b"".join(self._read_block(at) for at in range(place, place + length, _BLOCK))

    def _read_block(self, place: int) -> bytes:
        """A block of a disk that cannot read some of its blocks: those count as holes."""
        try:
            return _read_at(self._fd, _BLOCK, place)
        except OSError:
            return bytes(max(0, min(_BLOCK, os.fstat(self._fd).st_size - place)))

    def _report(self, start: int, end: int) -> None:
        first = self._first
        self._damage.append(
            Damage(file=str(self._path), start=start - first, end=end - first, first_sequence=start, end_sequence=end)
        )


def _read_at(fd: int, length: int, place: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(fd, length, place)
    os.lseek(fd, place, os.SEEK_SET)
    return os.read(fd, length)
