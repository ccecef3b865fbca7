"""Who turns what was handed over raw into files that a person can open?

A thread beside the training looks into ``media/.staged`` and encodes what its rank put there, the oldest first.

**Invariants**: a staged file goes only after its encoded file is on disk and recorded. The name of the encoded file
follows from the staged one, so a second attempt replaces it by the same bytes. One process at a time encodes for a
rank; it holds that rank's lock.

**On crash**: the next companion, or ``milepost doctor``, does what is left. Where both files are there it asks the
log whether the encoded one is recorded, so each becomes exactly one ``MediaAdded``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Protocol

from milepost.companion.media_formats import Encoded, encode
from milepost.core.errors import CorruptDataError, MissingDependencyError, StorageError
from milepost.core.events import Event, MediaAdded, Noticed
from milepost.io.durable import replace_file
from milepost.io.locks import OwnedLock
from milepost.runs.layout import RunLayout
from milepost.runs.recording import NOT_KEPT
from milepost.runs.scan import read_log_files, scan
from milepost.runs.staged import Staged, read_staged, staged_by, staged_names, target_stem

__all__ = ["MediaEncoder"]

_LOOK_EVERY = 0.1
_TRY_AGAIN_AFTER = 2.0
#: So many are synced and removed together.
_BATCH = 32


class Recorder(Protocol):
    """The log of the process that encodes."""

    def record(self, event: Event, step: int | None = None) -> int:
        """Append; the place of the record, or ``NOT_KEPT``."""

    def sync(self) -> None:
        """Bring what was recorded to the disk."""

    def notice(self, noticed: Noticed) -> None:
        """Record that the world went wrong, or is mended, and say it."""


class MediaEncoder:
    """Encodes the staged media of a run.

    Args:
        layout: The run.
        rank: Whose media; None: those of every rank, for a run that nobody works on.
        recorder: Where the encoded files are recorded.
        may_work: Cleared while something more urgent wants this process.
    """

    name = "media"

    def __init__(
        self, layout: RunLayout, rank: int | None, recorder: Recorder, *, may_work: threading.Event | None = None
    ) -> None:
        self._layout = layout
        self._rank = rank
        self._recorder = recorder
        self._may_work = may_work
        self._locks: dict[int, OwnedLock] = {}
        self._left_out: set[str] = set()
        self._recorded: set[str] = set()
        self._remarked: set[str] = set()
        self._refused = False
        self._finishing = threading.Event()
        self._thread = threading.Thread(target=self._live, name="milepost-media", daemon=True)

    def start(self) -> None:
        """Begin to encode."""
        self._thread.start()

    def hurry(self) -> None:
        """Nothing more will be staged: encode what is there, and end. Never waits."""
        self._finishing.set()

    def join(self, seconds: float) -> bool:
        """Wait at most ``seconds`` for the thread; whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(max(0.0, seconds))
        return not self._thread.is_alive()

    def finish(self, deadline: float) -> bool:
        """Encode the rest until ``time.monotonic()`` is ``deadline``; whether nothing is left."""
        self.hurry()
        return self.join(deadline - time.monotonic()) and not self._waiting()

    def _live(self) -> None:
        try:
            while True:
                last = self._finishing.is_set()
                if self._may_work is not None:
                    self._may_work.wait(1.0)
                done = self._encode_batch()
                if done:
                    continue
                if last:
                    return
                self._finishing.wait(_TRY_AGAIN_AFTER if self._refused else _LOOK_EVERY)
        finally:
            for lock in self._locks.values():
                lock.release(unlink=True)

    def _waiting(self) -> list[str]:
        """What is staged, whose encoding is ours, and that was not found to be impossible."""
        names = staged_names(self._layout.staged_media)
        return [name for name in names if self._rank in {None, staged_by(name)} and name not in self._left_out]

    def _ours(self, names: list[str]) -> Iterator[str]:
        for name in names:
            rank = staged_by(name)
            if rank not in self._locks:
                path = self._layout.cursor(f"media-{rank}").with_suffix(".lock")
                self._locks[rank] = OwnedLock(path)
            if self._locks[rank].held or self._locks[rank].acquire():
                yield name

    def _encode_batch(self) -> bool:
        """Whether something was done. A disk that refuses is said once and tried again."""
        try:
            done = [name for name in self._ours(self._waiting()[:_BATCH]) if self._encode(name)]
            if not done:
                return False
            self._recorder.sync()
            for name in done:
                (self._layout.staged_media / name).unlink(missing_ok=True)
            self._recorded.clear()
        except OSError as error:  # StorageError among them
            self._refuse(error)
            return False
        if self._refused:
            self._refused = False
            self._notice("disk", "logged media are encoded again", cured=True)
        return True

    def _encode(self, name: str) -> bool:
        """Whether the staged file is not needed any more."""
        path = self._layout.staged_media / name
        try:
            staged, data = read_staged(path)
            encoded = encode(staged, data)
        except FileNotFoundError:
            return False
        except CorruptDataError as error:
            self._notice("damaged", f"something logged to be looked at is lost: {error.what}", error.cure)
            return True
        except MissingDependencyError as error:
            self._left_out.add(name)
            self._notice("dependency", error.what, f"{error.cure}, then `milepost doctor`")
            return False
        self._keep(name, staged, encoded)
        return True

    def _keep(self, source: str, staged: Staged, encoded: Encoded) -> None:
        target = self._layout.media / f"{target_stem(staged, source)}{encoded.ending}"
        if target.exists() and self._is_recorded(source):
            return
        replace_file(target, encoded.content)
        added = MediaAdded(
            step=staged.step,
            name=staged.name,
            path=target.name,
            media_type=encoded.media_type,
            size=len(encoded.content),
            form=staged.form,
            caption=staged.caption,
            facts=encoded.facts,
            source=source,
        )
        if self._recorder.record(added, staged.step) == NOT_KEPT:
            raise StorageError("the log takes no record", cure="free disk space")
        self._recorded.add(source)
        if encoded.remark and staged.name not in self._remarked:
            self._remarked.add(staged.name)
            self._notice(f"values of {staged.name}", f"{staged.form} {staged.name!r} has {encoded.remark}")

    def _is_recorded(self, source: str) -> bool:
        """Whether an attempt that was interrupted came as far as recording it."""
        return source in self._recorded or any(
            isinstance(record.event, MediaAdded) and record.event.source == source
            for log in read_log_files(self._layout.log)
            for record in scan(log, live=True)
        )

    def _refuse(self, error: OSError) -> None:
        if self._refused:
            return
        self._refused = True
        why = error.what if isinstance(error, StorageError) else str(error)
        self._notice("disk", f"logged media wait to be encoded ({why})", "free disk space; they are kept until then")

    def _notice(self, topic: str, message: str, cure: str = "", *, cured: bool = False) -> None:
        with suppress(OSError):
            self._recorder.notice(Noticed(source="media", topic=topic, message=message, cure=cure, cured=cured))
