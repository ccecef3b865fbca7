"""What the disk gets is what was published, whatever the disk does."""

import os
import resource

import pytest

from milepost.core.errors import StorageError
from milepost.core.events import Metrics
from milepost.io.memory import SharedSegment
from milepost.runs import durable_log
from milepost.runs.durable_log import Drain
from milepost.runs.scan import read_log_files, scan
from milepost.runs.segment import read_header


def log_steps(pair, first, last):
    for step in range(first, last):
        pair.writer.log({"loss": 1.0, "accuracy": 0.5}, step)


def second_drain(pair, sequence):
    """What a restarted companion does: a new drain, handed the writer's live segments."""
    drain = Drain(pair.layout, pair.log_id)
    drain.resume_from(sequence)
    for segment, ordinal in pair.writer.live_segments():
        drain.attach(SharedSegment.attach(os.dup(segment.fd), segment.size), ordinal)
    return drain


def test_nothing_logged_makes_no_file(pair):
    one = pair()
    assert one.drain.copy() == 0
    assert one.drain.sync() == 0
    assert read_log_files(one.layout.log) == []


def test_records_of_many_segments_stand_in_one_file_at_their_sequence_numbers(pair, steps):
    one = pair(segment_size=1 << 17)
    for first in range(0, 6000, 500):
        log_steps(one, first, first + 500)
        one.settle()
    (log,) = read_log_files(one.layout.log)
    (file,) = log.files
    assert file.first_sequence == 1 << 17
    records = one.read()
    assert steps(records) == list(range(6000))
    assert [r.sequence for r in records] == sorted({r.sequence for r in records})
    assert one.drain.durable == one.drain.position


def test_the_file_holds_the_same_bytes_as_the_memory_at_the_same_places(pair):
    one = pair(segment_size=1 << 17)
    log_steps(one, 0, 4000)
    one.drain.copy()
    (log,) = read_log_files(one.layout.log)
    content = log.files[0].path.read_bytes()
    memory = {read_header(memoryview(segment.map)).base: bytes(segment.map) for segment, _ in one.segments}
    whole = b"".join(memory[base] for base in sorted(memory) if base)
    assert len(memory) > 2
    assert content == whole[: len(content)]
    assert not any(whole[len(content) :])


def test_a_restarted_companion_goes_on_with_a_new_file_and_repeats_nothing_to_the_reader(pair, steps):
    one = pair(segment_size=1 << 17)
    log_steps(one, 0, 3000)
    durable = one.settle()
    log_steps(one, 3000, 4000)
    one.drain.copy()  # written, but the companion dies before it is known to be durable
    one.drain.close()
    log_steps(one, 4000, 5000)
    one.drain = second_drain(one, durable)
    one.settle()
    (log,) = read_log_files(one.layout.log)
    assert len(log.files) == 2
    assert steps(one.read()) == list(range(5000))


def test_a_restart_that_knows_nothing_durable_writes_everything_again(pair, steps):
    one = pair()
    log_steps(one, 0, 100)
    one.drain.copy()
    one.drain.close()
    one.drain = second_drain(one, 0)
    one.settle()
    (log,) = read_log_files(one.layout.log)
    assert [file.copy for file in log.files] == [0, 1]
    assert steps(one.read()) == list(range(100))


def test_after_a_failed_sync_the_file_is_left_and_everything_undurable_written_again(pair, steps, monkeypatch):
    one = pair()
    log_steps(one, 0, 100)
    one.settle()
    log_steps(one, 100, 200)
    one.drain.copy()

    def fails(fd):
        raise OSError(5, "I/O error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fails)
        with pytest.raises(StorageError, match="input/output error") as caught:
            one.drain.sync()
    assert caught.value.kind == "io-error"
    (before,) = read_log_files(one.layout.log)
    before.files[0].path.write_bytes(before.files[0].path.read_bytes()[:4000])  # the kernel dropped its pages
    log_steps(one, 200, 300)
    one.settle()
    (log,) = read_log_files(one.layout.log)
    assert len(log.files) == 2
    records = [record.event.step for record in scan(log, live=True) if isinstance(record.event, Metrics)]
    assert set(range(100, 300)) <= set(records)


def test_a_full_disk_loses_nothing_while_the_memory_lasts(pair, steps):
    one = pair()
    log_steps(one, 0, 50)
    one.settle()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (one.drain.position - (1 << 18) + 100, hard))
    try:
        log_steps(one, 50, 2000)
        with pytest.raises(StorageError):
            one.drain.copy()
        with pytest.raises(StorageError):
            one.drain.copy()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    one.settle()
    assert steps(one.read()) == list(range(2000))


def test_a_new_file_begins_when_one_is_large(pair, steps, monkeypatch):
    monkeypatch.setattr(durable_log, "_ROLL_AT", 1 << 18)
    one = pair(segment_size=1 << 17)
    for first in range(0, 12_000, 500):
        log_steps(one, first, first + 500)
        one.settle()
    (log,) = read_log_files(one.layout.log)
    assert len(log.files) > 2
    assert steps(one.read()) == list(range(12_000))


def test_a_record_that_was_never_finished_costs_only_itself(pair, steps):
    one = pair()
    log_steps(one, 0, 10)
    one.writer._offset += 104  # the process dies between reserving and publishing
    log_steps(one, 11, 20)
    one.drain.copy()
    one.drain.sync()
    assert steps(one.read()) == list(range(10))
    one.drain.copy(finishing=True)
    (log,) = read_log_files(one.layout.log)
    damage = []
    assert steps(list(scan(log, damage=damage))) == [*range(10), *range(11, 20)]
    assert [d.end - d.start for d in damage] == [104]


def test_an_unfinished_record_before_a_roll_is_waited_for_and_then_stepped_over(pair, steps, monkeypatch):
    monkeypatch.setattr(durable_log, "_HOLE_PATIENCE", 0.0)
    one = pair(segment_size=1 << 17)
    log_steps(one, 0, 10)
    one.writer._offset += 104
    log_steps(one, 11, 3000)
    one.drain.copy()
    assert one.drain.position < 2 << 17
    one.drain.copy()
    one.drain.copy()
    (log,) = read_log_files(one.layout.log)
    assert steps(list(scan(log))) == [*range(10), *range(11, 3000)]
