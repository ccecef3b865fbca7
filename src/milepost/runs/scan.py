"""What stands in the log files of a run, whatever became of them?

**Invariants**: reading changes nothing and never maps a file (a file cut short by somebody else must be an error, not
a signal). A record is given out once, whichever files of its log hold it, and only if its hash holds. Damage is skipped
up to the next valid record and reported by file and offsets; it is never fatal.

**On crash**: of the writer, the end of a file may hold half a record: not there yet while the writer lives, reported as
damage once it is dead.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from pathlib import Path

from milepost.core.events import ClockSet, Event, Identified
from milepost.runs.decoding import decode_record, kind_of
from milepost.runs.layout import parse_log_name
from milepost.runs.segment import HEADER_BYTES, Header, read_header
from milepost.runs.walking import Damage, FileWalk

__all__ = [
    "Damage",
    "LogFile",
    "LogFollower",
    "LoggedRecord",
    "RunLogFiles",
    "read_log_files",
    "scan",
    "tail",
    "writer_of",
]


#: Segment size of a file whose header is damaged, with no other file of its log to ask.
_NO_SEGMENTS = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedRecord:
    """One event as it was logged.

    Attributes:
        log_id: Random 16 bytes of the log it stands in.
        sequence: Its place in that log; grows, with gaps.
        monotonic_ns: Clock of the writing machine; orders records of one boot.
        wall_ns: Nanoseconds since 1970, by the last clock record before it.
        event: What happened.
    """

    log_id: bytes
    sequence: int
    monotonic_ns: int
    wall_ns: int
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFile:
    """A durable log file with a sound header, or one whose name is all that is known (``header`` None)."""

    path: Path
    log_id: bytes
    first_sequence: int
    copy: int
    header: Header | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLogFiles:
    """The files of one log, in the order of their first sequence numbers."""

    log_id: bytes
    files: tuple[LogFile, ...]

    @property
    def started_ns(self) -> int:
        """Wall time of the log's first header; orders the logs of a run."""
        return min((file.header.wall_ns for file in self.files if file.header is not None), default=0)


def read_log_files(folder: str | os.PathLike[str]) -> list[RunLogFiles]:
    """The logs in ``folder``, oldest first; files of other names are no concern of ours."""
    found: dict[bytes, list[LogFile]] = {}
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    for name in names:
        parts = parse_log_name(name)
        if parts is not None:
            path = Path(folder, name)
            found.setdefault(parts.log_id, []).append(
                LogFile(
                    path=path,
                    log_id=parts.log_id,
                    first_sequence=parts.first_sequence,
                    copy=parts.copy,
                    header=_read_header(path, parts.log_id, parts.first_sequence),
                )
            )
    logs = [
        RunLogFiles(log_id=log_id, files=tuple(sorted(files, key=lambda f: (f.first_sequence, f.copy))))
        for log_id, files in found.items()
    ]
    return sorted(logs, key=lambda log: (log.started_ns, log.log_id))


def _read_header(path: Path, log_id: bytes, first: int) -> Header | None:
    try:
        with open(path, "rb") as file:
            header = read_header(file.read(HEADER_BYTES))
    except OSError:
        return None
    # A header that contradicts its file's name belongs to a renamed or half overwritten file.
    return header if header is not None and (header.log_id, header.base) == (log_id, first) else None


def scan(
    log: RunLogFiles, start: int = 0, *, live: bool = False, damage: list[Damage] | None = None
) -> Iterator[LoggedRecord]:
    """The records of one log from the sequence number ``start`` on.

    Args:
        log: Its files.
        start: Records before it are passed over (but their clock counts).
        live: The writer may still be writing: an unreadable end is not there yet, and no damage.
        damage: Gets what had to be skipped.
    """
    reader = _LogReader(log.log_id, start, live=live, patient=False)
    yield from reader.records(log)
    if damage is not None:
        damage.extend(reader.damage)


class _LogReader:
    """Merges the files of one log, each record once, and keeps its clock; may be asked again when they have grown."""

    def __init__(self, log_id: bytes, start: int, *, live: bool, patient: bool) -> None:
        self.next_sequence = start
        self.writer: Identified | None = None
        self.damage: list[Damage] = []
        self._log_id = log_id
        self._live = live
        self._patient = patient
        self._walks: dict[Path, FileWalk] = {}
        self._last = -1
        self._offset_ns = 0

    def records(self, log: RunLogFiles, *, last: int | None = None) -> Iterator[LoggedRecord]:
        """All further records that are there by now; with ``last`` only those of the last bytes of each file."""
        if not self._walks:
            self._offset_ns = _clock_offset(log)
        for sequence, payload in self._merged(log, last):
            if sequence <= self._last:
                continue
            self._last = sequence
            if self.damage:
                self.damage[:] = [d for d in self.damage if not d.first_sequence <= sequence < d.end_sequence]
            if sequence >= self.next_sequence:
                self.next_sequence = sequence + 1
                record = self._decode(sequence, payload)
                if record is not None:
                    yield record
            elif kind_of(payload) in {ClockSet.kind, Identified.kind}:
                self._decode(sequence, payload)

    def _merged(self, log: RunLogFiles, last: int | None) -> Iterator[tuple[int, bytes]]:
        for file in log.files:
            if file.path not in self._walks and (header := self._header_of(file, log)) is not None:
                walk = FileWalk(file.path, header, damage=self.damage, live=self._live, patient=self._patient)
                if last is not None:
                    walk.begin_near_the_end(last)
                self._walks[file.path] = walk
        found = [walk.records() for walk in self._walks.values()]
        return found[0] if len(found) == 1 else heapq.merge(*found, key=itemgetter(0))

    def _header_of(self, file: LogFile, log: RunLogFiles) -> Header | None:
        """The file's header; of a damaged one what its name and the other files say. None while there is none yet."""
        if file.header is not None:
            return file.header
        size = _size(file.path)
        if size <= HEADER_BYTES and self._live:
            return None
        self.damage.append(_damaged_header(file, min(size, HEADER_BYTES)))
        # Where segments end is needed only to step over their headers; a search for the next record does that as well.
        segments = [other.header.segment_size for other in log.files if other.header is not None]
        return Header(
            log_id=file.log_id,
            base=file.first_sequence,
            wall_ns=0,
            monotonic_ns=0,
            segment_size=segments[0] if segments else _NO_SEGMENTS,
        )

    def _decode(self, sequence: int, payload: bytes) -> LoggedRecord | None:
        decoded = decode_record(payload)
        if decoded is None:
            return None
        monotonic_ns, event = decoded
        if isinstance(event, ClockSet):
            self._offset_ns = event.wall_ns - event.monotonic_ns
        elif isinstance(event, Identified):
            self.writer = event
        return LoggedRecord(
            log_id=self._log_id,
            sequence=sequence,
            monotonic_ns=monotonic_ns,
            wall_ns=monotonic_ns + self._offset_ns,
            event=event,
        )


def writer_of(log: RunLogFiles) -> Identified | None:
    """Who writes the log, by its first readable record; None while there is none."""
    for record in islice(scan(log, live=True), 1):
        if isinstance(record.event, Identified):
            return record.event
    return None


def tail(log: RunLogFiles, length: int = 256 << 10) -> list[LoggedRecord]:
    """The last records of a log, out of at least its last ``length`` bytes: cheap however long the log is."""
    files = [file for file in log.files if file.header is not None][-2:]
    reader = _LogReader(log.log_id, 0, live=True, patient=False)
    return list(reader.records(RunLogFiles(log_id=log.log_id, files=tuple(files)), last=length))


class LogFollower:
    """Reads all logs of a run and goes on where it, or an earlier one, stopped.

    Args:
        folder: ``metrics/<id>``.
        cursor: From an earlier follower; empty for the beginning.
    """

    def __init__(self, folder: str | os.PathLike[str], cursor: Mapping[str, int] | None = None) -> None:
        self._folder = folder
        self._start = dict(cursor or {})
        self._readers: dict[bytes, _LogReader] = {}
        self._rest: Iterator[LoggedRecord] = iter(())

    @property
    def cursor(self) -> dict[str, int]:
        """Per log id (32 hexadecimal digits) the sequence number at which the next read goes on."""
        return self._start | {log_id.hex(): reader.next_sequence for log_id, reader in self._readers.items()}

    @property
    def writers(self) -> dict[bytes, Identified]:
        """Per log id who writes it, as far as read; known even where the cursor begins after that record."""
        return {log_id: reader.writer for log_id, reader in self._readers.items() if reader.writer is not None}

    def read(self, limit: int) -> list[LoggedRecord]:
        """Up to ``limit`` further records, older logs first, each log in its order; none if there are no more yet."""
        records = list(islice(self._rest, limit))
        if not records:
            self._rest = self._all()
            records = list(islice(self._rest, limit))
        return records

    def _all(self) -> Iterator[LoggedRecord]:
        for log in read_log_files(self._folder):
            reader = self._readers.get(log.log_id)
            if reader is None:
                start = self._start.get(log.log_id.hex(), 0)
                reader = self._readers[log.log_id] = _LogReader(log.log_id, start, live=True, patient=True)
            yield from reader.records(log)


def _clock_offset(log: RunLogFiles) -> int:
    for file in log.files:
        if file.header is not None:
            return file.header.wall_ns - file.header.monotonic_ns
    return 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _damaged_header(file: LogFile, length: int) -> Damage:
    first = file.first_sequence
    return Damage(file=str(file.path), start=0, end=length, first_sequence=first, end_sequence=first + length)
