"""Whatever became of the files, every whole record is read once and nothing else is."""

import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import msgpack

from milepost.core.config import ExperimentConfig
from milepost.core.events import Identified, Metrics
from milepost.runs.layout import RunLayout
from milepost.runs.log import DirectLog, begin_log
from milepost.runs.scan import LogFollower, read_log_files, scan, tail, writer_of
from milepost.runs.segment import HEADER_BYTES, Header, new_log_id, pack_header, salt_of, seal_record

SEGMENT = 1 << 17


def payload(step, padding=0):
    return msgpack.encode((1, step, None, step, {"x" * (1 + padding): float(step)}))


def write_log(folder: Path, payloads, *, segment_size=SEGMENT, log_id=None):
    """A durable log as the format asks for it, and the sequence number of each record."""
    log_id = log_id or new_log_id()
    content = bytearray()
    places = []

    def header():
        base = segment_size + len(content)
        return pack_header(
            Header(log_id=log_id, base=base, wall_ns=5_000, monotonic_ns=1_000, segment_size=segment_size)
        )

    content += header()
    for one in payloads:
        if len(content) % segment_size > segment_size - 16 - (1 << 16):
            content += bytes(-len(content) % segment_size)
            content += header()
        places.append(segment_size + len(content))
        content += seal_record(one, salt_of(log_id))
    path = folder / f"wal-{log_id.hex()}-{segment_size:016x}.mlog"
    path.write_bytes(content)
    return path, places


def read_all(folder: Path, **options):
    damage = []
    (log,) = read_log_files(folder)
    records = [(r.sequence, r.event.step) for r in scan(log, damage=damage, **options) if isinstance(r.event, Metrics)]
    return records, damage


def test_records_are_read_over_windows_and_segments(tmp_path):
    payloads = [payload(step, padding=step % 5000) for step in range(2000)]
    _, places = write_log(tmp_path, payloads)
    records, damage = read_all(tmp_path)
    assert records == list(zip(places, range(2000), strict=True))
    assert damage == []


def test_a_record_larger_than_any_window_is_read(tmp_path):
    write_log(tmp_path, [payload(1), payload(2, padding=1 << 20), payload(3)], segment_size=1 << 40)
    records, damage = read_all(tmp_path)
    assert [step for _, step in records] == [1, 2, 3]
    assert damage == []


def test_wall_time_follows_the_last_clock_record(tmp_path):
    clock = msgpack.encode((6, None, None, 10, {"wall_ns": 900, "monotonic_ns": 100}))
    write_log(tmp_path, [payload(7), clock, payload(20)])
    (log,) = read_log_files(tmp_path)
    assert [record.wall_ns for record in scan(log)] == [7 + 4_000, 10 + 800, 20 + 800]


@pytest.mark.parametrize(
    "unknown",
    [
        (99, None, None, 1, {"a": 1}),
        (1, "step", None, 1, {"a": 1}),
        (1, None, "epoch", 1, {"a": 1}),
        (1, None, None, "clock", {"a": 1}),
        (1, None, None, 1, [1]),
        (4, None, None, 1, {"status": "dancing"}),
        (4, None, None, 1, {}),
        (5, None, None, 1, {"step": "five"}),
        (7, None, None, 1, {"sequence": 1, "name": 2, "value": "x"}),
        (1, 2),
        [],
        {},
        "text",
    ],
)
def test_what_no_version_of_ours_wrote_is_passed_over(tmp_path, unknown):
    write_log(tmp_path, [payload(1), msgpack.encode(unknown), b"\xc1", payload(2)])
    records, damage = read_all(tmp_path)
    assert [step for _, step in records] == [1, 2]
    assert damage == []


def test_further_items_and_fields_of_later_versions_are_passed_over(tmp_path):
    write_log(
        tmp_path,
        [
            msgpack.encode((1, 1, None, 1, {"a": 1}, [], "more")),
            msgpack.encode((2, None, None, 1, {"stream": "stdout", "text": "t", "colour": "red"})),
        ],
    )
    (log,) = read_log_files(tmp_path)
    assert len(list(scan(log))) == 2


def overlapping(places, ends, start, end):
    return {i for i, (a, b) in enumerate(zip(places, ends, strict=True)) if a < end and start < b}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damage_costs_only_the_records_it_lies_in_and_is_reported(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("log")
    count = data.draw(st.integers(1, 60))
    payloads = [payload(step, padding=data.draw(st.sampled_from([0, 0, 3, 40, 3000]))) for step in range(count)]
    size = data.draw(st.sampled_from([SEGMENT, 1 << 40]))
    path, places = write_log(folder, payloads, segment_size=size)
    content = bytearray(path.read_bytes())
    ends = [place + 16 + len(one) for place, one in zip(places, payloads, strict=True)]
    hit: set[int] = set()
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(HEADER_BYTES, len(content) - 1))
        length = data.draw(st.sampled_from([1, 8, 100, 4096]))
        kind = data.draw(st.sampled_from(["zero", "noise", "flip"]))
        end = min(start + length, len(content))
        before = bytes(content[start:end])
        if kind == "zero":
            content[start:end] = bytes(end - start)
        elif kind == "noise":
            content[start:end] = random.Random(data.draw(st.integers(0, 1000))).randbytes(end - start)
        else:
            content[start] ^= 1 << data.draw(st.integers(0, 7))
        changed = [i for i, (a, b) in enumerate(zip(before, content[start:end], strict=True)) if a != b]
        if changed:
            hit |= overlapping(places, ends, size + start + changed[0], size + start + changed[-1] + 1)
    path.write_bytes(content)
    records, damage = read_all(folder)
    written = dict(zip(places, range(count), strict=True))
    assert all(written.get(sequence) == step for sequence, step in records), "a record was invented"
    found = {step for _, step in records}
    assert set(range(count)) - hit <= found, "a sound record was lost"
    last_found = max(found, default=-1)
    for index in set(range(last_found)) - found:
        place = places[index]
        assert any(d.first_sequence <= place < d.end_sequence for d in damage), "a lost record was not reported"


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 4000), st.booleans())
def test_a_file_cut_anywhere_gives_what_lies_wholly_before_the_cut(tmp_path_factory, cut, live):
    folder = tmp_path_factory.mktemp("log")
    path, places = write_log(folder, [payload(step) for step in range(60)])
    content = path.read_bytes()
    cut = min(cut, len(content))
    path.write_bytes(content[:cut])
    records, damage = read_all(folder, live=live)
    # Padding after a record is no part of it.
    whole = [s for s, place in enumerate(places) if place - SEGMENT + 16 + len(payload(s)) <= cut]
    assert [step for _, step in records] == whole
    if live:
        assert damage == []


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=4000))
def test_noise_is_never_fatal_and_never_a_record(tmp_path_factory, noise):
    folder = tmp_path_factory.mktemp("log")
    path, _ = write_log(folder, [])
    with path.open("ab") as file:
        file.write(noise)
    records, _ = read_all(folder)
    assert records == []
    path.write_bytes(noise)
    assert read_all(folder)[0] == []


def test_records_of_another_log_are_not_taken_for_ours(tmp_path):
    path, _ = write_log(tmp_path, [payload(1)])
    foreign = seal_record(payload(2), salt_of(new_log_id()))
    with path.open("ab") as file:
        file.write(foreign)
    records, damage = read_all(tmp_path)
    assert [step for _, step in records] == [1]
    assert damage[0].end - damage[0].start == len(foreign)


def test_a_file_that_is_not_what_its_name_says_is_reported_and_not_read(tmp_path):
    path, _ = write_log(tmp_path, [payload(1)])
    path.rename(path.with_name(f"wal-{new_log_id().hex()}-{SEGMENT:016x}.mlog"))
    records, damage = read_all(tmp_path)
    assert records == []
    assert (damage[0].start, damage[-1].end) == (0, HEADER_BYTES + 40)


@pytest.mark.parametrize("byte", [*range(HEADER_BYTES)])
def test_a_damaged_header_costs_no_record(tmp_path, byte):
    payloads = [payload(step, padding=30 * step) for step in range(200)]  # several segments
    path, places = write_log(tmp_path, payloads)
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << byte % 8
    path.write_bytes(content)
    records, damage = read_all(tmp_path)
    assert records == list(zip(places, range(200), strict=True))
    assert (damage[0].start, damage[0].end) == (0, HEADER_BYTES)


def test_a_file_without_its_header_yet_is_not_there_yet_for_a_live_reader(tmp_path):
    path, _ = write_log(tmp_path, [payload(1)])
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    assert read_all(tmp_path, live=True) == ([], [])
    assert [(d.start, d.end) for d in read_all(tmp_path)[1]] == [(0, 20)]


def test_damage_in_one_file_is_healed_by_another_of_the_same_log(tmp_path):
    log_id = new_log_id()
    path, places = write_log(tmp_path, [payload(step) for step in range(10)], log_id=log_id)
    whole = path.read_bytes()
    content = bytearray(whole)
    content[places[4] - SEGMENT + 20] ^= 1
    path.write_bytes(content)
    path.with_name(f"wal-{log_id.hex()}-{SEGMENT:016x}.1.mlog").write_bytes(whole)
    records, damage = read_all(tmp_path)
    assert [step for _, step in records] == list(range(10))
    assert damage == []


@pytest.mark.parametrize("name", ["notes.txt", "wal-1.mlog", "guest-tensorboard.json", "wal-zz.mlog", ".wal.tmp"])
def test_other_files_are_no_concern(tmp_path, name):
    (tmp_path / name).write_bytes(b"\0" * 100)
    assert read_log_files(tmp_path) == []
    assert read_log_files(tmp_path / "absent") == []


@pytest.fixture
def log(tmp_path):
    layout = RunLayout.from_config(ExperimentConfig(root=str(tmp_path)), "run")
    layout.log.mkdir(parents=True)
    log = DirectLog(layout, new_log_id())
    begin_log(log, role="trainer", attempt=1)
    yield log
    log.close()


def test_the_writer_of_a_log_is_its_first_record(log):
    (files,) = read_log_files(log.path.parent)
    writer = writer_of(files)
    assert writer is not None
    assert writer.pid == os.getpid()


def test_the_tail_holds_the_last_records_only(log):
    for step in range(20_000):
        log.log({"loss": 1.0}, step)
    (files,) = read_log_files(log.path.parent)
    records = tail(files, 1000)
    assert 5 < len(records) < 30
    assert [r.event.step for r in records] == list(range(20_000 - len(records), 20_000))
    assert [r.sequence for r in records] == [r.sequence for r in scan(files)][-len(records) :]


def test_a_follower_gets_everything_once_in_portions_and_then_what_is_new(log, steps):
    follower = LogFollower(log.path.parent)
    for step in range(1000):
        log.log({"loss": 1.0}, step)
    got = []
    while portion := follower.read(64):
        assert len(portion) <= 64
        got += portion
    assert steps(got) == list(range(1000))
    assert isinstance(got[0].event, Identified)
    log.log({"loss": 1.0}, 1000)
    assert steps(follower.read(64)) == [1000]
    assert follower.read(64) == []


def test_a_follower_goes_on_from_the_cursor_of_another(log, steps):
    first = LogFollower(log.path.parent)
    for step in range(100):
        log.log({"loss": 1.0}, step)
    got = first.read(40)
    second = LogFollower(log.path.parent, first.cursor)
    rest = second.read(1000)
    assert steps(got + rest) == list(range(100))
    assert second.writers[log.log_id].role == "trainer"
    assert [record.wall_ns for record in got + rest] == [
        record.wall_ns for record in LogFollower(log.path.parent).read(1000)
    ]
    assert set(second.cursor) == {log.log_id.hex()}


def test_a_follower_sees_a_half_written_record_when_it_is_whole(log, steps):
    follower = LogFollower(log.path.parent)
    follower.read(10)
    whole = seal_record(payload(5), salt_of(log.log_id))
    with log.path.open("ab") as file:
        file.write(whole[:30])
        file.flush()
        assert follower.read(10) == []
        file.write(whole[30:])
    assert steps(follower.read(10)) == [5]


def test_a_follower_steps_over_damage_at_the_second_look(log, steps):
    follower = LogFollower(log.path.parent)
    follower.read(10)
    with log.path.open("ab") as file:
        file.write(b"\xff" * 64 + seal_record(payload(5), salt_of(log.log_id)))
    assert follower.read(10) == []
    assert steps(follower.read(10)) == [5]


def test_a_follower_finds_new_logs(log, steps, tmp_path):
    follower = LogFollower(log.path.parent)
    log.log({"loss": 1.0}, 1)
    assert steps(follower.read(10)) == [1]
    layout = RunLayout.from_config(ExperimentConfig(root=str(tmp_path)), "run")
    second = DirectLog(layout, new_log_id())
    second.log({"loss": 1.0}, 2)
    assert steps(follower.read(10)) == [2]
    second.close()
