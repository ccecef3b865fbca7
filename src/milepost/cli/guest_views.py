"""How far is each guest with a run?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from milepost.runs.store import RunReader
from milepost.trackers.cursor import load_cursor

__all__ = ["GuestView", "guest_views"]

_PREFIX = "guest-"
_OURS = "record"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestView:
    """A guest that has taken something of a run.

    ``state``: it has everything (``"complete"``), the run goes on and so does it (``"following"``), or the run is over
    and it has not taken all of it (``"behind"``). ``records``: how many records of the log it acknowledged. ``time``:
    when it last did, in seconds since 1970.
    """

    name: str
    state: Literal["complete", "following", "behind"]
    records: int
    time: float


def guest_views(run: RunReader) -> tuple[GuestView, ...]:
    """The guests of a run, by the cursors that they keep beside its log."""
    state = run.state
    goes_on = state.live or state.finishing or state.status == "unsure"
    views = []
    for path in sorted(run.layout.log.glob(f"{_PREFIX}*.json")):
        name = path.stem.removeprefix(_PREFIX)
        if name == _OURS:
            continue
        cursor = load_cursor(path)
        views.append(
            GuestView(
                name=name,
                state="complete" if cursor.closed else "following" if goes_on else "behind",
                records=cursor.records,
                time=path.stat().st_mtime,
            )
        )
    return tuple(views)
