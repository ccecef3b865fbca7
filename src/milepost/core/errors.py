"""What can go wrong, and what would the caller do about it?

::

    MilepostError
    ├── InvalidInputError   (ValueError)      correct the value you passed
    ├── InvalidCallError    (TypeError)       correct the call: an argument of the wrong type, a call at the wrong time
    ├── NotFoundError       (KeyError)        name something that exists
    ├── ConflictError       (RuntimeError)    somebody else holds it: wait, or end the other one
    ├── StorageError        (OSError)         mend the disk; what was committed before is whole
    ├── CorruptDataError    (ValueError)      use the sound copy that the message offers
    ├── MissingDependencyError (ImportError)  install what the message names
    └── GaveUpWaitingError  (TimeoutError)    it may still finish; look again later

Every error says what happened, with which value, and the cure. ``kind`` is a stable word for programs; words are only
ever added. Errors pickle, so they cross process boundaries whole.
"""

from __future__ import annotations

__all__ = [
    "ConflictError",
    "CorruptDataError",
    "GaveUpWaitingError",
    "InvalidCallError",
    "InvalidInputError",
    "MilepostError",
    "MissingDependencyError",
    "NotFoundError",
    "StorageError",
]


class MilepostError(Exception):
    """Base of all errors that milepost raises on purpose.

    Args:
        what: What happened and with which value, in one sentence without a full stop.
        cure: What the reader can do about it; shown after the sentence.
        kind: A stable word for programs, for example ``"disk-full"``.
    """

    default_kind = "error"

    def __init__(self, what: str, *, cure: str = "", kind: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.cure = cure
        self.kind = kind or self.default_kind

    def __str__(self) -> str:
        return f"{self.what}: {self.cure}" if self.cure else self.what

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.cure, self.kind)


def _rebuild(cls: type[MilepostError], what: str, cure: str, kind: str) -> MilepostError:
    return cls(what, cure=cure, kind=kind)


class InvalidInputError(MilepostError, ValueError):
    """A value that cannot be meant."""

    default_kind = "invalid-input"


class InvalidCallError(MilepostError, TypeError):
    """A call that cannot be meant: an argument of the wrong type, or a method at the wrong time."""

    default_kind = "invalid-call"


class NotFoundError(MilepostError, KeyError):
    """Something that was named does not exist."""

    default_kind = "not-found"


class ConflictError(MilepostError, RuntimeError):
    """Somebody else holds what was asked for."""

    default_kind = "conflict"


class StorageError(MilepostError, OSError):
    """The disk, the file system or the operating system refused."""

    default_kind = "storage"


class CorruptDataError(MilepostError, ValueError):
    """Stored bytes are not what was written; the message names file, part and offset."""

    default_kind = "corrupt"


class MissingDependencyError(MilepostError, ImportError):
    """An optional package is absent; the message names its ``pip install``."""

    default_kind = "missing-dependency"


class GaveUpWaitingError(MilepostError, TimeoutError):
    """Something did not happen in the time given to it."""

    default_kind = "timeout"
