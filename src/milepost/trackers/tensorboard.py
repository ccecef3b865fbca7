"""How does a run reach TensorBoard?

As event files in ``runs/<experiment id>``, one per attempt: ``tensorboard --logdir runs`` shows them while the run goes
on. Scalars, texts, and the hyperparameter table.

**Invariants**: a file's bytes are a pure function of the run log: wall times and order come from the records. The
cursor holds the length of every file, so that each point stands in the files exactly once.

**On crash**: what was written after the cursor is cut off at the next start, and told again. Where a file has vanished
or is shorter than the cursor says, the files made here are removed and the run is told from its first record.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from milepost.core.errors import InvalidCallError
from milepost.core.events import BigIntegers, Metrics, Rewound, StatusChanged, Text
from milepost.core.names import safe_name
from milepost.runs.scan import LoggedRecord
from milepost.trackers.event_file import EventEncoder
from milepost.trackers.protocol import RunDescription

__all__ = ["TensorboardTracker"]

_OURS = "events.out.tfevents.*.milepost"


class TensorboardTracker:
    """Writes TensorBoard event files.

    TensorBoard knows numbers of 32 bits only, so a float64 is rounded there; the run log keeps it whole. Integers and
    booleans become floats, NaN and the infinities stay what they are. After a resume at step k the points after k that
    an earlier attempt wrote are hidden by TensorBoard, as they are by every reader of the log.
    """

    name = "tensorboard"

    def __init__(self) -> None:
        self._encoder: EventEncoder | None = None
        self._path = Path()
        self._lengths: dict[str, int] = {}
        self._last_seconds = 0.0

    def open(self, run: RunDescription, cursor: Mapping[str, Any]) -> bool:
        """Cut the files back to the cursor, and begin this attempt's file if it is not there yet.

        Raises:
            MissingDependencyError: The package ``tensorboard`` is absent.
            OSError: The folder cannot be written.
        """
        self._encoder = EventEncoder()
        run.folder.mkdir(parents=True, exist_ok=True)
        self._lengths = dict(cursor.get("files", {}))
        self._last_seconds = cursor.get("last_seconds", run.started)
        for path in run.folder.glob(_OURS):
            if path.name not in self._lengths:
                path.unlink()
        if not all(_cut(run.folder / name, length) for name, length in self._lengths.items()):
            return False
        self._path = run.folder / _file_name(run, self._lengths)
        if self._path.name not in self._lengths:
            self._path.touch()
            self._lengths[self._path.name] = 0
            self._append(_prologue(self._encoder, run, first=len(self._lengths) == 1))
        return True

    def write(self, records: Sequence[LoggedRecord]) -> None:
        """Append what TensorBoard can show of ``records``.

        Raises:
            OSError: The file cannot be written, or somebody else wrote to it.
        """
        encoded = [self._encoded(record) for record in records]
        self._append(b"".join(encoded))

    def flush(self) -> Mapping[str, Any]:
        """Nothing is held back: the length of the files is the cursor."""
        return {"files": dict(self._lengths), "last_seconds": self._last_seconds}

    def close(self, end: StatusChanged | None) -> None:
        """Mark a completed run in the hyperparameter table.

        Only a completed one: TensorBoard believes the first mark it finds, and any other run may go on.
        """
        if end is not None and end.status == "completed":
            self._append(self._opened().completed(self._last_seconds))

    def _opened(self) -> EventEncoder:
        if self._encoder is None:
            raise InvalidCallError("this TensorBoard tracker is not open", cure="call open(run, cursor) first")
        return self._encoder

    def _encoded(self, record: LoggedRecord) -> bytes:
        encoder, event, seconds = self._opened(), record.event, record.wall_ns / 1e9
        self._last_seconds = seconds
        if isinstance(event, Metrics):
            return encoder.scalars(seconds, event.step or 0, event.values) if event.values else b""
        if isinstance(event, BigIntegers):
            return encoder.scalars(seconds, event.step or 0, {name: int(text) for name, text in event.values.items()})
        if isinstance(event, Rewound):
            return encoder.session_start(seconds, event.step + 1)
        if isinstance(event, Text):
            return encoder.text(seconds, event.step or 0, event.name, event.text)
        return b""

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


def _prologue(encoder: EventEncoder, run: RunDescription, *, first: bool) -> bytes:
    parts = [encoder.file_start(run.started)]
    if first:
        parts.append(encoder.session_start(run.started, 0))  # TensorBoard takes the first of a run for no restart
    if run.hyperparameters:
        parts.append(encoder.hyperparameters(run.started, run.id, run.hyperparameters))
    if run.description:
        parts.append(encoder.text(run.started, 0, "description", run.description))
    for name, content in (("model_config", run.model_config), ("dataset_info", run.dataset_info)):
        if content:
            listing = json.dumps(content, indent=4, default=str, ensure_ascii=False)
            parts.append(encoder.text(run.started, 0, name, f"```json\n{listing}\n```"))
    return b"".join(parts)


def _cut(path: Path, length: int) -> bool:
    """Cut the file back to ``length``; False if it is absent or shorter."""
    try:
        size = path.stat().st_size
        if size > length:
            os.truncate(path, length)
    except FileNotFoundError:
        return False
    return size >= length
