"""How does a run reach TensorBoard?

As event files in ``runs/<experiment id>``, one per attempt: ``tensorboard --logdir runs`` shows them while the run goes
on. What of the log is shown there says :mod:`milepost.trackers.tensorboard_records`.

**Invariants**: a file's bytes are a pure function of the run log and its media: wall times and order come from the
records. The cursor holds the length of every file, so that each point stands in the files exactly once.

**On crash**: what was written after the cursor is cut off at the next start, and told again. Where a file has vanished
or is shorter than the cursor says, the files made here are removed and the run is told from its first record.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from milepost.core.errors import InvalidCallError
from milepost.core.events import Noticed, StatusChanged
from milepost.core.names import safe_name
from milepost.runs.scan import LoggedRecord
from milepost.trackers.protocol import RunDescription
from milepost.trackers.tensorboard_records import RecordEncoder

__all__ = ["TensorboardTracker"]

_OURS = "events.out.tfevents.*.milepost"


class TensorboardTracker:
    """Writes TensorBoard event files.

    TensorBoard knows numbers of 32 bits only, so a float64 is rounded there; the run log keeps it whole. Integers and
    booleans become floats, NaN and the infinities stay what they are. After a resume at step k the points after k that
    an earlier attempt wrote are hidden by TensorBoard, as they are by every reader of the log.

    Args:
        notice: Told once if a logged file is gone or damaged; the rest goes on.
    """

    name = "tensorboard"

    def __init__(self, notice: Callable[[Noticed], None] | None = None) -> None:
        self._notice = notice
        self._encoder: RecordEncoder | None = None
        self._path = Path()
        self._lengths: dict[str, int] = {}

    def open(self, run: RunDescription, cursor: Mapping[str, Any]) -> bool:
        """Cut the files back to the cursor, and begin this attempt's file if it is not there yet.

        Raises:
            MissingDependencyError: The package ``tensorboard`` is absent.
            OSError: The folder cannot be written.
        """
        self._encoder = RecordEncoder(run, cursor.get("state", {}), self._notice)
        run.folder.mkdir(parents=True, exist_ok=True)
        self._lengths = dict(cursor.get("files", {}))
        for path in run.folder.glob(_OURS):
            if path.name not in self._lengths:
                path.unlink()
        if not all(_cut(run.folder / name, length) for name, length in self._lengths.items()):
            return False
        self._path = run.folder / _file_name(run, self._lengths)
        if self._path.name not in self._lengths:
            self._path.touch()
            self._lengths[self._path.name] = 0
            self._append(self._encoder.begun(first=len(self._lengths) == 1))
        return True

    def write(self, records: Sequence[LoggedRecord]) -> None:
        """Append what TensorBoard can show of ``records``.

        Raises:
            OSError: The file cannot be written, or somebody else wrote to it.
        """
        encoder = self._opened()
        self._append(b"".join([encoder.told(record) for record in records]))

    def flush(self) -> Mapping[str, Any]:
        """Nothing is held back: the length of the files is the cursor."""
        return {"files": dict(self._lengths), "state": self._opened().state()}

    def close(self, end: StatusChanged | None) -> None:
        """Write the end, which is cut off again if the run goes on after all."""
        if end is not None:
            self._append(self._opened().ended(end))

    def _opened(self) -> RecordEncoder:
        if self._encoder is None:
            raise InvalidCallError("this TensorBoard tracker is not open", cure="call open(run, cursor) first")
        return self._encoder

    def _append(self, data: bytes) -> None:
        """Opens the file for each batch: nothing is held by a guest that is parked or abandoned in a call."""
        if not data:
            return
        length = self._lengths[self._path.name]
        with open(self._path, "r+b", buffering=0) as file:
            if file.seek(0, os.SEEK_END) != length:
                raise OSError(f"{self._path} has not the {length} bytes that were written: somebody else changed it")
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
        self._lengths[self._path.name] = length + len(data)


def _file_name(run: RunDescription, known: Iterable[str]) -> str:
    """The file of this attempt if there is one, else a new name that sorts after ``known``.

    TensorBoard reads the files of a folder in the order of their names, and a rewind must come after what it hides.
    """
    of_attempt = f".{run.attempt}.milepost"
    latest = -1
    for name in known:
        if name.endswith(of_attempt):
            return name
        latest = max(latest, int(name.split(".")[3]))
    seconds = max(int(run.started), latest + 1)
    return f"events.out.tfevents.{seconds:010d}.{safe_name(run.host)}.{run.pid}{of_attempt}"


def _cut(path: Path, length: int) -> bool:
    """Cut the file back to ``length``; False if it is absent or shorter."""
    try:
        size = path.stat().st_size
        if size > length:
            os.truncate(path, length)
    except FileNotFoundError:
        return False
    return size >= length
