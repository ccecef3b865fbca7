"""A contract that no tracker could break would be worth nothing: each fault is found by a test of it."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from milepost.core.events import Metrics
from milepost.testing import TrackerContract


class Ledger:
    """One JSON line per point, cut back to the cursor: as good a tracker as any."""

    name = "ledger"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger.jsonl"

    def open(self, run, cursor) -> bool:
        self.path.touch()
        if self.path.stat().st_size < cursor.get("length", 0):
            return False
        os.truncate(self.path, cursor.get("length", 0))
        return True

    def write(self, records) -> None:
        lines = [
            json.dumps([name, r.event.step, value])
            for r in records
            if isinstance(r.event, Metrics)
            for name, value in r.event.values.items()
        ]
        with open(self.path, "a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def flush(self) -> dict[str, Any]:
        return {"length": self.path.stat().st_size}

    def close(self, end) -> None: ...


class TestLedger(TrackerContract):
    tracker: type[Ledger] = Ledger

    def make_tracker(self, tmp_path):
        return self.tracker(tmp_path)

    def read_back(self, tmp_path):
        points = defaultdict(list)
        path = tmp_path / "ledger.jsonl"
        for line in path.read_text().splitlines() if path.exists() else ():
            name, step, value = json.loads(line)
            points[name].append((step, value))
        return points


class Doubles(Ledger):
    def open(self, run, cursor):
        self.path.touch()
        return True


class LosesTheTail(Ledger):
    def __init__(self, folder):
        super().__init__(folder)
        self.held: list[Any] = []

    def write(self, records):
        super().write(self.held)
        self.held = list(records)


class CursorIsNoJson(Ledger):
    def flush(self):
        return {"length": (self.path.stat().st_size,)}

    def open(self, run, cursor):
        return super().open(run, {"length": cursor["length"][0]} if cursor else {})


class TrustsACursorOfNothing(Ledger):
    def open(self, run, cursor):
        os.truncate(self.path, cursor["length"]) if cursor else self.path.touch()
        return True


class RefusesNan(Ledger):
    def write(self, records):
        for record in records:
            if isinstance(record.event, Metrics):
                json.dumps(dict(record.event.values), allow_nan=False)
        super().write(records)


class KnowsMetricsOnly(Ledger):
    def write(self, records):
        for record in records:
            record.event.values  # noqa: B018
        super().write(records)


class CannotBeClosedUnopened(Ledger):
    def open(self, run, cursor):
        self.file = self.path.open("a")
        return super().open(run, cursor)

    def close(self, end):
        self.file.close()


class Nameless(Ledger):
    name = ""


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (Doubles, "test_a_later_tracker_goes_on_from_the_cursor_and_what_is_told_again_is_there_once"),
        (LosesTheTail, "test_what_was_flushed_is_safe_before_the_close"),
        (LosesTheTail, "test_a_run_is_told_from_its_first_record_to_its_end"),
        (CursorIsNoJson, "test_a_run_that_has_ended_can_go_on_in_another_attempt"),
        (TrustsACursorOfNothing, "test_a_cursor_of_something_that_is_gone_is_refused_or_passed_over_and_never_a_crash"),
        (RefusesNan, "test_every_number_every_name_and_every_kind_of_record_is_taken"),
        (KnowsMetricsOnly, "test_every_number_every_name_and_every_kind_of_record_is_taken"),
        (CannotBeClosedUnopened, "test_it_can_be_closed_at_any_time"),
        (Nameless, "test_it_has_a_name_and_the_four_methods"),
    ],
)
def test_each_fault_is_found(tmp_path, broken, test):
    contract = TestLedger()
    contract.tracker = broken
    with pytest.raises((AssertionError, AttributeError, OSError, ValueError)):
        getattr(contract, test)(tmp_path)


def test_whoever_forgets_make_tracker_is_told_what_to_write(tmp_path):
    with pytest.raises(NotImplementedError, match="make_tracker"):
        TrackerContract().test_it_can_be_closed_at_any_time(tmp_path)
