"""Can an object that the user gave do what a tracker or a hook must?

Looked at when the settings are made, so that a forgotten method is named before a training starts, and not at its end.
"""

from __future__ import annotations

import re
from typing import Any

from milepost.core.errors import InvalidInputError

__all__ = ["HOOK_METHODS", "TRACKER_METHODS", "checked_hook", "checked_tracker"]

TRACKER_METHODS = ("open", "write", "flush", "close")
HOOK_METHODS = ("run_started", "checkpoint_committed", "alerted", "run_ended")

#: A tracker's name stands in file names, in messages and in front of their colon.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,39}")


def checked_tracker(tracker: object) -> Any:
    """A name, or an object with the methods of :class:`milepost.trackers.protocol.Tracker`.

    Raises:
        InvalidInputError: It is neither; the message names what is missing.
    """
    if isinstance(tracker, str):
        if not tracker:
            raise _invalid("trackers", tracker, "give the name that an installed package offers its tracker under")
        return tracker
    _refuse_class("trackers", tracker)
    missing = [method for method in TRACKER_METHODS if not _has(tracker, method)]
    if missing:
        cure = f"give a name, or an object with name, {', '.join(TRACKER_METHODS)}; it lacks {', '.join(missing)}"
        raise _invalid("trackers", tracker, cure)
    name = getattr(tracker, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == "record":
        cure = "give it a name of its own: a short word of letters, digits, '_', '-' and '.'"
        raise InvalidInputError(f"the tracker {tracker!r} has the name {name!r}", cure=cure, kind="invalid-setting")
    return tracker


def checked_hook(hook: object) -> Any:
    """An object with at least one of the methods that are called in the life of a run.

    Raises:
        InvalidInputError: It has none of them.
    """
    _refuse_class("hooks", hook)
    if not any(_has(hook, method) for method in HOOK_METHODS):
        raise _invalid("hooks", hook, f"give an object with any of the methods {', '.join(HOOK_METHODS)}")
    return hook


def _has(given: object, method: str) -> bool:
    return callable(getattr(given, method, None))


def _refuse_class(setting: str, given: object) -> None:
    if isinstance(given, type):
        raise _invalid(setting, given, f"give an object: {given.__name__}(...)")


def _invalid(setting: str, given: object, cure: str) -> InvalidInputError:
    return InvalidInputError(f"{setting} holds {given!r}", cure=cure, kind="invalid-setting")
