"""After a fault, is everything there that was promised, and nothing that never was?

Runs in a process of its own that has read nothing before, on a store that nobody writes to. It looks twice: at records
and files themselves (:mod:`milepost.runs.scan`, :mod:`milepost.checkpoint.reading`), and through the door that a user
takes (:func:`milepost.open`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import milepost
from milepost.checkpoint.catalog import scan as scan_checkpoints
from milepost.checkpoint.reading import open_checkpoint
from milepost.core.errors import MilepostError
from milepost.core.events import CheckpointChanged, Metrics, Rewound
from milepost.core.records import CheckpointInfo
from milepost.runs.scan import LoggedRecord, read_log_files, scan
from torture import planted
from torture.claims import Attempt, Claims
from torture.content import METRICS, STAMP, metrics_at, same_metrics, tensor_at

__all__ = ["Verdict", "check", "check_apart", "run_apart"]

_PARAMETER_SUFFIXES = (".exp_avg", ".exp_avg_sq", ".step")


@dataclass(slots=True)
class Verdict:
    """What a check has found.

    Attributes:
        problems: Broken promises, one sentence each.
        records: Records of metrics that were there.
        checkpoints: Files of the committed checkpoints, by step.
        differences: How many of them hold differences to another one.
        newest_step: Step of the newest of them, -1 if there is none.
        lost_ms: How long before the death of both processes the first acknowledged and lost record was acknowledged.
        opened_in_ms: How long opening and looking took.
    """

    problems: list[str] = field(default_factory=list)
    records: int = 0
    checkpoints: list[str] = field(default_factory=list)
    differences: int = 0
    newest_step: int = -1
    lost_ms: float = 0.0
    opened_in_ms: float = 0.0


def check_apart(folder: str, claims: Claims, *, doctor: bool) -> Verdict:
    """Check in a fresh process; a check that crashes is a problem itself. Spools are recovered before."""

    def checked() -> dict[str, Any]:
        return asdict(check(folder, claims, doctor=doctor))

    answer = run_apart(checked)
    return Verdict(**answer) if isinstance(answer, dict) else Verdict(problems=[f"the check itself failed: {answer}"])


def run_apart(function: Any) -> Any:
    """What ``function`` returns in a forked process, through JSON; the text of its exception if it raises."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        try:
            answer = json.dumps(function())
        except BaseException:
            answer = json.dumps(traceback.format_exc()[-1500:])
        with open(theirs, "w") as pipe:
            pipe.write(answer)
        os._exit(0)
    os.close(theirs)
    with open(ours) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(text) if text else "it was killed"


def check(folder: str, claims: Claims, *, doctor: bool) -> Verdict:
    """Everything that must hold of the store in ``folder`` while no process works on it."""
    planted.plant_in_reader()
    verdict = Verdict()
    if claims.promised.survives_all and claims.run_id:
        _recover(Path(folder))
    _Check(Path(folder), claims, verdict).all()
    if doctor and not verdict.problems and claims.run_id:
        _check_doctor(Path(folder), verdict)
        _Check(Path(folder), claims, verdict).all()
    return verdict


class _Check:
    def __init__(self, folder: Path, claims: Claims, verdict: Verdict) -> None:
        self._folder = folder
        self._claims = claims
        self._verdict = verdict
        self._records = self._read_records()

    def _problem(self, text: str) -> None:
        self._verdict.problems.append(text)

    def all(self) -> None:
        for attempt in self._claims.attempts:
            for complaint in attempt.complaints:
                self._problem(f"attempt {attempt.number}: {complaint}")
            if attempt.gave_up and len(attempt.companion_killed_at) < 2:
                self._problem(f"attempt {attempt.number}: a save was given up, and not two companions were killed")
        self._one_run()
        self._metrics()
        self._checkpoints()
        self._reader()

    # ---------------------------------------------------------------- what lies in the folders

    def _one_run(self) -> None:
        """All attempts are the same run. An attempt that died before it was identified may have left an empty one."""
        ids = {attempt.run_id for attempt in self._claims.attempts if attempt.run_id}
        if len(ids) > 1:
            self._problem(f"resume='auto' began another run: {sorted(ids)}")

    def _read_records(self) -> list[LoggedRecord]:
        """Every record of the store, each log in its order."""
        found: list[LoggedRecord] = []
        root = self._folder / "metrics"
        for run in sorted(root.iterdir()) if root.is_dir() else ():
            for log in read_log_files(run):
                found += scan(log)
        return found

    def _metrics(self) -> None:
        present: Counter[tuple[int, int]] = Counter()
        for record in self._records:
            if isinstance(record.event, Metrics):
                place = int(record.event.epoch or 0), int(record.event.step or 0)
                present[place] += 1
                if not same_metrics(record.event.values, metrics_at(self._claims.seed, *place)):
                    self._problem(f"attempt {place[0]}, step {place[1]}: {record.event.values} was never logged")
        self._verdict.records = sum(present.values())
        twice = [place for place, count in present.items() if count > 1]
        if twice:
            self._problem(f"{len(twice)} records stand in the log twice, the first is (attempt, step) {min(twice)}")
        for attempt in self._claims.attempts:
            steps = {step for number, step in present if number == attempt.number}
            self._metrics_of(attempt, steps)
        strangers = {number for number, _ in present} - {attempt.number for attempt in self._claims.attempts}
        if strangers:
            self._problem(f"there are records of attempts that never were: {sorted(strangers)}")

    def _metrics_of(self, attempt: Attempt, steps: set[int]) -> None:
        unintended = steps - set(attempt.intended)
        if unintended:
            self._problem(f"attempt {attempt.number}: {len(unintended)} steps are there that it never began to log")
        lost = [(step, at) for step, at in attempt.acknowledged if step not in steps]
        if not lost:
            return
        if not attempt.all_holders_died:
            steps_lost = f"steps {lost[0][0]}..{lost[-1][0]}"
            self._problem(f"attempt {attempt.number}: {len(lost)} acknowledged records are lost, {steps_lost}")
            return
        died_at = max(attempt.trainer_killed_at, *attempt.companion_killed_at)
        self._verdict.lost_ms = max(self._verdict.lost_ms, (died_at - lost[0][1]) / 1e6)
        if attempt.intended[: len(steps)] != sorted(steps):
            self._problem(f"attempt {attempt.number}: what is left of it is not a beginning of what it logged")

    def _checkpoints(self) -> None:
        found = scan_checkpoints(self._folder / "checkpoints")
        for damaged in found.damaged:
            self._problem(f"{damaged.path.name} is listed and damaged: {damaged.error}")
        for info in found.infos:
            try:
                self._check_content(info.path, info.step)
            except (MilepostError, KeyError) as error:
                self._problem(f"{info.filename} does not load: {error}")
        self._newest_are_whole(found.infos)
        self._second_copies()
        names = [info.filename for info in found.infos]
        self._verdict.checkpoints = names
        self._verdict.differences = sum(bool(info.base) for info in found.infos)
        newest = max(found.infos, key=lambda info: _age(info.filename), default=None)
        self._verdict.newest_step = -1 if newest is None else newest.step
        committed = [
            record.event.filename
            for record in self._records
            if isinstance(record.event, CheckpointChanged) and record.event.action == "committed"
        ]
        removed = {
            record.event.filename
            for record in self._records
            if isinstance(record.event, CheckpointChanged) and record.event.action == "removed"
        }
        self._nothing_promised_is_missing(set(names), removed, len(committed))

    def _nothing_promised_is_missing(self, present: set[str], removed: set[str], committed: int) -> None:
        """What was promised is there, unless retention let it go for newer ones that are."""
        promised = [
            save.filename
            for attempt in self._claims.attempts
            for save in attempt.saves
            if self._claims.is_kept(attempt, save)
        ]
        promised = sorted({*promised, *self._claims.seen}, key=_age)
        for place, filename in enumerate(promised):
            if filename in present:
                continue
            newer = [name for name in present if _age(name) > _age(filename)]
            if len(newer) < self._claims.promised.kept:
                word = "was removed" if filename in removed else "is missing"
                self._problem(
                    f"{filename} {word}, the promised checkpoint {place + 1} of {len(promised)}; "
                    f"there are {len(newer)} newer ones ({committed} commits are recorded)"
                )

    def _newest_are_whole(self, infos: Sequence[CheckpointInfo]) -> None:
        """Of how many of the newest everything must be there, the optimizer too."""
        newest = sorted(infos, key=lambda info: _age(info.filename), reverse=True)
        for info in newest[: self._claims.promised.whole]:
            if "optimizer" not in info.contents:
                self._problem(f"{info.filename} holds no optimizer, and is one of the newest")

    def _second_copies(self) -> None:
        """Each copy that has its name loads, and is what was saved."""
        for info in scan_checkpoints(self._folder / "backup").infos:
            try:
                self._check_content(info.path, info.step)
            except (MilepostError, KeyError) as error:
                self._problem(f"the copy of {info.filename} does not load: {error}")

    def _check_content(self, path: Path, listed_step: int) -> None:
        """A checkpoint holds what its own stamp says, and its stamp what was intended."""
        with open_checkpoint(path) as file:
            content = file.read_all()
        stamp = next((value for name, value in content.items() if name.endswith(STAMP)), None)
        if stamp is None or int(stamp[0]) != self._claims.seed or int(stamp[2]) != listed_step:
            self._problem(f"{path.name} has the stamp {stamp} and is listed as step {listed_step}")
            return
        number, step = int(stamp[1]), int(stamp[2])
        if not any(a.number == number and any(s.step == step for s in a.saves) for a in self._claims.attempts):
            self._problem(f"{path.name} holds step {step} of attempt {number}, which never began to save it")
        for name, value in content.items():
            if name.endswith(STAMP):
                continue
            wanted = self._wanted(name, number, step, value.shape)
            if value.tobytes() != wanted.tobytes():
                self._problem(f"{path.name}: {name} is not what was saved")

    def _wanted(self, name: str, attempt: int, step: int, shape: tuple[int, ...]) -> Any:
        if name.endswith(".step"):
            return np.float32(step)
        moment = next((suffix for suffix in _PARAMETER_SUFFIXES if name.endswith(suffix)), "")
        start = name.find("encoder.") if "encoder." in name else name.find("head.")
        label = name[start:].removesuffix(moment).rstrip("]'\"") + moment
        return tensor_at(self._claims.seed, attempt, step, label, shape)

    # ---------------------------------------------------------------- what a user sees

    def _reader(self) -> None:
        if not self._claims.run_id:
            return
        begun = time.perf_counter()
        run = milepost.open(self._folder)[self._claims.run_id]
        status = run.status
        shown = {name: run.series(name) for name in METRICS if name in run.metrics()}
        self._verdict.opened_in_ms = (time.perf_counter() - begun) * 1000
        self._check_status(status)
        visible = self._visible()
        for name in METRICS:
            steps = [int(step) for step in shown[name].step] if name in shown else []
            if steps != sorted(visible):
                self._problem(f"the series {name} shows {_outline(steps)}, it should show {_outline(sorted(visible))}")
                return
            values = [float(value) for value in shown[name].value] if name in shown else []
            wanted = [metrics_at(self._claims.seed, visible[step], step)[name] for step in steps]
            if np.array(values).tobytes() != np.array(wanted).tobytes():
                self._problem(f"the series {name} shows values of another attempt")
                return

    def _visible(self) -> dict[int, int]:
        """Which attempt's value stands at each step, told record by record, the older log first."""
        visible: dict[int, int] = {}
        for record in self._records:
            match record.event:
                case Rewound(step=behind):
                    visible = {step: attempt for step, attempt in visible.items() if step <= behind}
                case Metrics(step=step, epoch=attempt):
                    visible[int(step or 0)] = int(attempt or 0)
                case _:
                    pass
        return visible

    def _check_status(self, status: str) -> None:
        last = self._claims.attempts[-1]
        if last.end_acknowledged:
            allowed = {"completed"}
        elif last.end_intended:
            allowed = {"completed", "killed"}
        else:
            allowed = {"killed"}
        if status not in allowed and last.run_id:
            self._problem(f"the run is shown as {status}, it is {' or '.join(sorted(allowed))}")
        if status in {"running", "paused", "unsure"}:
            self._problem(f"a run that nobody works on is shown as {status}")


def _recover(folder: Path) -> None:
    from milepost.companion.doctor import examine

    examine(milepost.open(folder), lambda finding: None, dry_run=False)


def _check_doctor(folder: Path, verdict: Verdict) -> None:
    """``milepost doctor`` changes nothing when called again."""
    from milepost.companion.doctor import examine

    examine(milepost.open(folder), lambda finding: None, dry_run=False)
    once = _tree(folder)
    examine(milepost.open(folder), lambda finding: None, dry_run=False)
    again = _tree(folder)
    changed = sorted(name for name in once.keys() | again.keys() if once.get(name) != again.get(name))
    if changed:
        verdict.problems.append(f"a second `milepost doctor` changed {', '.join(changed[:5])}")


def _tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "worker.out" and path.parent.name != "logs"
    }


def _age(filename: str) -> str:
    """Checkpoints of one run sort by the time in their name, then by step."""
    stamp, _, step = filename.removeprefix("checkpoint_").partition(".")[0].removesuffix("_best").rpartition("_")
    return f"{stamp}_{step.split('-')[0].zfill(12)}"


def _outline(steps: list[int]) -> str:
    if not steps:
        return "no steps"
    breaks = [(a, b) for a, b in itertools.pairwise(steps) if b != a + 1]
    return f"{len(steps)} steps {steps[0]}..{steps[-1]}, breaks {breaks[:3]}"
