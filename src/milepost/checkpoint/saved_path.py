"""How can ``save_checkpoint`` return at once and still give a path that can be opened?

The path waits when somebody opens it (``__fspath__``: ``open``, ``torch.load``, ``os.stat``), not when it is printed.
A path derived from it (``parent``, ``with_suffix``) names another file and does not wait.
"""

from __future__ import annotations

import sys
from pathlib import Path, PosixPath, WindowsPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from milepost.checkpoint.writer import PendingSave

__all__ = ["SavedPath"]

_Base: Any = WindowsPath if sys.platform == "win32" else PosixPath


class SavedPath(_Base):  # type: ignore[misc]
    """The path of a checkpoint that may still be on its way to the disk."""

    __slots__ = ("_pending",)

    @classmethod
    def of(cls, pending: PendingSave, path: str | None = None) -> SavedPath:
        """The path of the file that ``pending`` will make, or ``path``, to which ``pending`` contributes."""
        saved: SavedPath = cls(pending.path if path is None else path)
        saved._pending = pending
        return saved

    def with_segments(self, *segments: Any) -> Path:
        """Derived paths are plain ones."""
        return Path(*segments)

    if sys.version_info < (3, 12):

        @classmethod
        def _from_parsed_parts(cls, *parts: Any) -> Any:  # what ``with_segments`` replaced
            return _Base._from_parsed_parts(*parts)  # noqa: SLF001 - its own base class

    def wait(self, timeout: float | None = None) -> Path:
        """Wait for the commit; the plain path.

        Raises:
            MilepostError: The save failed; this is its error.
            GaveUpWaitingError: It did not end within ``timeout`` seconds.
        """
        pending: PendingSave | None = getattr(self, "_pending", None)
        if pending is not None:
            pending.wait(timeout)
        return Path(str(self))

    def __fspath__(self) -> str:
        self.wait()
        return str(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return Path, (str(self),)
