"""What is known about the code of a run?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from milepost.core.errors import CorruptDataError

__all__ = ["COPIES", "PATCH", "SCRIPT", "CodeRecord", "describe"]

#: Names inside the code folder of a run: the difference to the commit, copies of untracked files, the script.
PATCH = "changes.patch"
COPIES = "untracked"
SCRIPT = "script"


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeRecord:
    """The code of a run: a commit, what differed from it, and what git did not know.

    Attributes:
        absent: Why there is no commit (``"git is not installed"``), or nothing.
        commit: Full hexadecimal name.
        branch: Empty on a detached head.
        remote: Address of ``origin``, or else of the first remote, redacted.
        root: The repository's folder.
        changed: Files whose difference to the commit is kept in ``changes.patch``.
        untracked: Files that git neither tracks nor ignores, at most a thousand of them.
        copied: Those of them of which there is a copy.
        redacted: Files of which parts were replaced by a visible mark because they looked like secrets.
        omitted: What was not kept, and why.
        script: Name of the script's copy, where there is no commit.
    """

    absent: str = ""
    commit: str = ""
    branch: str = ""
    remote: str = ""
    root: str = ""
    changed: tuple[str, ...] = ()
    untracked: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    redacted: tuple[str, ...] = ()
    omitted: Mapping[str, str]
    script: str = ""

    @property
    def is_dirty(self) -> bool:
        """Whether the tree was not exactly the commit."""
        return bool(self.changed or self.untracked or self.omitted)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``metadata.json``."""
        return asdict(self) | {"omitted": dict(self.omitted), "is_dirty": self.is_dirty}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> CodeRecord:
        """Read back what :meth:`to_dict` gave; unknown keys are ignored.

        Raises:
            CorruptDataError: A value is not what it must be.
        """
        found: dict[str, Any] = {"omitted": {}}
        for field in fields(cls):
            if field.name not in stored:
                continue
            value = stored[field.name]
            found[field.name] = tuple(value) if isinstance(value, list) else value
            expected: type = str if field.default == "" else tuple if field.default == () else dict
            if not isinstance(found[field.name], expected) or not all(isinstance(part, str) for part in value):
                raise CorruptDataError(f"the record of a run's code has {field.name} = {value!r}", cure="mend it")
        return cls(**found)


def describe(record: CodeRecord) -> list[str]:
    """The record in lines for a person."""
    if record.absent:
        lines = [f"no commit: {record.absent}"]
        lines += [f"script    {record.script}"] if record.script else []
    else:
        lines = [f"commit    {record.commit}", f"branch    {record.branch or 'none (detached head)'}"]
        lines += [f"remote    {record.remote}"] if record.remote else []
        lines += [] if record.is_dirty else ["clean: the tree was the commit"]
    copied = set(record.copied)
    lines += [f"changed   {name}" for name in record.changed]
    lines += [f"untracked {name}{' (copy kept)' if name in copied else ''}" for name in record.untracked]
    lines += [f"redacted  {name}" for name in record.redacted]
    lines += [f"left out  {name}: {reason}" for name, reason in record.omitted.items()]
    return lines
