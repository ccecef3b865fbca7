"""How is done what retention decided?

Checkpoints are cut down to their weights, removed, and so are their second copies. The companion does it after each
verified save, ``milepost checkpoints prune`` when asked.

**Invariants**: a file that another one holds differences to is neither cut nor removed while that other one is there,
whatever failed before. What the disk refuses stays, is logged, and is decided again the next time.

**On crash**: some of the decisions are carried out, each wholly or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from milepost.checkpoint.backup import copy_checkpoint, remove_copy
from milepost.checkpoint.catalog import mark_verified, refresh, sidecar_of
from milepost.checkpoint.retention import Decision, RetentionRule, decide
from milepost.core.errors import MilepostError
from milepost.core.events import CheckpointChanged
from milepost.core.records import CheckpointInfo
from milepost.core.saying import logger

__all__ = ["prune"]

_Report = Callable[[CheckpointChanged], None]


def prune(
    folder: Path,
    experiment_id: str,
    rule: RetentionRule,
    report: _Report,
    *,
    backup: Path | None = None,
    verified: Collection[str] = (),
) -> None:
    """Let go what ``rule`` does not keep of one experiment, and cut down what it keeps for its weights.

    Args:
        folder: Where its checkpoints lie.
        experiment_id: Whose they are; those of others are left alone.
        rule: What is kept.
        report: Told ``demoted`` and ``removed``, with the reason in words.
        backup: Where second copies are.
        verified: Names of files that were read back just now.
    """
    own = _own(folder, experiment_id, verified)
    decisions = decide(own, rule)
    if any(decision.weights_only for decision in decisions):
        _cut(decisions, report, backup)
        # the disk budget can be judged now; what could not be cut is kept as it is
        own = _own(folder, experiment_id, ())
        decisions = decide(own, replace(rule, weights_only_after=None))
    if _remove(decisions, report, backup):
        refresh(folder)


def _own(folder: Path, experiment_id: str, verified: Collection[str]) -> list[CheckpointInfo]:
    return [info for info in refresh(folder, verified=verified).infos if info.experiment_id == experiment_id]


def _bases(decisions: Iterable[Decision]) -> dict[str, str]:
    """By name of a checkpoint, the name of the keyframe that it needs as long as it is what it is."""
    return {decision.info.filename: decision.info.base for decision in decisions}


def _cut(decisions: list[Decision], report: _Report, backup: Path | None) -> None:
    from milepost.checkpoint.standalone import keep_weights_only

    needed = _bases(decisions)
    for decision in decisions:
        info = decision.info
        if not decision.weights_only or info.filename in needed.values():
            continue
        try:
            left = keep_weights_only(info.path)
        except (MilepostError, OSError) as error:
            logger.warning("%s keeps all it holds: %s", info.path, error)
            continue
        del needed[info.filename]
        mark_verified(info.path)
        left = replace(left, verified=True)
        report(_change("demoted", left, decision.reason))
        if backup is not None:
            _follow(left, backup)


def _follow(info: CheckpointInfo, backup: Path) -> None:
    try:
        copy_checkpoint(info, backup)
    except MilepostError as error:
        logger.warning("the second copy of %s keeps all it holds: %s", info.path, error)


def _remove(decisions: list[Decision], report: _Report, backup: Path | None) -> int:
    """Remove what is not kept, the newest first, so that a keyframe goes after what needs it; returns how many went."""
    needed = _bases(decisions)
    before = len(needed)
    for decision in decisions:
        info = decision.info
        if decision.keep or info.filename in needed.values():
            continue
        try:
            info.path.unlink()
        except FileNotFoundError:
            del needed[info.filename]
            continue
        except OSError as error:
            logger.warning("%s stays, though %s: %s", info.path, decision.reason, error)
            continue
        del needed[info.filename]
        with suppress(OSError):
            sidecar_of(info.path).unlink()
        report(_change("removed", info, decision.reason))
        if backup is not None:
            _forget(info, backup)
    return before - len(needed)


def _forget(info: CheckpointInfo, backup: Path) -> None:
    try:
        remove_copy(info.filename, backup)
    except OSError as error:
        logger.warning("the second copy of %s stays: %s", info.path, error)


def _change(action: str, info: CheckpointInfo, reason: str) -> CheckpointChanged:
    content = info.to_fields() if action == "demoted" else {}
    return CheckpointChanged(step=info.step, action=action, filename=info.filename, reason=reason, info=content)  # type: ignore[arg-type]
