"""Which run does a start begin, or go on with?

A new run reserves its folder by creating it: ids never collide, whatever else starts at the same moment. A continued
run is found by its identity: the user's key, else the scheduler's job, else name, hyperparameters and script. One
critical section per run makes sure that two processes never go on with the same run at once.

**Invariants**: a completed run is never continued by ``resume="auto"``; a live run is never continued at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from milepost.core.config import ExperimentConfig
from milepost.core.errors import ConflictError, InvalidInputError, NotFoundError
from milepost.core.names import is_safe_id, safe_name, timestamp
from milepost.runs.layout import RunLayout
from milepost.runs.metadata import read_metadata
from milepost.runs.state import RunState, run_state

__all__ = ["ResumeIdentity", "differing_keys", "find_run", "reserve_run", "resume_identity", "wait_until_idle"]

_LONGEST_WAIT = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeIdentity:
    """What ``resume="auto"`` compares. ``kind``: ``"key"``, ``"job"`` or ``"recipe"``."""

    kind: str
    value: str


def resume_identity(
    name: str, hyperparameters: Mapping[str, Any], *, key: str | None, job: str | None, script: str
) -> ResumeIdentity:
    """The strongest identity this start has: the user's key, the scheduler's job, or the recipe itself."""
    if key:
        return ResumeIdentity(kind="key", value=key)
    if job:
        return ResumeIdentity(kind="job", value=f"{name} {job}")
    recipe = json.dumps([name, hyperparameters, script], sort_keys=True, default=str)
    return ResumeIdentity(kind="recipe", value=hashlib.sha256(recipe.encode()).hexdigest()[:32])


def reserve_run(config: ExperimentConfig, name: str) -> RunLayout:
    """Create the folder of a new run ``<name>_<timestamp>``; a number is added while the id is taken.

    Raises:
        OSError: The folder cannot be created.
    """
    Path(config.experiment_dir).mkdir(parents=True, exist_ok=True)
    base = f"{safe_name(name)}_{timestamp()}"
    number = 1
    while True:
        layout = RunLayout.from_config(config, base if number == 1 else f"{base}-{number}")
        try:
            layout.experiment.mkdir()
        except FileExistsError:
            number += 1
            continue
        return layout


def find_run(config: ExperimentConfig, resume: str, identity: ResumeIdentity) -> RunLayout | None:
    """The run that a start goes on with, or None for a new one.

    Args:
        config: Where runs are.
        resume: ``"never"``, ``"auto"``, ``"must"``, or the id of a run.
        identity: What this start is.

    Raises:
        NotFoundError: ``"must"`` finds none, or there is no run of that id.
        InvalidInputError: ``resume`` cannot be the id of a run.
    """
    if resume == "never":
        return None
    if resume not in {"auto", "must"}:
        if not is_safe_id(resume):
            raise InvalidInputError(
                f"resume is {resume!r}", cure="give 'never', 'auto', 'must', or the id of a run (`milepost runs`)"
            )
        layout = RunLayout.from_config(config, resume)
        if not layout.metadata.exists():
            raise NotFoundError(f"no run {resume!r} in {config.experiment_dir}", cure="`milepost runs` lists them")
        return layout
    for layout in _newest_first(config):
        if _matches(layout, identity):
            return layout
    if resume == "must":
        raise NotFoundError(
            f"resume='must', but no unfinished run matches this {identity.kind} in {config.experiment_dir}",
            cure="start it with resume='auto' the first time, or name the run's id",
        )
    return None


def _newest_first(config: ExperimentConfig) -> list[RunLayout]:
    try:
        names = [entry.name for entry in os.scandir(config.experiment_dir) if entry.is_dir() and is_safe_id(entry.name)]
    except FileNotFoundError:
        return []
    layouts = [RunLayout.from_config(config, name) for name in names]
    return sorted(layouts, key=_started, reverse=True)


def _started(layout: RunLayout) -> tuple[float, str]:
    metadata = read_metadata(layout)
    started = metadata.get("start_time")
    return (float(started) if isinstance(started, (int, float)) else 0.0, layout.experiment_id)


def _matches(layout: RunLayout, identity: ResumeIdentity) -> bool:
    return read_metadata(layout).get("resume_identity") == asdict(identity) and run_state(layout).status != "completed"


def wait_until_idle(layout: RunLayout, told: Callable[[str], None], *, longest: float = _LONGEST_WAIT) -> RunState:
    """Wait until nobody writes to a run: neither a live training nor the companion of a dead one.

    Args:
        layout: The run.
        told: Called once with what is being waited for.
        longest: Seconds to wait.

    Raises:
        ConflictError: It is still live after that.
    """
    end = time.monotonic() + longest
    said = False
    while True:
        state = run_state(layout)
        if not state.live:
            return state
        if time.monotonic() > end:
            raise ConflictError(
                f"the run {layout.experiment_id} is live ({state.holder})",
                cure="end that process, or start a run of your own with resume='never'",
            )
        if not said and state.status in {"running", "paused"}:
            said = True
            told(f"{layout.experiment_id} is live ({state.holder}), waiting up to {longest:.0f} s for it to end")
        time.sleep(0.02)


def differing_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the hyperparameters that differ, with both values, for an error's text."""
    missing = object()
    names = sorted(set(before) | set(now), key=str)
    return [
        f"{name} ({before.get(name, '(absent)')!r} before, {now.get(name, '(absent)')!r} now)"
        for name in names
        if before.get(name, missing) != now.get(name, missing)
    ]
