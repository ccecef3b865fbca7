"""What a guest gets to see of a log."""

from __future__ import annotations

import json

from milepost.core.events import Alerted, Deferred, Event, MediaAdded, MediaStaged, Metrics, StatusChanged
from milepost.trackers.feed import Feed
from tests.unit.trackers.story import LOG, identified, metrics, record, source_of, told

OTHER_LOG = bytes(range(16, 32))


def _numbers(feed: Feed, limit: int = 1000) -> list[tuple[int | None, dict[str, float]]]:
    seen, _ = feed.read(limit)
    return [(r.event.step, r.event.values) for r in seen if isinstance(r.event, Metrics)]


def _again(feed: Feed, records: list) -> Feed:
    return Feed(source_of(records), json.loads(json.dumps(feed.position())))


def test_records_of_other_ranks_stay_out_even_after_a_restart():
    records = [
        *told([identified(rank=1), metrics(0, loss=9.0)], OTHER_LOG),
        *told([identified(), metrics(0, loss=1.0)]),
    ]
    feed = Feed(source_of(records), {})
    assert _numbers(feed) == [(0, {"loss": 1.0})]
    records.append(record(metrics(1, loss=9.0), 5, OTHER_LOG))
    assert _numbers(_again(feed, records)) == []


def test_what_was_filtered_out_counts_as_taken():
    feed = Feed(source_of(told([identified(rank=3), metrics(0, loss=9.0)])), {})
    assert feed.read(10) == ([], 2)


def test_a_value_that_came_late_stands_at_the_step_and_time_of_its_record():
    waiting = Metrics(step=7, epoch=0.5, values={}, rejected={"loss": "None", "norm": "None"})
    base = record(waiting, 1)
    late = [Deferred(sequence=base.sequence, name=name, value=value) for name, value in (("loss", 2.0), ("norm", 3.0))]
    records = told([identified(), waiting, metrics(8, other=1.0), *late])
    seen, _ = Feed(source_of(records), {}).read(100)
    for record_seen, name, value in zip(seen[-2:], ("loss", "norm"), (2.0, 3.0), strict=True):
        assert record_seen.event == Metrics(step=7, epoch=0.5, values={name: value})
        assert record_seen.wall_ns == base.wall_ns


def test_a_value_on_its_way_is_awaited_over_a_restart():
    waiting = Metrics(step=7, epoch=None, values={}, rejected={"loss": "None"})
    records = told([identified(), waiting])
    feed = Feed(source_of(records), {})
    feed.read(100)
    records.append(record(Deferred(sequence=records[1].sequence, name="loss", value=2.0), 2))
    assert _numbers(_again(feed, records)) == [(7, {"loss": 2.0})]


def test_a_late_value_of_a_record_that_nobody_awaits_is_left_out():
    records = told([identified(), metrics(0, loss=1.0), Deferred(sequence=12345, name="x", value=2.0)])
    assert _numbers(Feed(source_of(records), {})) == [(0, {"loss": 1.0})]


def test_values_that_never_come_do_not_fill_the_memory():
    nothing: list[Event] = [Metrics(step=n, epoch=None, values={}, rejected={"x": "None"}) for n in range(5000)]
    feed = Feed(source_of(told(nothing)), {})
    feed.read(10_000)
    assert len(feed.position()["awaited"]) <= 1024


def test_metrics_without_a_step_get_the_step_before_them():
    records = told([metrics(4, loss=1.0), metrics(None, loss=2.0)])
    assert [step for step, _ in _numbers(Feed(source_of(records), {}))] == [4, 4]


def test_the_end_of_the_run_is_remembered_and_a_new_attempt_forgets_it():
    end = StatusChanged(status="failed", reason="out of memory", exit_code=1)
    records = told([identified(), end])
    feed = Feed(source_of(records), {})
    feed.read(10)
    assert feed.end == end
    assert _again(feed, records).end == end
    records += told([identified(attempt=2)], OTHER_LOG)
    resumed = _again(feed, records)
    resumed.read(10)
    assert resumed.end is None


def test_a_death_that_is_read_before_the_first_word_of_the_dead_stays_the_end():
    death = StatusChanged(status="killed", signal="SIGKILL", source="companion")
    records = told([identified(role="companion"), death], OTHER_LOG)
    feed = Feed(source_of(records), {})
    feed.read(10)
    records += told([identified(), StatusChanged(status="running"), metrics(0, loss=1.0)])
    later = _again(feed, records)
    later.read(10)
    assert later.end == death


def test_a_feed_made_from_a_position_goes_on_where_the_other_stopped():
    records = told([identified(), *(metrics(step, loss=1.0) for step in range(10))])
    feed = Feed(source_of(records), {})
    first = _numbers(feed, 4)
    rest = _numbers(_again(feed, records))
    assert [step for step, _ in first + rest] == list(range(10))
    assert LOG.hex() in feed.position()["logs"]


def test_media_and_alerts_without_a_step_stand_at_the_last_one_and_move_it_not():
    added = MediaAdded(step=None, name="n", path="p", media_type="text/plain", size=1)
    early = MediaAdded(step=2, name="n", path="p", media_type="text/plain", size=1)
    events = [metrics(7, loss=1.0), added, Alerted(step=None, title="t"), early, metrics(None, loss=2.0)]
    seen = [record.event for record in Feed(source_of(told(events)), {}).read(10)[0]]
    assert [event.step for event in seen] == [7, 7, 7, 2, 7]  # type: ignore[union-attr]


def test_media_reach_a_guest_once_encoded_and_not_before():
    staged = MediaStaged(step=1, name="plot", source="0-s", form="image")
    added = MediaAdded(step=1, name="plot", path="p.png", media_type="image/png", size=3, source="0-s")
    feed = Feed(source_of(told([identified(), staged, added])), {})
    records, taken = feed.read(10)
    assert [record.event for record in records] == [identified(), added]
    assert taken == 3
