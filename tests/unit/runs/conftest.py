import json
from collections.abc import Callable
from pathlib import Path

import pytest

from milepost.core.config import ExperimentConfig
from milepost.core.events import Metrics
from milepost.io.memory import SharedSegment
from milepost.runs.durable_log import Drain
from milepost.runs.layout import RunLayout
from milepost.runs.log import DirectLog, LogWriter, begin_log
from milepost.runs.scan import LoggedRecord, read_log_files, scan
from milepost.runs.segment import new_log_id


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """The places of a run whose folders exist."""
    made = RunLayout.from_config(ExperimentConfig(root=str(tmp_path)), "bert_20261124-133155")
    made.experiment.mkdir(parents=True)
    made.log.mkdir(parents=True)
    return made


class Told:
    """Collects what a log says about values that are no numbers."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def __call__(self, name: str, kind: str, value: object) -> None:
        self.said.append((name, kind))


class Pair:
    """A writer and the drain that holds the same memory, as trainer and companion do, in one process."""

    def __init__(self, layout: RunLayout, *, segment_size: int = 1 << 18, capacity: int = 64 << 20, **options) -> None:
        self.layout = layout
        self.told = Told()
        self.log_id = new_log_id()
        self.drain = Drain(layout, self.log_id)
        self.segments: list[tuple[SharedSegment, int]] = []
        self.writer = LogWriter(
            self.log_id,
            hand_over=self.hand_over,
            on_bad_value=self.told,
            segment_size=segment_size,
            capacity=capacity,
            **options,
        )

    def hand_over(self, segment: SharedSegment, ordinal: int) -> None:
        import os

        self.segments.append((segment, ordinal))
        self.drain.attach(SharedSegment.attach(os.dup(segment.fd), segment.size), ordinal)

    def begin(self, **options) -> "Pair":
        begin_log(self.writer, role="trainer", attempt=1, **options)
        return self

    def settle(self) -> int:
        """What the companion does all the time: copy, sync, let the writer release."""
        self.drain.copy()
        durable = self.drain.sync()
        self.writer.release(durable)
        return durable

    def read(self) -> list[LoggedRecord]:
        (log,) = read_log_files(self.layout.log)
        damage = []
        records = list(scan(log, damage=damage))
        assert damage == []
        return records

    def close(self) -> None:
        self.writer.close()
        self.drain.close()


@pytest.fixture
def pair(layout: RunLayout):
    made: list[Pair] = []

    def make(**options) -> Pair:
        made.append(Pair(layout, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def direct(layout: RunLayout):
    """Makes logs with begun records in the run's folder."""
    made: list[DirectLog] = []

    def make(*, role: str = "trainer", attempt: int = 1, rank: int = 0, **options) -> DirectLog:
        log = DirectLog(layout, new_log_id(), **options)
        made.append(log)
        begin_log(log, role=role, attempt=attempt, rank=rank)
        return log

    yield make
    for log in made:
        log.close()


@pytest.fixture
def steps() -> Callable[[list[LoggedRecord]], list[int | None]]:
    return lambda records: [record.event.step for record in records if isinstance(record.event, Metrics)]


def plain_json(path: Path):
    """Strictly standard JSON."""

    def refuse(word: str):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)
