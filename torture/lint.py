"""Is every file complete on the disk before it gets its name, and the name before anybody is told?

Pure: a recorded order of calls in, broken rules out. For a rename that begins with its source synced, ends, is followed
by a sync of its folder, and only then spoken of, every power cut leaves the old state or the new one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from torture.operation_log import Operation

__all__ = ["Rules", "broken_rules"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is asked of a recording.

    Attributes:
        folder: Only files below it count.
        need_no_sync: File names that may be lost at a power cut by design.
        acknowledgement: Written when a checkpoint is told to be committed, together with its file name.
    """

    folder: str
    need_no_sync: tuple[re.Pattern[str], ...] = ()
    acknowledgement: bytes = b"committed"


def broken_rules(operations: Sequence[Operation], rules: Rules) -> list[str]:
    """One sentence per rename that a power cut could show in the wrong order; empty if there is none.

    A recording without any rename is broken too: it has recorded nothing.
    """
    renames = [
        operation
        for operation in operations
        if operation.action == "rename"
        and operation.path.startswith(rules.folder)
        and not any(pattern.fullmatch(os.path.basename(operation.path)) for pattern in rules.need_no_sync)
    ]
    if not renames:
        return ["nothing was renamed: the recording is empty"]
    return [problem for rename in renames for problem in _rules_of_one(rename, operations, rules)]


def _rules_of_one(rename: Operation, operations: Sequence[Operation], rules: Rules) -> list[str]:
    name = os.path.basename(rename.path)
    problems = []
    if not _is_synced_before(rename, operations):
        problems.append(f"{name} got its name before its content was synced")
    folder = os.path.dirname(rename.path)
    synced = [o for o in operations if o.action == "sync" and o.path == folder and o.begun > rename.ended]
    if not synced:
        problems.append(f"the folder of {name} was not synced after the rename")
    told = [o for o in operations if _tells_of(o, name, rules)]
    if any(not synced or o.begun < synced[0].ended for o in told):
        problems.append(f"{name} was reported as committed before its folder was synced")
    return problems


def _is_synced_before(rename: Operation, operations: Sequence[Operation]) -> bool:
    """Whether a sync of the source began after its last write ended, and ended before the rename began."""
    writes = [o.ended for o in operations if o.action == "write" and o.path == rename.source and o.ended < rename.begun]
    last_write = max(writes, default=-1)
    late = any(o.action == "write" and o.path in {rename.source, rename.path} and o.ended > rename.begun
               for o in operations if o.ended < _name_is_reused(rename, operations))  # fmt: skip
    synced = any(
        o.action == "sync" and o.path == rename.source and o.begun > last_write and o.ended < rename.begun
        for o in operations
    )
    return synced and not late


def _name_is_reused(rename: Operation, operations: Sequence[Operation]) -> float:
    """When the old or the new name begins to mean another file."""
    again = [
        o.begun
        for o in operations
        if o.begun > rename.ended and o.action in {"create", "rename"} and o.path in {rename.source, rename.path}
    ]
    return min(again, default=float("inf"))


def _tells_of(operation: Operation, name: str, rules: Rules) -> bool:
    return (
        operation.action == "write"
        and operation.path.startswith(rules.folder)
        and operation.path.endswith(".mlog")
        and rules.acknowledgement in operation.data
        and name.encode() in operation.data
    )
