"""``experiment.log`` and ``metadata.json`` say what the log says, once, whenever the keeper was cut off."""

from __future__ import annotations

from milepost.companion.guests import describe_run
from milepost.companion.keeper import RecordKeeper
from milepost.core.events import Described, Line, Metrics, StatusChanged
from milepost.runs.projections import read_metadata
from milepost.runs.scan import LoggedRecord


def records(*events) -> list[LoggedRecord]:
    return [
        LoggedRecord(log_id=b"a" * 16, sequence=n, monotonic_ns=n, wall_ns=n * 10**9, event=event)
        for n, event in enumerate(events, 1)
    ]


def line(text: str) -> Line:
    return Line(stream="stdout", text=text)


def keeper_of(layout, hello, cursor, told=None):
    keeper = RecordKeeper(layout, (told if told is not None else []).append)
    assert keeper.open(describe_run(layout, hello), cursor)
    return keeper


def test_a_run_that_printed_nothing_has_an_empty_console_log(layout, hello):
    keeper_of(layout, hello, {})
    assert layout.console.read_bytes() == b""


def test_lines_that_were_written_after_the_cursor_stand_there_once(layout, hello):
    keeper = keeper_of(layout, hello, {})
    keeper.write(records(line("one"), line("two")))
    cursor = keeper.flush()
    keeper.write(records(line("three")))  # and then it was killed before its cursor was saved
    again = keeper_of(layout, hello, cursor)
    again.write(records(line("three"), line("four")))
    assert [text.split()[-1] for text in layout.console.read_text().splitlines()] == ["one", "two", "three", "four"]


def test_a_console_log_that_is_shorter_than_the_cursor_is_begun_anew(layout, hello):
    keeper = RecordKeeper(layout, lambda _: None)
    assert not keeper.open(describe_run(layout, hello), {"console": 100})


def test_descriptions_and_states_are_folded_into_the_metadata(layout, hello):
    keeper = keeper_of(layout, hello, {})
    keeper.write(records(Described(fields={"tags": ["b"]}), StatusChanged(status="running")))
    keeper.write(records(Described(fields={"notes": "n"}), StatusChanged(status="failed")))
    metadata = read_metadata(layout)
    assert (metadata["tags"], metadata["notes"], metadata["status"]) == (["b"], "n", "failed")
    assert metadata["name"] == "run"


def test_a_metric_that_is_no_number_is_told_once_by_name_and_type(layout, hello):
    told: list[str] = []
    keeper = keeper_of(layout, hello, {}, told)
    bad = Metrics(step=0, epoch=None, values={}, rejected={"loss": "str", "gone": "None"})
    keeper.write(records(bad, bad))
    keeper.write(records(bad))
    assert told == ["the metric 'loss' is skipped: it is no number but str (said once)"]
