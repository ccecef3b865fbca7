"""What was left behind, and can it be finished now?

``milepost doctor`` looks at every run that nobody works on: it records the end of runs that died together with their
companion, lets guests catch up from their cursors, makes the projections again, and removes what only a dead process
could have needed. It never deletes data. Doing it twice changes nothing the second time.

**On crash**: each step is whole or not done; the next call goes on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from milepost.checkpoint.catalog import refresh
from milepost.checkpoint.commit import remove_stale_temporaries
from milepost.checkpoint.spool import Recovered, abandoned, recover
from milepost.companion.duties import Duties
from milepost.companion.messages import FromCompanion, Hello, Told
from milepost.core.errors import MilepostError
from milepost.core.events import CheckpointChanged, StatusChanged
from milepost.core.records import CheckpointInfo
from milepost.io.locks import is_held
from milepost.runs.layout import RunLayout
from milepost.runs.metadata import read_metadata
from milepost.runs.staged import staged_names, torn_media
from milepost.runs.state import RunState, run_state
from milepost.runs.store import Store
from milepost.trackers.cursor import load_cursor
from milepost.trackers.registry import guests_for

__all__ = ["Finding", "examine"]

_PATIENCE_WITH_GUESTS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was not as it should be.

    Attributes:
        run: The run's id; empty for what belongs to no run.
        what: What was found.
        done: What was done about it; empty if nothing could be, or nothing was to be changed.
        cure: What is left for a person to do.
    """

    run: str
    what: str
    done: str = ""
    cure: str = ""


def examine(store: Store, report: Callable[[Finding], None], *, dry_run: bool = False) -> list[Finding]:
    """Look at every run of the store and finish what can be finished.

    Args:
        store: Whose runs.
        report: Told each finding as it is made.
        dry_run: Only look.
    """
    findings: list[Finding] = []

    def found(finding: Finding) -> None:
        findings.append(finding)
        report(finding)

    layouts = [run.layout for run in store.runs()]
    folders = sorted({layout.checkpoints for layout in layouts})
    recovered = [info for folder in folders for info in _examine_spools(folder, found, dry_run=dry_run)]
    for layout in layouts:
        own = [info for info in recovered if info.experiment_id == layout.experiment_id]
        try:
            _examine_run(layout, own, found, dry_run=dry_run)
        except (MilepostError, OSError) as error:
            found(Finding(run=layout.experiment_id, what=f"could not be examined ({error})", cure="see the message"))
    for folder in folders:
        _examine_checkpoints(folder, found, dry_run=dry_run)
    return findings


def _examine_run(
    layout: RunLayout, recovered: list[CheckpointInfo], found: Callable[[Finding], None], *, dry_run: bool
) -> None:
    state = run_state(layout)
    if state.live or state.status == "unsure":
        return
    unfinished = [guest for guest in _guests(layout) if not load_cursor(layout.cursor(guest)).closed]
    died = state.source == "lock"  # nobody wrote it down: it was derived from a lock that nobody holds
    missing = [path.name for path in (layout.summary, layout.metrics_json) if not path.exists()]
    locks = [path for kind in ("*.lock", "*.companion") for path in layout.log.glob(kind) if not is_held(path)]
    staged = staged_names(layout.staged_media)
    if died:
        found(_finding(layout, f"died at step {state.last_step}, nobody recorded it", "recorded as killed", dry_run))
    if missing:
        found(_finding(layout, f"{' and '.join(missing)} not written", "written from the log", dry_run))
    can_take = [guest for guest in unfinished if not _is_absent(guest)]
    told = []
    if not dry_run and (died or missing or can_take or recovered or staged):
        told = _finish(layout, state, recovered, died=died)
    for finding in _of_media(layout, len(staged), told, dry_run=dry_run):
        found(finding)
    for guest in unfinished:
        found(_of_guest(layout, guest, told, dry_run=dry_run))
    if locks:
        found(_finding(layout, f"{len(locks)} lock files of dead processes", "removed", dry_run))
        for path in locks if not dry_run else []:
            with contextlib.suppress(OSError):
                path.unlink()


def _finding(layout: RunLayout, what: str, done: str, dry_run: bool) -> Finding:
    return Finding(run=layout.experiment_id, what=what, done="" if dry_run else done)


def _of_media(layout: RunLayout, staged: int, told: list[str], *, dry_run: bool) -> Iterator[Finding]:
    """What became of media that no companion had the time to encode, and of files cut short by the death of one."""
    if staged:
        what = f"{staged} logged media not encoded"
        finding = _finding(layout, what, "encoded", dry_run)
        if not dry_run and staged_names(layout.staged_media):
            said = next((text for text in told if "media" in text), "there was no time for all of them")
            finding = Finding(run=layout.experiment_id, what=what, cure=f"{said}; then `milepost doctor` again")
        yield finding
    torn = torn_media(layout)
    if torn:
        for path in torn if not dry_run else []:
            path.unlink(missing_ok=True)
        yield _finding(layout, f"{len(torn)} half-written media files of dead processes", "removed", dry_run)


def _of_guest(layout: RunLayout, guest: str, told: list[str], *, dry_run: bool) -> Finding:
    """What became of a guest that was behind: its cursor says so, not our effort."""
    what = f"{guest} has not taken all of it"
    if _is_absent(guest):
        return Finding(run=layout.experiment_id, what=what, cure=f"pip install {guest}, then `milepost doctor` again")
    if dry_run:
        return Finding(run=layout.experiment_id, what=what)
    if load_cursor(layout.cursor(guest)).closed:
        return Finding(run=layout.experiment_id, what=what, done="it has everything now")
    said = next((text for text in told if guest in text.lower()), "it did not answer in time")
    return Finding(run=layout.experiment_id, what=what, cure=f"{said}; then `milepost doctor` again")


def _is_absent(guest: str) -> bool:
    """Whether the package of a guest of ours is not installed, so that there is nothing to try."""
    return guest in {"tensorboard", "wandb", "mlflow"} and importlib.util.find_spec(guest) is None


def _guests(layout: RunLayout) -> list[str]:
    return ["record", *(plan.name for plan in guests_for(_guest_settings(layout)))]


def _guest_settings(layout: RunLayout) -> dict[str, object]:
    settings = read_metadata(layout).get("settings")
    return dict(settings) if isinstance(settings, dict) else {}


def _finish(layout: RunLayout, state: RunState, recovered: list[CheckpointInfo], *, died: bool) -> list[str]:
    """Do what the companion would have done; what it would have told the person."""
    told: list[str] = []

    def hear(message: FromCompanion) -> None:
        if isinstance(message, Told):
            told.append(message.text)

    duties = Duties(_hello_of(layout, state), hear, role="doctor")
    try:
        for info in recovered:
            fields = info.to_fields()
            committed = CheckpointChanged(step=info.step, action="committed", filename=info.filename, info=fields)
            duties.record(committed, info.step)
        if died:
            duties.record(StatusChanged(status="killed", reason="the process and its companion died", source="doctor"))
        duties.start()
        duties.finish(time.monotonic() + _PATIENCE_WITH_GUESTS, lambda _: None)
    finally:
        duties.close()
    return told


def _hello_of(layout: RunLayout, state: RunState) -> Hello:
    """What the dead trainer would have said, without facts: the environment is gone."""
    return Hello(
        layout=layout.to_dict(),
        settings={"max_checkpoints": 1, "best_metric": None, "best_mode": "min"} | _guest_settings(layout),
        log_id=b"\0" * 16,
        host="",
        boot_id="",
        pid=0,
        start_time=0.0,
        attempt=state.attempt,
        rank=0,
        world_size=1,
        facts={},
    )


def _examine_spools(folder: Path, found: Callable[[Finding], None], *, dry_run: bool) -> list[CheckpointInfo]:
    """Commit what was staged when every process died; the checkpoints that were made."""
    if dry_run:
        for path in abandoned(folder):
            found(Finding(run="", what=f"{path}: all processes died that could have written what is staged there"))
        return []
    outcome = recover(folder)
    for one in outcome:
        found(_of_spool(one))
    return [one.info for one in outcome if one.info is not None]


def _of_spool(one: Recovered) -> Finding:
    what = f"{one.spool}: all processes died that could have written what is staged there"
    if one.problem:
        return Finding(run="", what=what, cure=one.problem)
    if one.info is None:
        return Finding(run="", what=what, done="removed: no snapshot was complete in it")
    return Finding(run=one.info.experiment_id, what=what, done=f"written as {one.info.filename}")


def _examine_checkpoints(folder: Path, found: Callable[[Finding], None], *, dry_run: bool) -> None:
    if not folder.is_dir():
        return
    stale = [name for name in os.listdir(folder) if name.startswith(".checkpoint_") and name.endswith(".tmp")]
    if dry_run:
        if stale:
            found(Finding(run="", what=f"{len(stale)} unfinished checkpoint files in {folder}"))
        return
    removed = remove_stale_temporaries(folder)
    if removed:
        found(Finding(run="", what=f"{len(removed)} unfinished checkpoint files in {folder}", done="removed"))
    refresh(folder)
