"""The writer keeps every record whose call returned, whoever interrupts it and however it dies."""

import gc
import itertools
import mmap
import os
import random
import resource
import signal
import sys
import threading
import time
import types
from collections import OrderedDict
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from milepost.core.errors import InvalidCallError, InvalidInputError
from milepost.core.events import BigIntegers, ClockSet, Deferred, Described, Identified, Line, Lost, Metrics
from milepost.io.memory import SharedSegment
from milepost.runs import direct_log
from milepost.runs.durable_log import Drain
from milepost.runs.log import DirectLog, LogWriter
from milepost.runs.recording import NOT_KEPT
from milepost.runs.scan import read_log_files, scan
from milepost.runs.segment import new_log_id, read_header, salt_of, walk


def metrics_of(records):
    return [record.event for record in records if isinstance(record.event, Metrics)]


def test_a_log_begins_with_who_writes_it_and_what_time_it_is(pair):
    one = pair().begin()
    one.settle()
    first, second = one.read()
    assert isinstance(first.event, Identified)
    assert (first.event.role, first.event.attempt, first.event.pid) == ("trainer", 1, os.getpid())
    assert isinstance(second.event, ClockSet)
    assert abs(second.wall_ns / 1e9 - time.time()) < 60


def test_steps_count_on_by_themselves_from_the_last_given_one(pair):
    one = pair()
    one.writer.log({"loss": 1.0})
    one.writer.log({"loss": 1.0}, 10, 2)
    one.writer.log({"loss": 1.0})
    one.settle()
    assert [(m.step, m.epoch) for m in metrics_of(one.read())] == [(0, None), (10, 2), (11, None)]
    assert one.writer.last_step == 11


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (0.1, 0.1),
        (-0.0, -0.0),
        (float("inf"), float("inf")),
        (True, True),
        (2**63, 2**63),
        (np.float32(0.1), float(np.float32(0.1))),
        (np.float64(0.1), 0.1),
        (np.int64(-5), -5),
        (np.bool_(1), True),
        (np.array(2.5), 2.5),
        (np.float16(0.5), 0.5),
        (Fraction(1, 4), 0.25),
    ],
)
def test_numbers_are_kept_exactly(pair, value, kept):
    one = pair()
    one.writer.log({"x": value, "deep": {"er": value}})
    one.settle()
    (found,) = metrics_of(one.read())
    assert found.values == {"x": kept, "deep/er": kept}
    assert all(type(number) is type(kept) for number in found.values.values())
    assert np.signbit(found.values["x"]) == np.signbit(kept)


def test_nan_is_kept(pair):
    one = pair()
    one.writer.log({"x": float("nan")})
    one.settle()
    (found,) = metrics_of(one.read())
    assert np.isnan(found.values["x"])


def test_mappings_of_any_kind_are_taken(pair):
    one = pair()
    for metrics in (
        types.MappingProxyType({"a": 1}),
        OrderedDict(a=1),
        {"a": types.MappingProxyType({"b": 1})},
        {1: 2},
    ):
        one.writer.log(metrics)
    one.settle()
    assert [m.values for m in metrics_of(one.read())] == [{"a": 1}, {"a": 1}, {"a/b": 1}, {"1": 2}]


def test_what_is_no_number_is_skipped_and_said_once_while_the_rest_is_kept(pair):
    one = pair()
    for _ in range(3):
        one.writer.log({"loss": 0.5, "model": object(), "vector": np.zeros(3), "z": np.complex64(1)})
    one.settle()
    assert one.told.said == [("model", "object"), ("vector", "ndarray"), ("z", "complex64")]
    assert [m.values for m in metrics_of(one.read())] == [{"loss": 0.5}] * 3


def test_texts_and_none_are_told_apart_from_values_on_their_way(pair):
    one = pair()
    one.writer.log({"loss": 0.5, "a": "text", "b": None, "c": [1, 2], "d": Decimal(1)})
    one.settle()
    (found,) = metrics_of(one.read())
    assert found.values == {"loss": 0.5}
    assert found.rejected == {"a": "str", "b": "NoneType", "c": "list", "d": "str"}


@pytest.mark.parametrize("bad", [None, "text", object(), np.zeros(2)])
def test_strict_raises_and_keeps_nothing_of_the_call(pair, bad):
    one = pair(strict=True)
    with pytest.raises(InvalidInputError, match="metric 'x/y'"):
        one.writer.log({"loss": 1.0, "x": {"y": bad}})
    one.writer.log({"loss": 1.0})
    one.settle()
    assert len(metrics_of(one.read())) == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (([("loss", 1)],), InvalidCallError),
        (("loss",), InvalidCallError),
        (({}, 1.5), InvalidCallError),
        (({}, "1"), InvalidCallError),
        (({}, True), InvalidCallError),
        (({}, 1, "two"), InvalidCallError),
        (({}, 1, False), InvalidCallError),
        (({}, 2**64), InvalidInputError),
    ],
)
def test_a_wrong_call_raises_at_once(pair, arguments, error):
    one = pair()
    with pytest.raises(error):
        one.writer.log(*arguments)
    assert one.writer.last_step == -1


def test_numpy_steps_and_epochs_are_whole_numbers_and_numbers(pair):
    one = pair()
    one.writer.log({"x": 1}, np.int32(7), np.float32(0.5))
    one.settle()
    (found,) = metrics_of(one.read())
    assert (found.step, found.epoch) == (7, 0.5)


def test_integers_beyond_64_bits_are_kept_as_text(pair):
    one = pair()
    one.writer.log({"loss": 1.0, "deep": {"big": 10**30}}, 3)
    one.settle()
    records = one.read()
    assert metrics_of(records)[0].values == {"loss": 1.0}
    assert [r.event for r in records if isinstance(r.event, BigIntegers)] == [
        BigIntegers(step=3, epoch=None, values={"deep/big": str(10**30)})
    ]


class OnDevice:
    """Stands for a tensor on a device: reading it would make the training wait."""

    device = types.SimpleNamespace(type="cuda")
    ndim = 0

    def item(self):
        raise AssertionError("the training thread waited for the device")


def test_a_device_value_is_fetched_later(pair):
    asked = []
    one = pair(deferred=lambda tensor, sequence, name: asked.append((sequence, name)))
    one.writer.log({"loss": OnDevice(), "lr": 0.1, "val": {"loss": OnDevice()}})
    one.settle()
    (record,) = one.read()
    assert record.event.values == {"lr": 0.1}
    assert record.event.rejected == {"loss": "None", "val/loss": "None"}
    assert asked == [(record.sequence, "loss"), (record.sequence, "val/loss")]


def test_thousands_of_names_become_several_records_of_one_step(pair):
    one = pair()
    metrics = {f"layer{i}/gradient_norm": float(i) for i in range(8000)}
    one.writer.log(metrics, 5)
    one.settle()
    found = metrics_of(one.read())
    assert len(found) > 1
    assert {m.step for m in found} == {5}
    assert {k: v for m in found for k, v in m.values.items()} == metrics


def test_an_event_that_is_too_large_is_the_callers_to_decide(pair):
    one = pair()
    with pytest.raises(InvalidInputError, match="does not fit"):
        one.writer.append(Line(stream="stdout", text="x" * 70_000))


def test_descriptions_of_any_objects_can_be_appended(pair):
    one = pair()
    one.writer.append(
        Described(fields={"seed": 2**70, "lr": np.float32(0.5), "path": os, 3: {"a": (1, {2})}, "\udc80": 1})
    )
    one.settle()
    (record,) = one.read()
    fields = record.event.fields
    assert fields["seed"] == str(2**70)
    assert fields["lr"] == 0.5
    assert fields["3"] == {"a": [1, [2]]}


def test_a_full_memory_never_blocks_counts_what_is_lost_and_says_so(pair):
    one = pair(segment_size=1 << 17, capacity=1 << 18)
    while not one.writer.lost:
        one.writer.log({"loss": 1.0})
    one.writer.log({"loss": 1.0})
    kept = one.writer.last_step + 1 - 2
    one.settle()
    one.writer.prepare()
    one.writer.log({"loss": 2.0})
    one.settle()
    records = one.read()
    assert len(metrics_of(records)) == kept + 1
    assert [r.event.count for r in records if isinstance(r.event, Lost)] == [2]


def test_memory_is_released_only_when_durable(pair):
    one = pair(segment_size=1 << 17)
    for _ in range(6000):
        one.writer.log({"loss": 1.0})
    one.drain.copy()
    before = len(one.writer.live_segments())
    assert before > 2
    assert len(one.writer.release(0)) == before
    assert len(one.writer.release(one.drain.sync())) < before
    assert [ordinal for _, ordinal in one.writer.live_segments()] == sorted(one.writer.release(0))


def test_four_threads_that_are_switched_all_the_time_lose_nothing(pair, steps):
    one = pair(segment_size=1 << 18)
    interval = sys.getswitchinterval()

    def work(first):
        for step in range(first, first + 10_000):
            one.writer.log({"loss": 1.0, "accuracy": 0.5}, step)

    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(n * 10_000,)) for n in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            one.writer.prepare()
            one.settle()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    one.drain.copy(finishing=True)
    assert one.writer.lost == 0
    assert sorted(steps(one.read())) == list(range(40_000))


def test_a_signal_handler_that_logs_interrupts_anywhere_and_nothing_is_lost(pair, steps):
    one = pair(segment_size=1 << 18)
    handled = itertools.count(1)
    count = 0

    def handler(number, frame):
        nonlocal count
        one.writer.log({"signal": 1.0}, -next(handled))
        count += 1

    # As in a run, a helper thread keeps a segment ready; without it the handler interrupts the making of one, again and
    # again, faster than any is finished.
    done = threading.Event()

    def help_out():
        while not done.wait(0.001):
            one.writer.prepare()

    helper = threading.Thread(target=help_out)
    helper.start()
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 5e-5, 5e-5)
        for step in range(30_000):
            one.writer.log({"loss": 1.0, "accuracy": 0.5}, step)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        done.set()
        helper.join()
    one.drain.copy(finishing=True)
    assert count > 10
    assert one.writer.lost == 0
    assert sorted(steps(one.read())) == list(range(-count, 30_000))


def test_finalizers_that_log_lose_nothing(pair, steps):
    one = pair(segment_size=1 << 18)
    finalized = itertools.count(1)

    class Cycle:
        def __init__(self):
            self.me = self

        def __del__(self):
            one.writer.log({"gc": 1.0}, -next(finalized))

    thresholds = gc.get_threshold()
    gc.set_threshold(5, 2, 2)
    try:
        for step in range(20_000):
            Cycle()
            one.writer.log({"loss": 1.0, "accuracy": 0.5}, step)
        gc.collect()
    finally:
        gc.set_threshold(*thresholds)
    one.drain.copy(finishing=True)
    assert sorted(steps(one.read())) == list(range(-(next(finalized) - 1), 20_000))


@pytest.mark.linux
def test_a_killed_writer_loses_no_record_whose_call_returned(layout, steps):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    acknowledged = mmap.mmap(-1, 4096)
    count = memoryview(acknowledged).cast("Q")
    for trial in range(40):
        count[0] = 0
        log_id = new_log_id()
        drain = Drain(layout, log_id)
        made = [SharedSegment.create(1 << 18, "shared") for _ in range(24)]
        for ordinal, segment in enumerate(made):
            drain.attach(SharedSegment.attach(os.dup(segment.fd), segment.size), ordinal)
        child = os.fork()
        if child == 0:
            _log_until_killed(log_id, made, count)
        while not count[0]:
            pass
        deadline = time.monotonic() + rng.uniform(0.0, 0.02)
        while time.monotonic() < deadline:
            drain.copy()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        drain.copy(finishing=True)
        (log,) = (log for log in read_log_files(layout.log) if log.log_id == log_id)
        found = steps(list(scan(log)))
        assert found == list(range(1, len(found) + 1)), trial
        assert len(found) >= count[0]
        drain.close()
        for segment in made:
            segment.close()
    count.release()
    acknowledged.close()


def _log_until_killed(log_id, made, count):
    """The child's part. Its segments are the parent's, made beforehand, so that no descriptor has to be handed over."""
    try:
        supply = iter(made)
        SharedSegment.create = classmethod(lambda cls, size, name: next(supply))
        writer = LogWriter(log_id, hand_over=lambda *_: None, on_bad_value=lambda *_: None, segment_size=1 << 18)
        for step in itertools.count(1):
            if step > 50_000:
                signal.pause()
            writer.log({"loss": 1.0 / step, "accuracy": 0.5, "lr": 0.1, "norm": 2.0}, step)
            count[0] = step
    finally:
        os._exit(1)


def _on_a_full_disk(log, action) -> None:
    working, log._fd = log._fd, os.open("/dev/full", os.O_WRONLY)
    action()
    os.close(log._fd)
    log._fd = working


def test_a_direct_log_says_once_that_the_disk_refuses_and_keeps_what_it_refused(layout, steps):
    failures = []
    log = DirectLog(layout, new_log_id(), on_failure=failures.append)
    log.log({"x": 1}, 0)
    _on_a_full_disk(log, lambda: [log.log({"x": 1}, step) for step in (1, 2)])
    assert [failure.kind for failure in failures] == ["disk-full"]
    log.log({"x": 1}, 3)
    assert log.lost == 0
    (files,) = read_log_files(layout.log)
    damage = []
    assert sorted(steps(list(scan(files, damage=damage)))) == [0, 1, 2, 3]
    assert damage == []
    log.sync()
    log.close()


def test_a_short_record_is_written_where_a_long_one_waits_for_room(layout, steps):
    log = DirectLog(layout, new_log_id())
    room = os.fstat(log._fd).st_size + 2000
    with file_size_limit(room):
        log.append(Line(stream="stdout", text="x" * 5000))
        log.log({"x": 1}, 1)
    (files,) = read_log_files(layout.log)
    assert steps(list(scan(files, live=True))) == [1]
    log.catch_up()
    damage = []
    found = list(scan(read_log_files(layout.log)[0], damage=damage))
    assert {type(record.event) for record in found} == {Metrics, Line}
    assert damage == []
    assert log.lost == 0
    log.close()


@contextmanager
def file_size_limit(size):
    """No file may grow beyond ``size`` bytes; what does is cut there, and then refused."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_what_a_direct_log_can_neither_write_nor_keep_is_counted_and_so_is_the_rest_at_the_end(layout, monkeypatch):
    monkeypatch.setattr(direct_log, "_MOST_BYTES_WAITING", 400)
    log = DirectLog(layout, new_log_id())
    working, log._fd = log._fd, os.open("/dev/full", os.O_WRONLY)
    places = {log.append(Line(stream="stdout", text="x" * 50)) for _ in range(20)}
    assert places == {NOT_KEPT}
    assert 0 < log.lost < 20
    log.close()
    assert log.lost == 20
    os.close(working)


def test_threads_may_share_a_direct_log(layout, steps):
    log = DirectLog(layout, new_log_id())
    threads = [threading.Thread(target=lambda: [log.log({"x": 1.0}, 1) for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (files,) = read_log_files(layout.log)
    damage = []
    assert len(steps(list(scan(files, damage=damage)))) == 8000
    assert damage == []
    log.close()


def test_a_direct_log_takes_large_events(layout):
    log = DirectLog(layout, new_log_id())
    log.append(Line(stream="stdout", text="x" * 1_000_000))
    log.append(Deferred(sequence=1, name="loss", value=0.5))
    (files,) = read_log_files(layout.log)
    assert [type(record.event) for record in scan(files)] == [Line, Deferred]
    log.close()


def test_segments_say_whose_they_are_and_where_they_begin(pair):
    one = pair(segment_size=1 << 17)
    for _ in range(5000):
        one.writer.log({"loss": 1.0})
    headers = [read_header(memoryview(segment.map)) for segment, _ in one.segments]
    used = sorted(header.base for header in headers if header.base)
    assert used == [(n + 1) << 17 for n in range(len(used))]
    assert {header.log_id for header in headers} == {one.log_id}
    segment, _ = one.segments[0]
    assert len(list(walk(memoryview(segment.map), 64, segment.size, 1 << 17, salt_of(one.log_id)))) > 100
